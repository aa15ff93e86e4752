"""Methods of fine-tuning against each other, by task, stratum, decoding and seed, from one base.

    python benchmarks/quality/quality.py
    python benchmarks/quality/quality.py --tasks sudoku --methods vanilla LIFT-3 --seeds 1 2 --json quality.json

What is compared stands in `plan.yaml`, which was committed before the first run. First every method finds its learning
rate on one seed; then cells run, seed by seed, each through the trainer's own command, and are asked the same items
under every decoding. A cell that has a file in `--results` is not run again, and what is there is shown at any time:
means over the seeds, and differences from the first method over the seeds that both have, with intervals over seeds and
items.

`--device cuda --budget 8` runs on one GPU as many cells as begin within so many minutes. `--quick` is a smoke test and
never quoted.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
sys.path.insert(0, str(HERE.parent))
from compared import bootstrap, holm, solved_of  # noqa: E402
from controls import RECIPE, commit, identity  # noqa: E402

from lift_ds.evaluation.asking.solve import held_out_items  # noqa: E402

Plan = dict[str, Any]
Result = dict[str, Any]
QUICK: Plan = {
    "tasks": {"sudoku": {"steps": 1, "gen_length": 24, "stratum": "blanks"}},
    "rows": 200,
    "heldout_rows": 6,
    "seeds": [1],
    "learning_rates": [1.5e-3],
    "items": 8,
    "decodings": {"four": {"tokens": 4}, "one": {"tokens": 12}},
}


@dataclass(frozen=True)
class Cell:
    """A run: a method learns a task with one seed and learning rate, and is asked some items."""

    task: str
    method: str
    seed: int
    lr: float
    is_grid: bool

    @property
    def path(self) -> str:
        """Its file in the folder of results."""
        name = self.method.replace(",", "").replace(" ", "_")
        return f"{self.task}/{name}-{self.seed}" + (f"-lr{self.lr:g}" if self.is_grid else "") + ".json"


def overrides_of(plan: Plan, cell: Cell) -> list[str]:
    """Settings of a cell's run over the recipe of `make train`."""
    task, more = plan["tasks"][cell.task], plan["more_work"].get(cell.method, {})
    length = task["gen_length"]
    settings = {
        "data.path": f"builtin:{cell.task}",
        "data.builtin_rows": plan["rows"],
        "data.pad_to_multiple": length,
        "optim.steps": round(task["steps"] * more.get("steps", 1)),
        "optim.lr": cell.lr,
        "eval.every": 50,
        "eval.rows": plan["heldout_rows"],
        "eval.solve_items": 0,
        "eval.watch_every": 0,
        "checkpoint.save_every": 0,
        "seed": cell.seed,
        **plan["methods"][more.get("method", cell.method)],
    }
    return [f"{key}={value}" for key, value in settings.items()]


def asked_of(plan: Plan, cell: Cell) -> dict[str, Any]:
    """What a cell's model is asked."""
    asked = plan["grid"] if cell.is_grid else plan
    decodings = {"one": plan["decodings"]["one"]} if cell.is_grid else plan["decodings"]
    return {
        "task": cell.task,
        "gen_length": plan["tasks"][cell.task]["gen_length"],
        "items": min(asked["items"], plan["items"]),
        "items_seed": asked["items_seed"],
        "decodings": decodings,
    }


def launch(num_ranks: int, *words: str | Path) -> None:
    """A command on the ranks of this machine.

    Raises:
        SystemExit: It failed; its last words are said.
    """
    launcher = ["deepspeed", "--num_gpus", str(num_ranks)] if num_ranks > 1 else [sys.executable]
    command = [*launcher, *map(str, words)]
    done = subprocess.run(command, cwd=REPOSITORY, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode:
        sys.exit(done.stdout[-4000:])


def run_cell(plan: Plan, cell: Cell, results: Path, num_ranks: int) -> Result:
    """A cell's figures, from its file where it has been run.

    Raises:
        SystemExit: The file is of another base, recipe, plan or device.
    """
    path = results / cell.path
    ours = identity(overrides_of(plan, cell)) | {"asked": asked_of(plan, cell), "ranks": num_ranks}
    if path.is_file():
        result: Result = json.loads(path.read_text())
        if result["identity"] != json.loads(json.dumps(ours)):
            sys.exit(f"{path}: of {result['identity']}, not {ours}; remove it or name another folder.")
        return result
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run, asked, answers = folder / "run", folder / "asked.json", folder / "answers.json"
        settings = [*overrides_of(plan, cell), f"output={run}"]
        launch(num_ranks, "launchers/train.py", "--deepspeed", "ds_configs/zero3.json", "--config", RECIPE, *settings)
        records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        asked.write_text(json.dumps(asked_of(plan, cell)))
        launch(num_ranks, HERE / "answers.py", run / "export", asked, answers)
        found = json.loads(answers.read_text())
    steps = [each for each in records if each["kind"] == "step"]
    result = {
        "identity": ours,
        "commit": commit(),
        "seconds": time.perf_counter() - began,
        "train_seconds": sum(each["seconds"] for each in steps),
        "train_tokens": sum(each["num_tokens"] for each in steps),
        "heldout": [{"step": each["step"], "mean": each["mean"]} for each in records if each["kind"] == "heldout"],
        "heldout_by_level_and_frequency": [
            each["by_level_and_frequency"] for each in records if each["kind"] == "heldout"
        ][-1],
        "answers": found,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"{cell.path}: {rate(result, 'one'):.1%} in {result['seconds']:.0f} s", file=sys.stderr, flush=True)
    return result


def rate(result: Result, decoding: str) -> float:
    """Share of the items that are solved under a decoding."""
    solved = result["answers"][decoding]["solved"]
    return float(solved.count("1") / len(solved))


def grid_cells(plan: Plan, task: str, method: str) -> list[Cell]:
    """The cells that find a method's learning rate; none where there is one rate."""
    rates = plan["learning_rates"]
    return [Cell(task, method, plan["grid"]["seed"], lr, True) for lr in rates] if len(rates) > 1 else []


def best_rate(plan: Plan, task: str, method: str, results: Path) -> float | None:
    """The learning rate that solved most on the grid's seed, the smaller of equals; `None` until all have run."""
    if len(plan["learning_rates"]) == 1:
        return float(plan["learning_rates"][0])
    method = plan["more_work"].get(method, {}).get("method", method)
    cells = grid_cells(plan, task, method)
    if not all((results / cell.path).is_file() for cell in cells):
        return None
    rates = {cell.lr: rate(json.loads((results / cell.path).read_text()), "one") for cell in cells}
    return max(sorted(rates), key=lambda lr: rates[lr])


def cells_of(plan: Plan, tasks: list[str], methods: list[str], seeds: list[int], results: Path) -> Iterator[Cell]:
    """Cells in the order in which they run: the grids, then all methods of a task with one seed, seed by seed."""
    for task in tasks:
        for method in methods:
            if method in plan["methods"]:
                yield from grid_cells(plan, task, method)
    for seed in seeds:
        for task in tasks:
            for method in methods:
                lr = best_rate(plan, task, method, results)
                if lr is not None:
                    yield Cell(task, method, seed, lr, False)


def print_task(plan: Plan, task: str, found: dict[str, dict[int, Result]]) -> dict[str, float]:
    """A task's table and its figures."""
    first, decodings = next(iter(plan["methods"])), list(plan["decodings"])
    tests, compared = plan["tests"], {}
    figures: dict[str, float] = {}
    for method, runs in found.items():
        seeds = sorted(runs.keys() & found.get(first, {}).keys())
        if method != first and seeds:
            pair = [solved_of([of[seed]["answers"]["one"]["solved"] for seed in seeds]) for of in (found[first], runs)]
            compared[method] = bootstrap(pair[0], pair[1], tests["resamples"], tests["level"])
    corrected = holm({method: each.p for method, each in compared.items()})
    heads = ["lr", "seeds", *decodings, f"less {first} (95 %)", "p, Holm", "held-out loss"]
    print(f"\n{task}, % solved of {plan['items']} items\n\n| | {' | '.join(heads)} |\n| --- |{' --- |' * len(heads)}")
    for method, runs in found.items():
        if not runs:
            continue
        rates = [100 * sum(rate(run, name) for run in runs.values()) / len(runs) for name in decodings]
        loss = sum(run["heldout"][-1]["mean"] for run in runs.values()) / len(runs)
        lr = next(iter(runs.values()))["lr"]
        cells = [f"{lr:g}", str(len(runs)), *(f"{each:.1f}" for each in rates)]
        figures |= {f"{task}/{method}/{name}": each for name, each in zip(decodings, rates, strict=True)}
        figures |= {f"{task}/{method}/heldout": loss, f"{task}/{method}/seeds": float(len(runs))}
        if method in compared:
            each = compared[method]
            cells += [f"{100 * each.mean:+.1f} ({100 * each.low:+.1f} to {100 * each.high:+.1f})"]
            cells += [f"{corrected[method]:.3f}"]
            values = {"difference": each.mean, "low": each.low, "high": each.high}
            figures |= {f"{task}/{method}/{name}": 100 * value for name, value in values.items()}
            figures[f"{task}/{method}/p_holm"] = corrected[method]
        else:
            cells += ["", ""]
        print(f"| {method} | {' | '.join(cells)} | {loss:.4f} |")
    return figures


def print_strata(plan: Plan, task: str, found: dict[str, dict[int, Result]]) -> None:
    """How much of each stratum is solved at one token a forward."""
    items, name = held_out_items(plan["items"], plan["items_seed"], task), plan["tasks"][task]["stratum"]
    groups: dict[int, list[int]] = {}
    for number, item in enumerate(items):
        groups.setdefault(int(item.strata[name]), []).append(number)
    strata = sorted(groups)
    heads = [f"{stratum} ({len(groups[stratum])})" for stratum in strata]
    print(f"\n| {name} (items) | {' | '.join(heads)} |\n| --- |{' --- |' * len(heads)}")
    for method, runs in found.items():
        if runs:
            solved = solved_of([run["answers"]["one"]["solved"] for run in runs.values()]).mean(0)
            print(f"| {method} | {' | '.join(f'{100 * solved[groups[each]].mean():.1f}' for each in strata)} |")


def main() -> None:
    """Runs the cells that are missing and prints all tables."""
    plan: Plan = yaml.safe_load((HERE / "plan.yaml").read_text())
    methods = [*plan["methods"], *plan["more_work"]]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=list(plan["tasks"]), default=list(plan["tasks"]))
    parser.add_argument("--methods", nargs="+", choices=methods, default=methods)
    parser.add_argument("--seeds", nargs="+", type=int, choices=plan["seeds"], default=plan["seeds"])
    parser.add_argument("--results", type=Path, default=HERE / "results", help="a file for each finished cell")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="two ranks of a CPU, or one GPU")
    parser.add_argument("--budget", type=float, help="minutes after which no cell begins")
    parser.add_argument("--show", action="store_true", help="run nothing; tables of what is there")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--quick", action="store_true", help="a smoke test, never quoted")
    arguments = parser.parse_args()
    tasks, methods, seeds, results = arguments.tasks, arguments.methods, arguments.seeds, arguments.results
    if arguments.quick:
        plan |= QUICK
        tasks, methods, seeds, results = ["sudoku"], ["vanilla", "PAPL"], [1], Path(tempfile.mkdtemp())
    if arguments.device == "cuda":
        results = results / "cuda"
    ends = time.monotonic() + 60 * arguments.budget if arguments.budget else float("inf")
    found: dict[str, dict[str, dict[int, Result]]] = {task: {method: {} for method in methods} for task in tasks}
    for cell in cells_of(plan, tasks, methods, seeds, results):
        if not (results / cell.path).is_file() and (arguments.show or time.monotonic() > ends):
            continue
        result = run_cell(plan, cell, results, 1 if arguments.device == "cuda" or arguments.quick else 2)
        if not cell.is_grid:
            found[cell.task][cell.method][cell.seed] = result | {"lr": cell.lr}
    figures: dict[str, Any] = {}
    for task, of_task in found.items():
        figures |= print_task(plan, task, of_task)
        print_strata(plan, task, of_task)
    if arguments.quick:
        shutil.rmtree(results)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures | {"quick": arguments.quick}, indent=1) + "\n")


if __name__ == "__main__":
    main()
