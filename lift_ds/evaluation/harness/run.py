"""Tasks of the harness on a model that is loaded already, and the harness itself, where it is installed."""

from __future__ import annotations

import importlib.util
import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lift_ds.evaluation.asking.answering import Answerer
    from lift_ds.ranks.shares import Ranks

    from .settings import HarnessSettings

BOOTSTRAP_RESAMPLES = 100_000  # the harness's own number


def require_harness() -> None:
    """A RuntimeError that says what to do where the harness is not installed."""
    if importlib.util.find_spec("lm_eval") is None:
        raise RuntimeError("lm-evaluation-harness is not installed: pip install 'lift_ds[eval]'")


def run_harness(
    answerer: Answerer,
    ranks: Ranks,
    settings: HarnessSettings,
    tasks: Sequence[str],
    *,
    name: str = "lift_ds",
    identity: str = "",
    include_path: str | Path | None = None,
    include_defaults: bool = True,
    limit: int | float | None = None,
    num_fewshot: int | None = None,
    apply_chat_template: bool = False,
    system_instruction: str | None = None,
    gen_kwargs: Mapping[str, Any] | None = None,
    fewshot_seed: int = 1234,
    confirm_run_unsafe_code: bool = False,
) -> dict[str, Any] | None:
    """Runs tasks, by name, group, tag or path of a task file; every rank calls it with the same arguments.

    Those after `identity` are the harness's own. `identity` is the weights', needed with `settings.progress`, which
    keeps their answers. Of `include_path`, a folder with task files of one's own, `include_defaults` says whether the
    harness's tasks are known too; listing them takes seconds. `limit` takes the first documents of each task: so many,
    or below 1 such a share. With `apply_chat_template` requests are chats, examples turns of them. `gen_kwargs` replace
    the tasks'. `confirm_run_unsafe_code` allows tasks that run the model's code with your rights.

    Returns:
        On the first rank the harness's results: `results`, `config` and, by task, `samples`; samples of likelihoods
        have their `standard_errors`, one a request. `None` on the others.

    Raises:
        ValueError: A task is not known, or a request cannot be answered so.
        RuntimeError: The harness is not installed.
    """
    require_harness()
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    from .language_model import DiffusionLM

    if include_path is not None and not Path(include_path).is_dir():
        raise ValueError(f"{include_path}: no such folder of task files.")
    if ranks.rank != 0:
        logging.getLogger("lm_eval").setLevel(logging.ERROR)
    manager = TaskManager(include_path=include_path, include_defaults=include_defaults)
    unknown = [task for task in tasks if not (manager.match_tasks([task]) or Path(task).is_file())]
    if unknown or not tasks:
        raise ValueError(f"tasks {', '.join(unknown) or '(none)'}: no such task; lm_eval ls tasks lists all.")
    lm = DiffusionLM(answerer, ranks, settings, name, identity)
    with closing(lm.batches):
        results = simple_evaluate(
            model=lm,
            tasks=[name for task in tasks for name in manager.match_tasks([task]) or [task]],
            task_manager=manager,
            limit=limit,
            num_fewshot=num_fewshot,
            apply_chat_template=apply_chat_template,
            fewshot_as_multiturn=apply_chat_template,
            system_instruction=system_instruction,
            gen_kwargs=None if gen_kwargs is None else dict(gen_kwargs),
            fewshot_random_seed=fewshot_seed,
            bootstrap_iters=BOOTSTRAP_RESAMPLES if ranks.rank == 0 else 0,
            confirm_run_unsafe_code=confirm_run_unsafe_code,
        )
    if results is None or ranks.rank != 0:
        return None
    add_standard_errors(results["samples"], lm.estimates)
    return dict(results)


def add_standard_errors(samples: Mapping[str, list[dict[str, Any]]], estimates: Sequence[Mapping[str, Any]]) -> None:
    """Adds `standard_errors`, in the order of their requests, to the samples that have likelihoods."""
    errors_of: dict[tuple[str, int], list[float]] = defaultdict(list)
    for estimate in sorted(estimates, key=lambda estimate: estimate["choice"]):
        errors_of[estimate["task"], estimate["doc_id"]].append(estimate["standard_error"])
    for task, of_task in samples.items():
        for sample in of_task:
            errors = errors_of.get((task, sample["doc_id"]))
            if errors is not None:
                sample["standard_errors"] = errors
