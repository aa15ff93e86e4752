"""What the difficulty memory knows, and what it costs.

    python benchmarks/memory.py --json memory.json
    python benchmarks/memory.py --part planted --json planted.json
    python benchmarks/memory.py --part cost --json cost.json
    python benchmarks/memory.py --part learning --results benchmarks/results/controls --json learning.json
    python benchmarks/memory.py --model FOLDER --data rows.jsonl --rows 300 --passes 6 --batch 16

`kappa`: a run of LIFT-3 with exact scores on some rows, several times over, is recorded; then the memory goes through
the same steps with a budget of scored documents, and chooses among the same tokens as many as the run did:

    kappa = (sum |A and E| - sum k^2 / |S|) / (sum k - sum k^2 / |S|)        A its choice, E the exact one

over easy and hard documents. What is scored counts as chosen exactly; `unscored` is over the others. What the memory
would have learned from a training pass that it chose itself is what the recorded pass shows of the token, or, where
that pass did not learn it, the scoring pass. `table` is `scoring=buffer` with an eighth of the documents refreshed.

`planted`: some rows get the answer of another row of their level; a run with the memory learns them all, and the report
of the hardest rows is asked for as many as were planted.

`cost`: seconds of a step of `make train`'s recipe on two ranks over those of vanilla SFT on the same rows, medians of
runs in turn.

`learning`: what `make train`'s recipe solves after equal steps with exact scores, the memory at a quarter, the table,
and vanilla SFT, as `controls.py` measures it; runs that have a file in `--results` are not run again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import controls
import numpy as np
import torch
from memory_replay import CHOSEN, REFRESHED, Agreement, Recorded, ThreadLinks, record, replay, replay_table

from lift_ds.data.tasks import MIXTURES
from lift_ds.evaluation.hardest import rank_rows
from lift_ds.ranks.background import NoLinks, ThreadRanks
from lift_ds.ranks.running import leave
from lift_ds.storage.manifest import step_of
from lift_ds.training.memory import DifficultyMemory
from lift_ds.training.memory_files import read_rows

REPOSITORY = Path(__file__).resolve().parents[1]
BUDGETS = {"zero": 0.0, "eighth": 0.125, "quarter": 0.25, "half": 0.5}
RANKS = (1, 2, 4)


def traffic(steps: list[Recorded], sizes: tuple[int, int, int], world_size: int) -> dict[str, float]:
    """Bytes that ranks hold and send with a budget of a quarter; `sizes` as `replay` has them."""
    links = ThreadLinks(world_size)

    def of_rank(rank: int) -> DifficultyMemory:
        ranks = ThreadRanks(links.of(rank), rank, world_size, threading.Event())
        return replay(steps, 0.25, *sizes, ranks)[1]

    with ThreadPoolExecutor(world_size) as pool:
        memories = list(pool.map(of_rank, range(world_size)))
    num_tokens = sum(int(document.response_mask.sum()) for step in steps for document in step.documents)
    return {
        f"memory_bytes_per_token_{world_size}": sum(each.rows.num_bytes for each in memories)
        / sum(each.rows.num_tokens for each in memories),
        f"memory_traffic_bytes_per_token_{world_size}": sum(each.ranks.bytes_moved for each in memories) / num_tokens,
        f"memory_largest_rank_bytes_{world_size}": max(each.rows.num_bytes for each in memories),
    }


def measure_kappa(arguments: argparse.Namespace) -> dict[str, float]:
    """Records, replays, prints the table."""
    steps = record(arguments)
    vocab_size = 1 + max(int(document.ids.max()) for step in steps for document in step.documents)
    sizes = (arguments.rows, arguments.passes, vocab_size)
    alone = ThreadRanks(NoLinks(), 0, 1, threading.Event())
    arms: dict[str, Agreement] = {"table": replay_table(steps, *sizes)}
    arms |= {name: replay(steps, budget, *sizes, alone)[0] for name, budget in BUDGETS.items()}
    passes = sorted({1, 2, 3, 5, 8, arguments.passes} & set(range(1, arguments.passes + 1)))
    print("\n| kappa after passes | " + " | ".join(map(str, passes)) + " | easy | hard | unscored |")
    print("| --- |" + " --- |" * (len(passes) + 3))
    last, figures = arguments.passes - 1, dict[str, float]()
    for name, agreement in arms.items():
        by_component = [agreement.kappa(last, (component,)) for component in CHOSEN]
        unscored = agreement.kappa(last, only_unscored=True)
        values = [*(agreement.kappa(number - 1) for number in passes), *by_component, unscored]
        title = f"table, {REFRESHED} scored" if name == "table" else f"memory, {BUDGETS[name]} scored"
        print(f"| {title} | " + " | ".join(f"{value:.3f}" for value in values) + " |")
        key = "kappa_table" if name == "table" else f"kappa_memory_{name}"
        figures |= {key: agreement.kappa(last), f"{key}_unscored": unscored}
    figures["kappa_table_acting"] = figures["kappa_table"]
    figures["kappa_table"] = figures.pop("kappa_table_unscored")  # of its own choices, without what is scored
    for world_size in RANKS:
        figures |= traffic(steps, sizes, world_size)
    figures["memory_bytes_per_token"] = figures["memory_bytes_per_token_1"]
    figures["memory_traffic_bytes_per_token"] = figures["memory_traffic_bytes_per_token_2"]
    print("\n| ranks | bytes a token held | bytes a token sent | largest rank, KiB |\n| --- | --- | --- | --- |")
    for size in RANKS:
        held, sent = (figures[f"memory_{name}_per_token_{size}"] for name in ("bytes", "traffic_bytes"))
        print(f"| {size} | {held:.2f} | {sent:.1f} | {figures[f'memory_largest_rank_bytes_{size}'] / 1024:.0f} |")
    return figures


def launch_run(output: Path, overrides: list[str]) -> None:
    """A run of `make train`'s recipe on two ranks, without measurements."""
    command = ["deepspeed", "--num_gpus", "2", "launchers/train.py", "--deepspeed", "ds_configs/zero3.json"]
    command += ["--config", "lift_ds/assets/reasoning.yaml", f"output={output}", *overrides]
    command += ["eval.rows=0", "eval.every=0", "eval.solve_items=0", "eval.watch_every=0"]
    done = subprocess.run(command, cwd=REPOSITORY, text=True, capture_output=True)
    if done.returncode:
        sys.exit(done.stdout[-4000:] + done.stderr[-4000:])


def plant(path: Path, num_rows: int, num_planted: int) -> set[int]:
    """Writes rows of the built-in tasks, some with the answer of another row of their level; returns which."""
    mixture, chance = MIXTURES["reasoning"], np.random.default_rng(5)
    items = [mixture.item(0, "train", row) for row in range(num_rows)]
    answers, planted = [item.response for item in items], set[int]()
    for row in chance.permutation(num_rows).tolist():
        item = items[row]
        others = [other for other in items if (other.task, other.level) == (item.task, item.level)]
        other = others[chance.integers(len(others))]
        if len(planted) < num_planted and other.response.split("<answer>")[1] != item.response.split("<answer>")[1]:
            answers[row] = other.response
            planted.add(row)
    lines = (json.dumps({"prompt": i.question, "response": a}) + "\n" for i, a in zip(items, answers, strict=True))
    path.write_text("".join(lines))
    return planted


def measure_planted(arguments: argparse.Namespace) -> dict[str, float]:
    """Trains on rows of which some are wrong, and asks the memory for the hardest after each of some passes."""
    num_planted = max(1, arguments.rows // 40)
    with tempfile.TemporaryDirectory() as folder:
        rows, output = Path(folder) / "rows.jsonl", Path(folder) / "run"
        planted = plant(rows, arguments.rows, num_planted)
        a_pass = arguments.rows // arguments.batch
        launch_run(
            output,
            [
                *(f"data.path={rows}", f"optim.steps={a_pass * arguments.passes}", "objective.scoring=memory"),
                *(f"optim.global_batch={arguments.batch}", f"checkpoint.save_every={a_pass}", "checkpoint.keep=99"),
            ],
        )
        figures: dict[str, float] = {}
        print(f"\n| passes | planted among the {num_planted} hardest |\n| --- | --- |")
        for checkpoint in sorted((output / "checkpoints").glob("step-*"), key=step_of):
            hardest = [row.sample_id for row in rank_rows(read_rows(checkpoint))[:num_planted]]
            precision = len(planted & set(hardest)) / num_planted
            number = step_of(checkpoint) // a_pass
            figures[f"planted_precision_{number}"] = precision
            print(f"| {number} | {precision:.2f} |")
    return figures | {"planted_rows": num_planted}


COST_ARMS = {
    "vanilla": ["objective.method=vanilla"],
    "memory": ["objective.scoring=memory", "objective.scoring_budget=0"],
    "memory_quarter": ["objective.scoring=memory"],
    "exact": ["objective.scoring=exact"],
}


def measure_cost(arguments: argparse.Namespace) -> dict[str, float]:
    """Runs the arms in turn, two ranks each, and compares medians of their steps' seconds."""
    seconds: dict[str, list[float]] = {name: [] for name in COST_ARMS}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(arguments.rounds):
            for name, overrides in COST_ARMS.items():
                output = Path(folder) / f"{name}-{turn}"
                steps = [f"optim.steps={arguments.steps}", "checkpoint.save_every=0", "data.builtin_rows=2000"]
                launch_run(output, [*overrides, *steps])
                lines = map(json.loads, (output / "metrics.jsonl").read_text().splitlines())
                taken = [each["seconds"] for each in lines if each["kind"] == "step"]
                seconds[name].append(statistics.median(taken[len(taken) // 4 :]))
    vanilla = seconds["vanilla"]
    figures = {}
    print("\n| step over vanilla | median | lowest to highest |\n| --- | --- | --- |")
    for name in list(COST_ARMS)[1:]:
        ratios = [mine / theirs for mine, theirs in zip(seconds[name], vanilla, strict=True)]
        figures[f"{name}_over_vanilla"] = statistics.median(ratios)
        print(f"| {name} | {statistics.median(ratios):.3f} | {min(ratios):.3f} to {max(ratios):.3f} |")
    return figures


LEARNING_ARMS = ["LIFT-3", "LIFT-3, memory", "LIFT-3, buffer", "vanilla SFT"]


def measure_learning(arguments: argparse.Namespace) -> dict[str, float]:
    """Fine-tunes with every way of scoring and counts what is solved."""
    return controls.measure(LEARNING_ARMS, arguments.seeds, results=arguments.results, quick=arguments.quick)


PARTS: dict[str, Callable[[argparse.Namespace], dict[str, float]]] = {
    "kappa": measure_kappa,
    "planted": measure_planted,
    "cost": measure_cost,
    "learning": measure_learning,
}


def main() -> None:
    """Measures a part, prints its table and writes its figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=list(PARTS), default="kappa", help="what is measured")
    parser.add_argument("--model", default="builtin:base", help="kappa: the model that is trained")
    parser.add_argument("--data", default="builtin:reasoning", help="kappa: its rows")
    parser.add_argument("--rows", type=int, default=2000, help="kappa: how many of them")
    parser.add_argument("--passes", type=int, default=10, help="kappa: how often")
    parser.add_argument("--batch", type=int, default=64, help="kappa: documents of a step")
    parser.add_argument("--lr", type=float, default=1e-3, help="kappa: peak learning rate")
    parser.add_argument("--max-length", type=int, default=None, help="kappa: most tokens of a row")
    parser.add_argument("--steps", type=int, default=40, help="cost: steps of a run")
    parser.add_argument("--rounds", type=int, default=3, help="cost: runs of each")
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 1, 2], help="learning: one run of each for each")
    parser.add_argument("--results", type=Path, help="learning: folder with a file for each finished run")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--quick", action="store_true", help="smoke test: nothing to be quoted")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rows, arguments.passes, arguments.batch, arguments.steps, arguments.rounds = 48, 2, 16, 4, 1
    figures: dict[str, Any] = dict(PARTS[arguments.part](arguments))
    if arguments.quick:
        figures["quick"] = True
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")
    sys.stdout.flush()
    if torch.distributed.is_initialized():
        leave(0)


if __name__ == "__main__":
    main()
