"""`lift-ds-lm-eval`: the command of lm-evaluation-harness, to which the model `lift_ds` is known.

The harness has no way to find models of other packages: its own command knows those of its table only.
"""

from __future__ import annotations

import os
import sys
import traceback

from lift_ds.evaluation.harness.run import require_harness
from lift_ds.ranks.errors import is_explained


def main(argv: list[str] | None = None) -> None:
    """Entry point, which takes what `lm_eval` takes; exits with 2 where something is missing or wrong."""
    arguments = [word for word in (sys.argv[1:] if argv is None else argv) if not word.startswith("--local_rank=")]
    try:
        require_harness()
        import lm_eval.__main__

        import lift_ds.cli.lm_eval_model  # noqa: F401 (makes the model known)

        if os.environ.get("RANK", "0") != "0":
            os.environ.setdefault("LMEVAL_LOG_LEVEL", "ERROR")  # the first process says it for all
        sys.argv = ["lm_eval", *arguments]  # the harness reads it there
        lm_eval.__main__.cli_evaluate()
    except (ValueError, RuntimeError, OSError) as error:
        if os.environ.get("LMEVAL_LOG_LEVEL", "").upper() == "DEBUG":
            raise
        is_fault = not is_explained(error)
        if not say_with_others(error) and (
            is_fault or os.environ.get("RANK", "0") == "0" or isinstance(error, OSError)
        ):
            if is_fault:
                traceback.print_exc()
            print(f"error: {error}", file=sys.stderr, flush=True)  # else all processes find the same
        leave_processes(2)
    leave_processes(0)


def say_with_others(error: Exception) -> bool:
    """Says an error as far as it is this process's to say, if it has met others or has not found them."""
    if "torch" not in sys.modules:
        return False
    from lift_ds.ranks.launch import read_launch
    from lift_ds.ranks.meeting import MeetingError, has_met, say_error

    if not (has_met() or isinstance(error, MeetingError)):
        return False
    say_error(error, read_launch())
    return True


def leave_processes(status: int) -> None:
    """Ends this process, in order where it has joined others."""
    if "torch" in sys.modules:
        from lift_ds.ranks.meeting import has_met, say_goodbye
        from lift_ds.ranks.running import has_started, leave

        if status == 0:
            say_goodbye()
        if has_started() or (status and has_met()):
            leave(status)
    if status:
        sys.exit(status)


if __name__ == "__main__":
    main()
