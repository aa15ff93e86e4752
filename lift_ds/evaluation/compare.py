"""Two evaluations of the same problems, item by item: the figures, and one HTML page with the answers that flipped."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lift_ds.text_files import load_json, read_text

from .asking.results import RESULTS_FILE, task_file
from .judging.statistics import PairedDifference, mcnemar, paired_bootstrap
from .page_frame import render

PAGE = """{% extends "frame.html" %}{% block body %}
<h1>{{ title }}</h1>
<div class="scroll" tabindex="0"><table>
<thead><tr><th>task<th class="text">scorer<th>problems<th>{{ first }}<th>{{ second }}<th>difference<th>95 % interval
<th>only {{ first }}<th>only {{ second }}<th>McNemar p</tr></thead>
{% for task in tasks %}
<tr><td>{{ task.task }}<td class="text">{{ task.scorer }}<td>{{ "{:,}".format(task.num_problems) }}
<td>{{ "{:.1%}".format(task.solved[0]) }}<td>{{ "{:.1%}".format(task.solved[1]) }}
<td>{{ "{:+.1%}".format(task.difference.mean) }}
<td>{{ "{:+.1%} to {:+.1%}".format(task.difference.low, task.difference.high) }}
<td>{{ task.only_first }}<td>{{ task.only_second }}
<td>{{ "" if task.p_value is none else "{:.3g}".format(task.p_value) }}</tr>
{% endfor %}</table></div>
{% for task in tasks %}
<h2>{{ task.task }}: {{ task.flips | length }} of {{ task.num_problems }} flipped</h2>
{% for flip in task.flips %}
<details><summary>{{ first if flip.solved[0] > flip.solved[1] else second }} &nbsp; {{ flip.question[:160] }}</summary>
<pre class="boxed">{{ shown(flip.question) }}</pre>
<p>right: <code>{{ shown(flip.ground_truth) }}</code> ({{ flip.where }})</p>
<div class="pair">
{% for share in flip.solved %}
<div><b>{{ (first, second)[loop.index0] }}: {{ "{:.0%}".format(share) }} right</b>
<pre class="boxed {{ "right" if share > 0 else "wrong" }}">{{ shown(flip.generations[loop.index0]) }}</pre></div>
{% endfor %}
</div></details>
{% endfor %}
{% endfor %}
{% endblock %}
"""
LONGEST = 20_000  # characters of a text that the page shows


@dataclass(frozen=True)
class Flip:
    """A problem of which two models solve different shares; of their answers a right one each, if there is any."""

    where: str
    question: str
    ground_truth: Any
    solved: tuple[float, float]
    generations: tuple[str, str]


@dataclass(frozen=True)
class TaskComparison:
    """Two models on one task: the shares that they solve, and what differs.

    `p_value` is of McNemar's exact test on the problems that only one solves; `None` where some have several answers.
    The difference is second less first, with the paired bootstrap's 95 % interval.
    """

    task: str
    scorer: str
    num_problems: int
    solved: tuple[float, float]
    only_first: int
    only_second: int
    p_value: float | None
    difference: PairedDifference
    flips: list[Flip]


def compare(first: Path, second: Path, scorer: str | None, seed: int) -> list[TaskComparison]:
    """Compares the tasks that two evaluation folders have in common.

    The scorer is by default `strict` where both have it, else what they have; `seed` is the bootstrap's.

    Raises:
        ValueError: A folder holds no results, or they have no task, or not the same problems, or no scorer in common.
    """
    results = [read_results(folder) for folder in (first, second)]
    common = [task for task in results[0]["tasks"] if task in results[1]["tasks"]]
    if not common:
        answered = "; ".join(
            f"{folder} has {', '.join(result['tasks'])}"
            for folder, result in zip((first, second), results, strict=True)
        )
        raise ValueError(f"no task in common: {answered}.")
    return [_compare_task(task, (first, second), results, scorer, seed) for task in common]


def tasks_alone(first: Path, second: Path) -> list[str]:
    """Tasks that only one of two evaluations has; see `compare` for errors."""
    tasks = [read_results(folder)["tasks"] for folder in (first, second)]
    return sorted(tasks[0].keys() ^ tasks[1].keys())


def read_results(folder: Path) -> dict[str, Any]:
    """What `results.json` of a folder holds; a ValueError where there is none, or it is none."""
    path = folder / RESULTS_FILE
    try:
        results: dict[str, Any] = load_json(read_text(path))
        assert isinstance(results["tasks"], dict)
    except (OSError, ValueError, KeyError, TypeError, AssertionError) as error:
        raise ValueError(f"{path}: no results of an evaluation ({error}); evaluate first.") from error
    return results


def _compare_task(
    task: str, folders: tuple[Path, Path], results: Sequence[dict[str, Any]], scorer: str | None, seed: int
) -> TaskComparison:
    both = [result["tasks"][task]["scores"] for result in results]
    shared = [name for name in ("strict", "reference") if all(name in scores for scores in both)]
    if not shared or scorer not in (None, *shared):
        raise ValueError(
            f"{task}: scored by {' and by '.join(', '.join(scores) for scores in both)}; choose a common one."
        )
    chosen = scorer or shared[0]
    versions = [scores[chosen]["scorer_version"] for scores in both]
    if versions[0] != versions[1]:
        raise ValueError(
            f"{task}: scorer {chosen} of versions {versions[0]} and {versions[1]}; the command that made the older "
            "results, given again, scores them anew."
        )
    rows = [read_rows(folder / task_file(task)) for folder in folders]
    others = [number for number, pair in enumerate(zip(*rows, strict=False), start=1) if not is_same_problem(*pair)]
    if others or len(rows[0]) != len(rows[1]):
        problem = f"problem {others[0]} is another" if others else f"{len(rows[0])} and {len(rows[1])} of them"
        raise ValueError(
            f"{task}: {folders[0]} and {folders[1]} answered different problems ({problem}); evaluate on the same."
        )
    solved = [[[score["is_solved"] for score in item["scores"]] for item in scores[chosen]["items"]] for scores in both]
    shares = [[sum(of_item) / len(of_item) for of_item in of_folder] for of_folder in solved]
    pairs = list(zip(*shares, strict=True))
    is_single = all(len(row["generation"]) == 1 for task_rows in rows for row in task_rows)
    only_first, only_second = sum(a > b for a, b in pairs), sum(b > a for a, b in pairs)
    flips = [
        Flip(one["where"], one["question"], one["ground_truth"], pair, (shown_answer(one, a), shown_answer(two, b)))
        for one, two, pair, a, b in zip(*rows, pairs, *solved, strict=True)
        if pair[0] != pair[1]
    ]
    return TaskComparison(
        task=task,
        scorer=chosen,
        num_problems=len(pairs),
        solved=(sum(shares[0]) / len(pairs), sum(shares[1]) / len(pairs)),
        only_first=only_first,
        only_second=only_second,
        p_value=mcnemar(only_first, only_second) if is_single else None,
        difference=paired_bootstrap(shares[0], shares[1], seed),
        flips=flips,
    )


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The answers of a task; a ValueError where the file is missing or broken."""
    try:
        return [json.loads(line) for line in path.read_bytes().splitlines()]  # a text's also end at U+2028 and others
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read: {error}; evaluate again.") from error


def is_same_problem(one: dict[str, Any], two: dict[str, Any]) -> bool:
    """Whether two rows are of the same problem; protocols may pose a part of it only, such as a docstring."""
    first, second = one["question"].strip(), two["question"].strip()
    return one["ground_truth"] == two["ground_truth"] and (first in second or second in first)


def shown_answer(row: dict[str, Any], is_solved: Sequence[bool]) -> str:
    """The first right answer of a problem, else the first."""
    return str(row["generation"][is_solved.index(True) if any(is_solved) else 0])


def comparison_page(labels: tuple[str, str], comparisons: Sequence[TaskComparison]) -> str:
    """The page of two models, by what to call them, and the tasks that they have in common."""
    first, second = labels
    return render(PAGE, f"{first} and {second}", first=first, second=second, tasks=comparisons, shown=shown)


def shown(value: Any) -> str:
    """A text, or another value as JSON, cut where it is very long."""
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} … ({len(text):,} characters)"
