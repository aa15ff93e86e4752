"""The folder of an evaluation: its settings, its answers as they come, and at the end its results.

settings.json    what decides the answers; a folder with others is not gone on with
samples.jsonl    every answer, as it was made
gsm8k.jsonl      one line a problem, as `tools/score.py` reads them
results.json     settings, speed, and by scorer the counts, intervals and a record of each answer
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lift_ds.evaluation.score_file import summarize
from lift_ds.text_files import load_json, read_text

from .run import TaskProgress

RESULTS_VERSION, RESULTS_FILE = 1, "results.json"


def open_folder(folder: Path, settings: dict[str, Any]) -> None:
    """Makes the folder of an evaluation; a ValueError where it holds something else, or says what differs."""
    path = folder / "settings.json"
    settings = json.loads(json.dumps(settings))
    if path.is_file():
        try:
            recorded = load_json(read_text(path))
        except ValueError as error:
            raise ValueError(f"{path}: cannot be read: {error}; remove the folder.") from error
        different = sorted(_differences(recorded, settings))
        if different:
            raise ValueError(
                f"{folder} holds an evaluation with other settings: {', '.join(different[:6])}; name another --output."
            )
        return
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} holds something that is no evaluation; choose another --output.")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, settings)


def _differences(first: Any, second: Any, prefix: str = "") -> list[str]:
    if isinstance(first, dict) and isinstance(second, dict):
        names = sorted(set(first) | set(second))
        return [
            difference
            for name in names
            for difference in _differences(first.get(name), second.get(name), f"{prefix}.{name}" if prefix else name)
        ]
    return [] if first == second else [f"{prefix} ({first!r:.40} there, {second!r:.40} now)"]


def write_json(path: Path, content: Any) -> None:
    """Writes a file as a whole or not at all."""
    part = path.with_name(f"{path.name}.part")
    part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    os.replace(part, path)


def task_file(task: str) -> str:
    """Name of the file with a task's answers."""
    return f"{task.replace(':', '-').replace('/', '-')}.jsonl"


def write_results(
    folder: Path, settings: dict[str, Any], environment: dict[str, Any], done: Sequence[TaskProgress]
) -> dict[str, Any]:
    """Writes the answers of each task, all of them done, and `results.json`, and returns what that holds.

    The environment is what decides the speed: devices, ranks, versions.
    """
    tasks = {}
    for progress in done:
        name, rows = progress.plan.name, progress.rows()
        lines = (
            {"question": problem.question, "generation": list(generations), "ground_truth": problem.ground_truth}
            | ({} if problem.entry_point is None else {"entry_point": problem.entry_point})
            | {"where": problem.where}
            for problem, generations in ((row.problem, row.generations) for row in rows)
        )
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        (folder / task_file(name)).write_text(text, encoding="utf-8")
        scores = {scorer: summarize(rows, progress.scores(scorer), name, scorer) for scorer in progress.plan.scorers}
        tasks[name] = {"generation": generation_figures(progress), "scores": scores}
    results = {"version": RESULTS_VERSION, "settings": settings, "environment": environment, "tasks": tasks}
    write_json(folder / RESULTS_FILE, results)
    return results


def generation_figures(progress: TaskProgress) -> dict[str, float]:
    """Cost of the answers: forwards and tokens by answer, denoised tokens a forward and a second, what was cut."""
    answers = [sample.answer for sample in progress.samples.values()]
    forwards, denoised = sum(answer.num_forwards for answer in answers), sum(answer.num_denoised for answer in answers)
    seconds = sum(sample.seconds for sample in progress.samples.values())
    return {
        "samples": len(answers),
        "forwards_per_sample": forwards / len(answers),
        "tokens_per_forward": denoised / forwards,
        "tokens_per_second": denoised / seconds,
        "answer_tokens_per_sample": sum(answer.num_tokens for answer in answers) / len(answers),
        "truncated": sum(not answer.is_ended for answer in answers),
        "seconds": seconds,
    }
