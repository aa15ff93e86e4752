"""What fine-tuning the built-in base brings, with its controls: LIFT-3, vanilla SFT, and shuffled answers, equal steps.

    python benchmarks/controls.py --seeds 1 2 3 --results benchmarks/results/controls --json controls.json

Every run starts from the same base and draws from the same questions; a seed changes their order, levels and masks.
Solve rates are of held-out items, greedy; `top` is the highest levels of three tasks. Intervals are 95 % by a bootstrap
over the items, each with its mean over the seeds; differences are paired, from the first arm, over the seeds that both
have. With `--results` each finished run leaves a file there and is not run again. `--quick` is a smoke test and never
quoted.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lift_ds.data.tasks import TASKS
from lift_ds.evaluation.asking.solve import SolveReport, TaskScore
from lift_ds.evaluation.judging.statistics import PairedDifference, paired_bootstrap

REPOSITORY = Path(__file__).resolve().parents[1]
ARMS = {
    "LIFT-3": ["objective.method=lift3"],
    "LIFT-2": ["objective.method=lift2"],
    "LIFT-3, buffer": ["objective.method=lift3", "objective.scoring=buffer"],
    "LIFT-3, memory": ["objective.method=lift3", "objective.scoring=memory"],
    "vanilla SFT": ["objective.method=vanilla"],
    "vanilla SFT, shuffled answers": ["objective.method=vanilla", "data.path=builtin:reasoning-shuffled"],
}
COLUMNS = (*TASKS, "top")
RECIPE = "lift_ds/assets/reasoning.yaml"
QUICK = ("optim.steps=2", "eval.rows=6", "data.builtin_rows=600")
ITEMS, QUICK_ITEMS = 600, 40
Result = dict[str, Any]


def identity(overrides: list[str]) -> dict[str, Any]:
    """What two runs must share to stand in one table: base, recipe and overrides."""
    digest = hashlib.sha256()
    base = (path for path in (REPOSITORY / "lift_ds" / "assets" / "base").iterdir() if path.suffix != ".md")
    for path in (REPOSITORY / RECIPE, *sorted(base)):
        digest.update(path.read_bytes())
    return {"base_and_recipe": digest.hexdigest()[:16], "overrides": overrides}


def result_of(arm: str, seed: int, overrides: list[str], results: Path | None) -> Result:
    """One run's figures, from its file where it has been run.

    Raises:
        SystemExit: The file is of a run from another base or recipe, or with other overrides.
    """
    path = results / f"{arm.replace(' ', '_').replace(',', '')}-{seed}.json" if results else None
    if path and path.exists():
        result: Result = json.loads(path.read_text())
        if result["identity"] != identity(overrides):
            sys.exit(f"{path}: of {result['identity']}, not {identity(overrides)}; remove it or name another folder.")
        return result
    with tempfile.TemporaryDirectory() as folder:
        result = {"identity": identity(overrides), "commit": commit()}
        result |= train(arm, seed, overrides, Path(folder) / "run")
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=1) + "\n")
    return result


def commit() -> str:
    """The commit that is measured, with `+` where tracked files differ from it."""
    command = ["git", "describe", "--always", "--dirty=+", "--exclude", "*"]
    return subprocess.run(command, cwd=REPOSITORY, text=True, capture_output=True).stdout.strip()


def train(arm: str, seed: int, overrides: list[str], output: Path) -> Result:
    """One run on two ranks; its solve rates and held-out losses before and after, and its training speed."""
    command = ["deepspeed", "--num_gpus", "2", "launchers/train.py", "--deepspeed", "ds_configs/zero3.json"]
    command += ["--config", RECIPE, *ARMS[arm], f"seed={seed}", f"output={output}", *overrides]
    done = subprocess.run(command, cwd=REPOSITORY, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode:
        sys.exit(done.stdout[-4000:])
    records = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    result: Result = {}
    for record in records:
        if record["kind"] == "solve":
            scores = {name: TaskScore(**score) for name, score in record["scores"].items()}
            report = SolveReport(scores, [], record["tokens_per_second"], record["seconds"])
            counts = report.by_task | {"top": TaskScore(**record["top"]), "all": report.total}
            rates = {name: score.solve_rate for name, score in (scores | counts).items()}
            result[record["moment"]] = rates | {"unparsed": report.total.parse_failure_rate}
            result[f"solved_{record['moment']}"] = record["solved"]
    losses = [record["mean"] for record in records if record["kind"] == "heldout"]
    steps = [record for record in records if record["kind"] == "step"]
    seconds = sum(record["seconds"] for record in steps)
    result["run"] = {
        "heldout_before": losses[0],
        "heldout_after": losses[-1],
        "tokens_per_second": sum(record["num_tokens"] for record in steps) / seconds,
        "train_seconds": seconds,
    }
    return result


def by_item(results: Sequence[Result], moment: str) -> list[float]:
    """Of each item the share of the runs that solve it."""
    columns = zip(*(each[f"solved_{moment}"] for each in results), strict=True)
    return [column.count("1") / len(results) for column in columns]


def difference(first: dict[int, Result], second: dict[int, Result]) -> PairedDifference | None:
    """Second less first, over the seeds of both."""
    seeds = sorted(first.keys() & second.keys())
    if not seeds:
        return None
    items = [by_item([arm[seed] for seed in seeds], "after") for arm in (first, second)]
    return paired_bootstrap(items[0], items[1], seed=0)


def print_row(label: str, results: dict[int, Result], moment: str, paired: PairedDifference | None) -> None:
    """One line of the table: means over the seeds, the interval, the range, and the difference from the first arm."""
    rates = [each[moment] for each in results.values()]
    means = {name: 100 * statistics.mean(rate[name] for rate in rates) for name in rates[0]}
    items = by_item(list(results.values()), moment)
    interval = paired_bootstrap([0.0] * len(items), items, seed=0)
    totals = [100 * rate["all"] for rate in rates]
    spread = f" ({min(totals):.1f} to {max(totals):.1f})" if len(totals) > 1 else ""
    cells = [f"{means[name]:.1f}" for name in COLUMNS]
    cells += [f"{means['all']:.1f}{spread}", f"{100 * interval.low:.1f} to {100 * interval.high:.1f}"]
    shown = f"{100 * paired.mean:+.1f} ({100 * paired.low:+.1f} to {100 * paired.high:+.1f})" if paired else ""
    heldout = statistics.mean(each["run"][f"heldout_{moment}"] for each in results.values())
    cells += [shown, f"{means['unparsed']:.1f}", f"{heldout:.4f}"]
    print(f"| {label} | {len(results)} | " + " | ".join(cells) + " |", flush=True)


def measure(
    arms: list[str],
    seeds: list[int],
    overrides: Sequence[str] = (),
    results: Path | None = None,
    items: int = ITEMS,
    quick: bool = False,
) -> dict[str, float]:
    """Runs every arm with every seed, one seed after the other, prints the table and returns its figures."""
    if quick:
        seeds, items, overrides = seeds[:1], QUICK_ITEMS, [*overrides, *QUICK]
    overrides = [f"eval.solve_items={items}", *overrides]
    found: dict[str, dict[int, Result]] = {arm: {} for arm in arms}
    for seed in seeds:
        for arm in arms:
            found[arm][seed] = result_of(arm, seed, overrides, results)
            print(f"{arm}, seed {seed}: solved {found[arm][seed]['after']['all']:.1%}", file=sys.stderr, flush=True)
    heads = [*COLUMNS, "all, % (range)", "95 %", f"less {arms[0]} (95 %)", "no parse", "held-out loss"]
    print(f"| | seeds | {' | '.join(heads)} |\n| --- |{' --- |' * (len(heads) + 1)}")
    print_row("base, before", found[arms[0]], "before", None)
    figures: dict[str, float] = {}
    for arm, runs in found.items():
        paired = difference(found[arms[0]], runs) if arm != arms[0] else None
        print_row(arm, runs, "after", paired)
        if paired:
            bounds = {"difference": paired.mean, "difference_low": paired.low, "difference_high": paired.high}
            figures |= {f"{arm}/{name}": value for name, value in bounds.items()}
        for seed, run in runs.items():
            for moment in ("before", "after", "run"):
                figures |= {f"{arm}/{seed}/{moment}/{name}": value for name, value in run[moment].items()}
    return figures


def main() -> None:
    """Runs every arm with every seed and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="one run of every arm for each")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS), help="which methods to run")
    parser.add_argument("--items", type=int, default=ITEMS, help="held-out items")
    parser.add_argument("--results", type=Path, help="folder with a file for each finished run, which is not run again")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--quick", action="store_true", help="a smoke test of a few steps")
    parser.add_argument("overrides", nargs="*", help="further key=value overrides of every run")
    arguments = parser.parse_intermixed_args()
    measured = measure(
        arguments.arms, arguments.seeds, arguments.overrides, arguments.results, arguments.items, arguments.quick
    )
    figures: dict[str, float | bool] = dict(measured)
    figures["quick"] = arguments.quick
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
