"""What grows with the ranks: control traffic, look-ups, checkpoints, resumes and starts, counted and as formulas.

    python benchmarks/growth.py --json growth.json

A small model (width 32, 2 layers) trains with the difficulty memory on 1, 2, 4, 8 and 16 CPU ranks, four documents a
rank, four steps, a checkpoint after each second one; then the run goes on from the first. What this package sends
besides weights and gradients is counted at each call, see `growth_counted.py`. All figures are of one rank, the one
with most. With W ranks, G documents of a step and V lanes:

- `formula` has what does not depend on the rows: it must give the counted bytes, exactly.
- What does is fitted: bytes = a + b W + c (W - 1) / W, where c is what goes to other ranks with that probability.

`open` and `deal` need no ranks to be run for many: a checkpoint of 32 layers is cut for as many ranks (`reshard`) and
opened as a rank of a resume opens it (and whole); a step of 4 W documents is cut into micro-batches as each rank does
it. Ranks share the machine's cores here: seconds of more ranks than cores show the machine, not the program.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lift_ds.data.order.dealing import BatchRule
from lift_ds.export.reshard import reshard
from lift_ds.method.difficulty import NUM_BINS, NUM_FREQUENCIES
from lift_ds.models.weights import resolve_folder
from lift_ds.storage.manifest import MANIFEST, checkpoint_name
from lift_ds.storage.run_folder import METRICS_FILE, read_metrics
from lift_ds.storage.zero_checkpoint import MASTER, MOMENTS, open_zero_checkpoint
from lift_ds.storage.zero_files import ZERO_TAG
from lift_ds.training.metrics import StepTotals

REPOSITORY = Path(__file__).resolve().parents[1]
RANKS, QUICK_RANKS = (1, 2, 4, 8, 16), (1, 2)
EVALUATED = (64, 512)
DOCUMENTS, STEPS, SAVED_AT = 4, 4, 2
MANY_FILES, QUICK_FILES = (1, 16, 64, 512), (1, 4)
SIZES = {"d_model": 32, "n_heads": 2, "n_kv_heads": 2, "mlp_hidden_size": 64}
RUN = [
    "--deepspeed", "ds_configs/zero3.json", "--data", "builtin:reasoning", "model.from_scratch=true",
    "data.builtin_rows=2048", "data.check_rows=100", "data.clock=2026-01-01T00:00:00", "objective.scoring=memory",
    "eval.rows=0", "eval.every=0", "eval.solve_items=0", "eval.watch_every=0", "checkpoint.keep=9",
    "checkpoint.async_save=false",
]  # fmt: skip
Figures = dict[str, float]


def write_model(folder: Path, num_layers: int) -> Path:
    """The built-in base's tokenizer and a small model's config."""
    folder.mkdir()
    base = resolve_folder("builtin:base")
    for path in base.iterdir():
        if path.suffix in (".json", ".jinja"):
            (folder / path.name).write_bytes(path.read_bytes())
    config = json.loads((base / "config.json").read_text()) | SIZES | {"n_layers": num_layers}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def launch(num_ranks: int, counts: Path, *options: str | Path) -> list[dict[str, Any]]:
    """Trains; returns what each rank has counted."""
    command = [sys.executable, "benchmarks/growth_counted.py", str(num_ranks), str(counts), *RUN, *map(str, options)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    done = subprocess.run(command, cwd=REPOSITORY, text=True, capture_output=True, env=environment)
    if done.returncode:
        sys.exit(done.stdout[-4000:] + done.stderr[-4000:])
    return [json.loads((counts / f"rank-{rank}.json").read_text()) for rank in range(num_ranks)]


def formula(num_ranks: int, num_documents: int, num_steps: int) -> dict[str, tuple[int, int]]:
    """Calls and bytes of a new run's steps, by who sends what, of all that does not depend on the rows.

    The memory is asked before each step, and learns of a step two steps later: of the last two in none.
    """
    totals, others, num_applied = StepTotals(), num_ranks - 1, max(0, num_steps - 2)
    vectors = len(totals.summed()) + len(totals.maxima)
    expected = {
        "loop.plan_step/sum": (num_steps, num_steps * 8 * 4),
        "loop.compute_step/sum": (2 * num_steps, num_steps * 8 * vectors),
    }
    if num_ranks == 1:
        return expected
    num_exchanges = {
        "buffers._exchange": 2 * num_steps + 3 * num_applied,  # a look-up has two, a sync one
        "memory._send": 2 * num_steps + num_applied,
        "memory._choose": num_steps,
    }
    groups = 8 * 2 * NUM_FREQUENCIES * NUM_BINS
    return expected | {
        "call_trace.require_same/sum": (num_steps, num_steps * 8 * 2),
        "exchange.deal/sum": (num_steps, num_steps * 8 * 3 * num_documents),
        "buffers.sync/sum": (num_applied, num_applied * groups),
        **{f"{name}/sizes": (count, count * 8 * others) for name, count in num_exchanges.items()},
    }


def counted(rank: dict[str, Any], phase: str) -> dict[str, tuple[int, int]]:
    """A rank's calls and bytes of one part of the run, by who sent what."""
    calls = rank["calls"].items()
    return {name.removeprefix(f"{phase}/"): tuple(entry) for name, entry in calls if name.startswith(f"{phase}/")}


def bytes_of(rank: dict[str, Any], phase: str, kinds: Sequence[str] = (), owners: str = "") -> int:
    """A rank's bytes of one part of the run; only of some kinds, of some owners, where these are given."""
    found = counted(rank, phase).items()
    return sum(
        size for name, (_, size) in found if (not kinds or name.endswith(tuple(kinds))) and name.startswith(owners)
    )


def measure(num_ranks: int, model: Path, place: Path) -> Figures:
    """A run on some ranks and the one that goes on from its first checkpoint."""
    output, num_documents = place / f"run-{num_ranks}", DOCUMENTS * num_ranks
    options: list[str | Path] = ["--model", model, "--output", output]
    options += [f"optim.global_batch={num_documents}", f"optim.steps={STEPS}"]
    ranks = launch(num_ranks, place / f"counts-{num_ranks}", *options, f"checkpoint.save_every={SAVED_AT}")
    first = read_metrics(output / METRICS_FILE, "step")
    checkpoint = output / "checkpoints" / checkpoint_name(SAVED_AT)
    files = [path for path in checkpoint.rglob("*") if path.is_file()]
    sizes = {path.relative_to(checkpoint): path.stat().st_size for path in files}
    resumed = launch(num_ranks, place / f"resumed-{num_ranks}", *options, "--resume", checkpoint)
    expected = formula(num_ranks, num_documents, STEPS)
    for rank in ranks:
        found = {name: calls for name, calls in counted(rank, "step").items() if not name.endswith("/parts")}
        assert found == expected, f"{num_ranks} ranks: {found} where the formula gives {expected}"

    def most(of: list[dict[str, Any]], phase: str, *rest: Any) -> int:
        return max(bytes_of(rank, phase, *rest) for rank in of)

    seconds = sum(record["seconds"] for record in first)
    return {
        "step_calls": sum(calls for calls, _ in counted(ranks[0], "step").values()) / STEPS,
        "step_control_bytes": most(ranks, "step", (), ("loop", "call_trace")) / STEPS,
        "step_dealing_bytes": most(ranks, "step", ("sum",), "exchange") / STEPS,
        "step_rows_bytes": most(ranks, "step", ("parts",), "exchange") / STEPS,
        "step_look_up_bytes": most(ranks, "step", (), ("buffers", "memory")) / STEPS,
        "step_communication_share": sum(record["communication_seconds"] for record in first) / seconds,
        "start_bytes": most(ranks, "start", ("object", "objects")),  # the rest is what times the links
        "start_store_writes": max(rank["store_writes"] for rank in ranks),
        "start_seconds": first[0]["time"] - first[0]["seconds"] - ranks[0]["forked"],  # without imports
        "groups": ranks[0]["num_groups"],
        "open_files": max(rank["open_files"] for rank in ranks),
        "save_bytes": most(ranks, "save") / (STEPS // SAVED_AT),
        "save_seconds": ranks[0]["seconds"]["save"][0],
        "save_hashed_bytes": max(rank["hashed_bytes"].get("save", 0) for rank in ranks) / (STEPS // SAVED_AT),
        "checkpoint_files": len(files),
        "checkpoint_bytes_per_rank": sum(sizes.values()) / num_ranks,
        "manifest_bytes": sizes[Path(MANIFEST)],
        "position_bytes": sizes[Path("lanes.json")],
        "resume_bytes": most(resumed, "resume"),
        "resume_seconds": resumed[0]["seconds"]["resume"][0],
        "resume_opened": max(rank["opened"].get("resume", 0) for rank in resumed),
        "resume_hashed_bytes": max(rank["hashed_bytes"].get("resume", 0) for rank in resumed),
    }


FITTED = {  # terms of each quantity: a constant, W, (W - 1) / W
    "step_look_up_bytes": "one ranks share",
    "step_rows_bytes": "share",
    "start_bytes": "one ranks",
    "save_bytes": "one ranks",
    "resume_bytes": "one ranks",
    "checkpoint_files": "one ranks",
    "manifest_bytes": "one ranks",
    "resume_opened": "one ranks",
    "open_files": "one ranks",
}
TERMS = {"one": lambda w: 1.0, "ranks": lambda w: float(w), "share": lambda w: (w - 1) / w}


def fit(measured: dict[int, Figures]) -> Figures:
    """Terms of the fitted quantities, from two ranks on; the largest deviation from them; values for more ranks."""
    ranks = [number for number in measured if number > 1]
    figures: Figures = {}
    for name, terms in FITTED.items():
        chosen = terms.split()[: len(ranks)]
        rows = np.array([[TERMS[term](number) for term in chosen] for number in ranks])
        values = np.array([measured[number][name] for number in ranks], float)
        factors = np.linalg.lstsq(rows, values, rcond=None)[0]
        figures |= {f"fit/{name}/{term}": float(factor) for term, factor in zip(chosen, factors, strict=True)}
        figures[f"fit/{name}/deviation"] = float(np.max(np.abs(rows @ factors - values) / np.maximum(values, 1)))
        for number in EVALUATED:
            found = sum(TERMS[term](number) * factor for term, factor in zip(chosen, factors, strict=True))
            figures[f"at_{number}/{name}"] = float(found)
    for number in EVALUATED:
        sent = formula(number, DOCUMENTS * number, 100)
        figures[f"at_{number}/step_control_bytes"] = (
            sum(size for name, (_, size) in sent.items() if name.startswith(("loop", "call_trace"))) / 100
        )
        figures[f"at_{number}/step_dealing_bytes"] = sent["exchange.deal/sum"][1] / 100
    return figures


def open_seconds(place: Path, counts: Sequence[int]) -> Figures:
    """Seconds in which a rank of as many opens their checkpoint, and finds its tensors; and in which it would all."""
    model, output = write_model(place / "deep", 32), place / "deep-run"
    launch(1, place / "deep-counts", "--model", model, "--output", output, "optim.global_batch=4", "optim.steps=1")
    figures: Figures = {}
    for count in counts:
        folder = place / f"cut-{count}"
        reshard(output / "checkpoints" / checkpoint_name(1), count, folder, lambda _: None)
        for name, reader in (
            ("open_all_seconds", None),
            ("open_seconds", (count - 1, count)),
        ):  # the first fills caches
            began = time.perf_counter()
            zero = open_zero_checkpoint(folder / ZERO_TAG, reader)
            for key in (MASTER, *MOMENTS):
                zero.trained(key)
            figures[f"{name}/{count}"] = time.perf_counter() - began
    return figures


def deal_seconds(counts: Sequence[int]) -> Figures:
    """Seconds in which each rank cuts a step of four documents a rank."""
    rule, chance, figures = BatchRule(max_tokens=4096, pair_cost=1e-4), np.random.default_rng(0), {}
    for count in counts:
        sizes = [rule.size([length]) for length in chance.integers(50, 2000, DOCUMENTS * count).tolist()]
        began = time.perf_counter()
        rule.cut(sizes, count)
        figures[f"deal_seconds/{count}"] = time.perf_counter() - began
    return figures


def show(measured: dict[int, Figures], figures: Figures) -> None:
    """Prints the tables."""
    names = list(measured[min(measured)])
    print(
        "\n| of one rank | " + " | ".join(map(str, measured)) + " | " + " | ".join(f"*{n}*" for n in EVALUATED) + " |"
    )
    print("| --- |" + " ---: |" * (len(measured) + len(EVALUATED)))
    for name in names:
        cells = [f"{found[name]:,.4g}" if found[name] < 1000 else f"{found[name]:,.0f}" for found in measured.values()]
        later = [figures.get(f"at_{number}/{name}") for number in EVALUATED]
        cells += ["" if value is None else f"*{value:,.0f}*" for value in later]
        print(f"| {name} | " + " | ".join(cells) + " |")
    print("\n| fitted | constant | W | (W - 1) / W | largest deviation |\n| --- | ---: | ---: | ---: | ---: |")
    for name in FITTED:
        terms = [figures.get(f"fit/{name}/{term}") for term in TERMS]
        cells = ["" if value is None else f"{value:,.1f}" for value in terms]
        print(f"| {name} | " + " | ".join(cells) + f" | {figures[f'fit/{name}/deviation']:.1%} |")
    print("\n| ranks | opening a checkpoint of as many, s | all of its files, s | cutting a step, s |")
    print("| --- | ---: | ---: | ---: |")
    for key, value in figures.items():
        if key.startswith("open_seconds/"):
            count = key.rpartition("/")[2]
            others = (figures[f"open_all_seconds/{count}"], figures[f"deal_seconds/{count}"])
            print(f"| {count} | {value:.2f} | {others[0]:.2f} | {others[1]:.4f} |")


def main() -> None:
    """Measures, prints the tables and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=list(RANKS), help="numbers of processes")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--quick", action="store_true", help="a smoke test on one rank and two")
    arguments = parser.parse_args()
    ranks, files = (QUICK_RANKS, QUICK_FILES) if arguments.quick else (arguments.ranks, MANY_FILES)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        model, measured = write_model(place / "model", 2), {}
        for num_ranks in ranks:
            measured[num_ranks] = measure(num_ranks, model, place)
            print(f"{num_ranks} ranks: {json.dumps(measured[num_ranks])}", file=sys.stderr, flush=True)
        figures = fit(measured) | open_seconds(place, files) | deal_seconds(files)
    show(measured, figures)
    flat = {f"ranks_{number}/{name}": value for number, found in measured.items() for name, value in found.items()}
    if arguments.json:
        arguments.json.write_text(json.dumps({**flat, **figures, "quick": arguments.quick}, indent=1) + "\n")


if __name__ == "__main__":
    main()
