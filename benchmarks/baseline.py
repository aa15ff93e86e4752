"""This trainer against what people run today: time, memory and start-up, on the same rows, steps and masks.

    python benchmarks/baseline.py --json baseline.json

*plain* is Hugging Face's Trainer in a loop as one would write it well (`baseline_plain.py`): transformers' Llama, made
bidirectional, with SDPA, micro-batches padded to their longest row, logits of all positions, AdamW in one kernel; DDP
on two ranks. Each step's rows are sorted by Trainer's own function. *grouped* is the same with rows grouped by length
over the whole run, as Trainer does over 50 steps of large data: less padding, but each step then holds rows of one
length. *published* is LIFT's public recipe: every row padded to the maximum, and two full passes; it is measured on
rows of its own, as in each mix its rows cost the same. *ours* is this package's step through its engine, ZeRO-3, in
padded rows (*unpacked*) or one after the other (*packed*), in the micro-batches that a run cuts and deals to its ranks:
of at most 4,096 tokens, the default, where plain's have a number of rows.

The same for all: weights, rows of each step (but for *grouped*), masks, float32, one thread a rank, AdamW and clipping
at 1.0. Not the same: ours keeps LIFT's table of difficulties, and scores only documents that need it where the others
score all; ours computes logits of masked tokens only; plain's noise is drawn beforehand, ours inside the time; on two
ranks each rank of plain holds all weights (DDP), of ours a share (ZeRO-3); of plain Trainer's whole loop is timed, of
ours the step, without loader, metrics file and progress. Losses of all are compared on some rows before anything is
timed, and those of the first step in every run.

Each run is a process, or two ranks, of its own; on one rank two runs go at the same time. Time is processor seconds,
which other work on the machine disturbs least, and wall seconds of the slowest rank, both without start and first
step. Memory is peak resident less the process before the model is built, where glibc gives back at once what is freed.
Start-up is the time from a process's start to the end of its first step, `launchers/train.py` against
`baseline_plain.py` on the same folder and text rows, medians of interleaved pairs. In the figures a ratio is over plain
where no other is named, the worst over methods and ranks, and that of the better of packed and unpacked where neither
is named. `--quick` is a smoke test and never quoted.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from baseline_cell import Cell
from baseline_rows import RANK_COUNTS, Mix, draw_mixes, write_model, write_rows, write_texts

BENCHMARKS = Path(__file__).resolve().parent
ENGINE_JSON = BENCHMARKS.parent / "ds_configs" / "zero3.json"
LARGEST_DIFFERENCE = 1e-4
START_PAIRS, START_ROWS, POLL_SECONDS = 3, 64, 0.01
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "DS_ACCELERATOR": "cpu",
    "HF_HUB_OFFLINE": "1",
    "PYTHONWARNINGS": "ignore",
    "PYTHONPATH": f"{BENCHMARKS.parent}:{os.environ.get('PYTHONPATH', '')}",
}
GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}
OURS = ("unpacked", "packed")
OTHERS = (*OURS, "grouped", "published")
TIMES = {"time_ratio": "cpu_seconds", "wall_ratio": "wall_seconds"}


@dataclass(frozen=True)
class Key:
    """What a run is of."""

    mix: str
    method: str
    num_ranks: int
    variant: str

    def __str__(self) -> str:
        return f"{self.mix}/{self.method}/{self.num_ranks}_ranks/{self.variant}"


@dataclass(frozen=True)
class Measured:
    """One run.

    Args:
        cpu_seconds: Of all ranks together; like the next, of all steps but the first.
        wall_seconds: Of the slowest rank.
        peak_bytes: Of the rank with most.
        losses: Of every step, over all ranks.
    """

    cpu_seconds: float
    wall_seconds: float
    peak_bytes: int
    losses: list[float]


class Runs:
    """Runs, their files in `folder`, and what they measured."""

    def __init__(self, folder: Path, mixes: dict[str, Mix], engine_json: Path, is_profiled: bool) -> None:
        self.folder, self.mixes, self.engine_json, self.is_profiled = folder, mixes, engine_json, is_profiled
        self.measured: dict[Key, Measured] = {}

    def run_all(self, keys: list[Key]) -> None:
        """Runs those given, in order; on one rank two at a time."""
        for model in {self.mixes[key.mix].model for key in keys}:
            if not (self.folder / model).exists():
                write_model(model, self.folder / model)
        for num_ranks in RANK_COUNTS:
            with ThreadPoolExecutor(max(RANK_COUNTS) // num_ranks) as pool:
                list(pool.map(self.run, [key for key in keys if key.num_ranks == num_ranks]))

    def run(self, key: Key) -> None:
        """Runs one in processes of its own."""
        mix, out = self.mixes[key.mix], self.folder / str(key)
        out.mkdir(parents=True)
        cell = Cell(
            model=str(self.folder / mix.model),
            rows=str(out / "rows"),
            method=key.method,
            micro_batch=mix.micro_batch,
            accumulation=mix.accumulation,
            num_steps=write_rows(mix, key.variant == "grouped", key.num_ranks, out / "rows"),
            pad_to=mix.maximum if key.variant == "published" else None,
            is_packed=key.variant == "packed",
            engine_json=str(self.engine_json),
            out=str(out),
            is_profiled=self.is_profiled,
        )
        launcher = ["-m", "torch.distributed.run", "--nproc_per_node", str(key.num_ranks), "--standalone"]
        script = BENCHMARKS / ("baseline_ours.py" if key.variant in OURS else "baseline_plain.py")
        done = subprocess.run(
            [sys.executable, *launcher * (key.num_ranks > 1), script, json.dumps(asdict(cell))],
            env=os.environ | ENVIRONMENT | (GIVE_BACK if mix.is_memory else {}),
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        if done.returncode:
            raise RuntimeError(f"{key} ended with {done.returncode}: {done.stdout[-4000:]}")
        ranks = [json.loads((out / f"{rank}.json").read_text()) for rank in range(key.num_ranks)]
        measured = Measured(
            cpu_seconds=sum(rank["cpu_seconds"] for rank in ranks),
            wall_seconds=max(rank["wall_seconds"] for rank in ranks),
            peak_bytes=max(rank["peak_bytes"] for rank in ranks),
            losses=ranks[0]["losses"],
        )
        print(
            f"{key}: {measured.cpu_seconds:.1f} s, {measured.peak_bytes / 2**20:,.0f} MiB", file=sys.stderr, flush=True
        )
        if self.is_profiled:
            print(f"{key}\n{(out / '0.txt').read_text()}", flush=True)
        self.measured[key] = measured

    def largest_difference(self, num_steps: int | None) -> float:
        """The largest relative difference between a loss of the first steps, or of all, and plain's.

        Raises:
            RuntimeError: It is too large for the same work.
        """
        largest = 0.0
        for key, measured in self.measured.items():
            plain = self.measured.get(replace(key, variant="plain"), measured)
            pairs = zip(measured.losses[:num_steps], plain.losses[:num_steps], strict=True)
            largest = max(largest, *(abs(loss / theirs - 1) for loss, theirs in pairs))
            if not largest <= LARGEST_DIFFERENCE:
                raise RuntimeError(f"{key}: losses {measured.losses}, plain's {plain.losses}")
        return largest

    def a_row(self, key: Key, field: str) -> float | None:
        """A run's field over the number of its rows; the published recipe's rows are all of one length, in any mix."""
        key = replace(key, mix="padded") if key.variant == "published" else key
        found = self.measured.get(key)
        return None if found is None else float(getattr(found, field)) / len(self.mixes[key.mix].lengths)

    def worst_ratios(self, mix: str, field: str, variant: str, over: str) -> dict[str, float]:
        """Of one variant over another, with each method and number of ranks, and the `worst`."""
        ratios = {}
        for key in self.measured:
            top, bottom = self.a_row(key, field), self.a_row(replace(key, variant=over), field)
            if (key.mix, key.variant) == (mix, variant) and top is not None and bottom is not None:
                ratios[f"{key.method}_{key.num_ranks}_ranks"] = top / bottom
        return ratios | ({"worst": max(ratios.values())} if ratios else {})

    def figures(self) -> dict[str, float]:
        """Ratios of ours to each baseline, apart and at their worst, and of the better of packed and unpacked."""
        figures: dict[str, float] = {}
        for name, mix in self.mixes.items():
            fields = TIMES if not mix.is_memory else {"memory_ratio": "peak_bytes"}
            for kind, field in fields.items() if name not in ("check", "padded") else ():
                for over in ("plain", "grouped", "published"):
                    title = f"{kind}_{name}" + (f"_to_{over}" if over != "plain" else "")
                    worst: dict[str, float] = {}
                    for variant in OURS:
                        ratios = self.worst_ratios(name, field, variant, over)
                        figures |= {f"{title}_{variant}/{cell}": ratio for cell, ratio in ratios.items()}
                        worst |= {variant: ratios["worst"]} if ratios else {}
                    if worst:
                        best = min(worst, key=lambda variant: worst[variant])
                        figures |= {title: worst[best], f"{title}_is_packed": best == "packed"}
                        figures |= {f"{title}_{variant}": ratio for variant, ratio in worst.items()}
        return figures

    def table(self) -> str:
        """Each run: what plain took, and the others as ratios to it."""
        lines = [
            "| rows | method | ranks | plain | " + " | ".join(OTHERS) + " |",
            "| --- " * 4 + "| --- " * len(OTHERS) + "|",
        ]
        for key, measured in self.measured.items():
            mix = self.mixes[key.mix]
            if key.variant != "plain" or key.mix == "check":
                continue
            tokens, mib = sum(mix.lengths), measured.peak_bytes / 2**20
            took = f"{mib:,.0f} MiB" if mix.is_memory else f"{1000 * measured.cpu_seconds / tokens:.2f} ms"
            cells = [self.shown(replace(key, variant=variant)) for variant in OTHERS]
            lines.append(f"| {key.mix} | {key.method} | {key.num_ranks} | {took} | {' | '.join(cells)} |")
        return "\n".join(lines)

    def shown(self, key: Key) -> str:
        """Ratios of a run to plain: of processor and wall seconds, or of memory."""
        mix = self.mixes[key.mix]
        fields = ["peak_bytes"] if mix.is_memory else list(TIMES.values())
        pairs = [(self.a_row(key, field), self.a_row(replace(key, variant="plain"), field)) for field in fields]
        return ", ".join(f"{top / bottom:.2f}" for top, bottom in pairs if top is not None and bottom is not None)


def start_up(folder: Path, model: str, num_pairs: int, engine_json: Path) -> dict[str, float]:
    """Seconds from the start of a process to the end of its first step, of plain and ours, and their ratios."""
    if not (folder / model).exists():
        write_model(model, folder / model)
    rows = folder / "rows.jsonl"
    write_texts(rows, START_ROWS)
    seconds: dict[str, list[tuple[float, float]]] = {"plain": [], "ours": []}
    for pair in range(num_pairs):
        out = folder / f"start-{pair}"
        first_step = Path(f"{out}.step")
        plain = [BENCHMARKS / "baseline_plain.py", folder / model, rows, first_step]
        ours: list[Path | str] = [
            BENCHMARKS.parent / "launchers" / "train.py",
            "--deepspeed",
            engine_json,
            "--model",
            folder / model,
        ]
        ours += ["--data", rows, "--output", out, "objective.method=vanilla", "optim.global_batch=8", "optim.steps=1"]
        ours += ["eval.rows=0"]  # as plain measures none; the first record is then the first step's
        seconds["plain"].append(time_to_file(plain, first_step))
        seconds["ours"].append(time_to_file(ours, out / "metrics.jsonl"))
    wall, cpu = (
        {name: statistics.median(run[part] for run in runs) for name, runs in seconds.items()} for part in (0, 1)
    )
    return {
        "startup_ratio": wall["ours"] / wall["plain"],
        "startup_cpu_ratio": cpu["ours"] / cpu["plain"],
        "startup_seconds": wall["ours"],
        "startup_seconds_plain": wall["plain"],
    }


def time_to_file(arguments: Sequence[Path | str], path: Path) -> tuple[float, float]:
    """Wall and processor seconds of a new Python process until a file that it writes has something, or is there."""
    began = time.perf_counter()
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            [sys.executable, *arguments], env=os.environ | ENVIRONMENT, stdout=output, stderr=subprocess.STDOUT
        )
        while not (path.exists() and path.read_text()):
            time.sleep(POLL_SECONDS)
            if process.poll() is not None:
                output.seek(0)
                raise RuntimeError(f"{arguments}: {output.read()[-4000:]}")
        wall = time.perf_counter() - began
        times = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[11:15]
        process.kill()
        process.wait()
    return wall, sum(map(int, times)) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Measures and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--only", nargs="+", help="parts of runs' names: long, short/vanilla, lift3/2_ranks, start_up")
    parser.add_argument("--deepspeed", type=Path, default=ENGINE_JSON, help="how ours runs")
    parser.add_argument("--profile", action="store_true", help="print where each run's time goes, and check nothing")
    parser.add_argument("--quick", action="store_true", help="a smoke test with small shapes")
    arguments = parser.parse_args()
    mixes = draw_mixes(arguments.quick)
    keys = [
        Key(name, method, num_ranks, variant)
        for name, mix in mixes.items()
        for method in mix.methods
        for num_ranks in mix.rank_counts
        for variant in mix.variants
    ]

    def is_wanted(name: str) -> bool:
        return arguments.only is None or any(part in name for part in arguments.only)

    names = ["start_up", *map(str, keys)]
    for part in arguments.only or []:
        if not any(part in name for name in names):
            parser.error(f"--only {part}: in no run's name; they are: {' '.join(names)}")
    with tempfile.TemporaryDirectory() as folder:
        runs = Runs(Path(folder), mixes, arguments.deepspeed.resolve(), arguments.profile)
        runs.run_all([key for key in keys if key.mix == "check" and not arguments.profile])
        figures: dict[str, float | bool] = {"quick": arguments.quick, "loss_difference": runs.largest_difference(None)}
        if is_wanted("start_up"):
            num_pairs = 1 if arguments.quick else START_PAIRS
            figures |= start_up(Path(folder), next(iter(mixes.values())).model, num_pairs, runs.engine_json)
        for name in list(mixes)[1:]:  # the first is the check
            runs.run_all([key for key in keys if key.mix == name and is_wanted(str(key))])
            figures["loss_difference_first_steps"] = runs.largest_difference(1)
            figures |= runs.figures()
            if arguments.json:
                arguments.json.write_text(json.dumps(figures, indent=1))
    print(runs.table())
    print("\n".join(f"{name}: {value:.3g}" for name, value in figures.items() if "/" not in name))


if __name__ == "__main__":
    main()
