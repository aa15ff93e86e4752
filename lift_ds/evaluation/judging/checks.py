"""The checks that run in child processes: equal formulas, and programs."""

from __future__ import annotations

import math
import secrets
from dataclasses import dataclass, replace
from types import TracebackType

from lift_ds.evaluation.sandbox import Child, Failure, Limits

LONGEST_FORMULA = 10_000
HANDLERS = "lift_ds.evaluation.judging.handlers"
SPARE_CPU_SECONDS = 2


@dataclass(frozen=True)
class CheckResult:
    """What a check said: whether it holds, and whether it was stopped at a limit."""

    holds: bool
    timed_out: bool = False


class Checks:
    """Asks child processes; one lives for all formulas until one of them stops it, every program has its own.

    Args:
        limits: What each check may use.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.maths: Child | None = None

    def is_same_formula(self, scorer: str, answer: str, truth: str) -> CheckResult:
        """Whether two LaTeX answers are equal by the rules of `scorer`.

        Above 10,000 characters an answer is not compared: it is wrong. One that stops or breaks its process is wrong,
        too.

        Raises:
            RuntimeError: No child process can be started.
        """
        if len(answer) > LONGEST_FORMULA:
            return CheckResult(False)
        if self.maths is None:
            self.maths = Child(f"{HANDLERS}:compare_formulas", self.limits)
        reply = self.maths.ask({"scorer": scorer, "answer": answer, "truth": truth})
        if isinstance(reply, Failure):
            self.maths = None
            return CheckResult(False, timed_out=reply is Failure.TIMEOUT)
        return CheckResult(reply["is_same"])

    def run_program(self, source: str, may_exit: bool) -> CheckResult:
        """Whether a Python program ends without an error.

        Args:
            source: The program.
            may_exit: Whether leaving early with status 0 (`sys.exit()`, `os._exit(0)`) counts, too.

        Raises:
            RuntimeError: No child process can be started.
        """
        token = secrets.token_hex()
        cpu_seconds = math.ceil(self.limits.seconds) + SPARE_CPU_SECONDS
        with Child(f"{HANDLERS}:run_program", replace(self.limits, cpu_seconds=cpu_seconds)) as child:
            reply = child.ask({"source": source, "token": token})
            if reply is Failure.TIMEOUT:
                return CheckResult(False, timed_out=True)
            if isinstance(reply, Failure):
                return CheckResult(may_exit and child.returncode == 0)
        if reply.get("ended") == "exit":
            return CheckResult(may_exit and bool(reply["is_success"]))
        return CheckResult(reply.get("ended") == "finished" and reply.get("token") == token)

    def close(self) -> None:
        """Ends the child for formulas."""
        if self.maths is not None:
            self.maths.close()
            self.maths = None

    def __enter__(self) -> Checks:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
