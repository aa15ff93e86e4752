"""What fine-tuning the built-in base brings, with its controls: LIFT-3, vanilla SFT, and shuffled answers, equal steps.

    python benchmarks/controls.py --seeds 1 2 3 --json controls.json

Every run starts from the same base and draws from the same questions; a seed changes their order, levels and masks.
Solve rates are of held-out items, greedy; `top` is the highest levels of three tasks. Where both exact scores and the
difficulty table's are known, the last column is the share of tokens that both choose over the last third of the run,
and by chance. `--quick` is a smoke test and never quoted.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from lift_ds.data.tasks import TASKS
from lift_ds.evaluation.asking.solve import SolveReport, TaskScore

REPOSITORY = Path(__file__).resolve().parents[1]
ARMS = {
    "LIFT-3": ["objective.method=lift3"],
    "LIFT-2": ["objective.method=lift2"],
    "LIFT-3, buffer": ["objective.method=lift3", "objective.scoring=buffer"],
    "LIFT-3, memory": ["objective.method=lift3", "objective.scoring=memory"],
    "LIFT-3, exact and compared": [
        "objective.method=lift3",
        "objective.scoring=buffer",
        "objective.refresh_share=1.0",
        "objective.warm_start_steps=0",
    ],
    "vanilla SFT": ["objective.method=vanilla"],
    "vanilla SFT, shuffled answers": ["objective.method=vanilla", "data.path=builtin:reasoning-shuffled"],
}
COLUMNS = (*TASKS, "top")
RECIPE = "lift_ds/assets/reasoning.yaml"


def train(arm: str, seed: int, overrides: list[str], folder: Path) -> dict[str, dict[str, float]]:
    """One run on two ranks; its solve rates and held-out losses before and after, and its training speed."""
    output = folder / f"{arm.replace(' ', '_').replace(',', '')}-{seed}"
    command = ["deepspeed", "--num_gpus", "2", "launchers/train.py", "--deepspeed", "ds_configs/zero3.json"]
    command += ["--config", RECIPE, *ARMS[arm], f"seed={seed}", f"output={output}", *overrides]
    done = subprocess.run(command, cwd=REPOSITORY, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode:
        sys.exit(done.stdout[-4000:])
    records = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    results: dict[str, dict[str, float]] = {}
    for record in records:
        if record["kind"] == "solve":
            scores = {name: TaskScore(**score) for name, score in record["scores"].items()}
            report = SolveReport(scores, record["tokens_per_second"], record["seconds"])
            counts = report.by_task | {"top": TaskScore(**record["top"]), "all": report.total}
            rates = {name: score.solve_rate for name, score in (scores | counts).items()}
            results[record["moment"]] = rates | {"unparsed": report.total.parse_failure_rate}
    losses = [record["mean"] for record in records if record["kind"] == "heldout"]
    steps = [record for record in records if record["kind"] == "step"]
    seconds = sum(record["seconds"] for record in steps)
    compared = [step for step in steps[-len(steps) // 3 :] if step["scoring_agreement"] is not None]
    if compared:
        for name in ("scoring_agreement", "scoring_chance"):
            results.setdefault("scoring", {})[name] = statistics.mean(step[name] for step in compared)
    results["run"] = {
        "heldout_before": losses[0],
        "heldout_after": losses[-1],
        "tokens_per_second": sum(record["num_tokens"] for record in steps) / seconds,
        "train_seconds": seconds,
    }
    return results


def main() -> None:
    """Runs every arm with every seed and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="one run of every arm for each")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS), help="which methods to run")
    parser.add_argument("--items", type=int, default=600, help="held-out items")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--quick", action="store_true", help="a smoke test of a few steps")
    parser.add_argument("overrides", nargs="*", help="further key=value overrides of every run")
    arguments = parser.parse_intermixed_args()
    overrides = [f"eval.solve_items={arguments.items}", *arguments.overrides]
    if arguments.quick:
        arguments.seeds = arguments.seeds[:1]
        overrides += ["optim.steps=2", "eval.solve_items=40", "eval.rows=6", "data.builtin_rows=600"]
    figures: dict[str, float | bool] = {"quick": arguments.quick}
    heads = "".join(f"{name:>12}" for name in COLUMNS)
    print(f"{'':32}{heads}{'all':>16}{'no parse':>10}{'held-out':>10}{'tok/s':>8}{'agree':>16}")
    with tempfile.TemporaryDirectory() as folder:
        for index, arm in enumerate(arguments.arms):
            runs = [train(arm, seed, overrides, Path(folder)) for seed in arguments.seeds]
            if index == 0:
                print_row(
                    "base, before",
                    [run["before"] for run in runs],
                    [run["run"]["heldout_before"] for run in runs],
                    0,
                    [],
                )
            after = [run["after"] for run in runs]
            speed = statistics.mean(run["run"]["tokens_per_second"] for run in runs)
            scored = [run["scoring"] for run in runs if "scoring" in run]
            print_row(arm, after, [run["run"]["heldout_after"] for run in runs], speed, scored)
            for run, seed in zip(runs, arguments.seeds, strict=True):
                for moment, values in run.items():
                    figures |= {f"{arm}/{seed}/{moment}/{name}": value for name, value in values.items()}
            if arguments.json:
                arguments.json.write_text(json.dumps(figures, indent=1))


def print_row(
    label: str,
    rates: list[dict[str, float]],
    heldout: list[float],
    speed: float,
    scored: list[dict[str, float]],
) -> None:
    """One line: means over the seeds, and the range of the total."""
    means = {name: 100 * statistics.mean(rate[name] for rate in rates) for name in rates[0]}
    totals = [100 * rate["all"] for rate in rates]
    spread = f"{means['all']:.1f} ({min(totals):.0f}-{max(totals):.0f})"
    tasks = "".join(f"{means[name]:>10.1f} %" for name in COLUMNS)
    tail = f"{spread:>16}{means['unparsed']:>8.1f} %{statistics.mean(heldout):>10.3f}{speed:>8,.0f}"
    if scored:
        agreement, chance = (
            statistics.mean(result[f"scoring_{name}"] for result in scored) for name in ("agreement", "chance")
        )
        tail += f"{f'{agreement:.2f} ({chance:.2f})':>16}"
    print(f"{label:32}{tasks}{tail}", flush=True)


if __name__ == "__main__":
    main()
