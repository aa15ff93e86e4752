"""Kills ranks of real runs at drawn moments, goes on with each, and compares with runs that nobody killed.

    make faults ARGS="--kills 60 --seed 7 --json faults.json"

Each kill is a SIGKILL to a drawn rank in a drawn phase (starting, training, updating, syncing the table, measuring,
saving: taking a checkpoint's state, writing and publishing it behind the training, exporting) of a run on two ranks
under torchrun, in a drawn setting (ZeRO-3, ZeRO-2, LoRA, checkpoints written at once, packs with the difficulty
memory). It counts only if the process died inside that phase. Then `--resume auto` on two ranks, or on one in a quarter
of the kills, takes the run to its end.

    kills                  that counted
    lost                   runs that did not reach their last step and export
    not_bit_equal          runs on two ranks whose losses, gradient norms or exported weights differ at all; those on
                           one rank whose losses differ by more than a millionth
    worst_on_one_rank      largest relative difference of a loss there: sums are in another order, in float32
    worst_seconds_to_stop  from the kill to the launcher's end
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from lift_ds.storage.run_folder import read_metrics
from tests.conftest import BASE, REPOSITORY, SMALL, clean_environment, free_port, latest
from tests.faults.marked_train import PHASES

STEPS = 12
RUN = [
    *SMALL, f"optim.steps={STEPS}", "checkpoint.save_every=4", "eval.every=5", "eval.rows=4", "eval.solve_items=0",
    "difficulty.sync_every=3", "optim.lr=1e-3", "data.clock=2026-01-01T00:00:00",
]  # fmt: skip
SETTINGS = {
    "ZeRO-3": [],
    "ZeRO-2": ["--deepspeed", "ds_configs/zero2.json"],
    "LoRA": ["lora.rank=4", "lora.dropout=0.1", "model.from_scratch=false"],
    "written at once": ["checkpoint.async_save=false"],
    "memory, packed": ["objective.scoring=memory", "data.packing=best_fit", "data.pack_length=512"],
}
OF_RANK_0 = ("publishing", "exporting")
CLOSE = 1e-6
ATTEMPTS = 6


@dataclass(frozen=True)
class Fault:
    """What is drawn: a setting, a phase, which time it is entered, the share of it that passes, the ranks after it."""

    setting: str
    phase: str
    rank: int
    entry: int
    share: float
    num_ranks_after: int


@dataclass(frozen=True)
class Finished:
    """What a run that reached its end left."""

    steps: dict[int, tuple[float, float]]
    weights: dict[str, torch.Tensor]
    seconds: dict[str, list[float]]


def launch(
    setting: str, output: Path, marks: Path, num_ranks: int = 2, fault: str = "", rank: int = 0, model: Path = BASE
) -> subprocess.CompletedProcess[str]:
    """A run under torchrun; one of its ranks may have a fault."""
    marks.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(num_ranks)]
    command += ["--master_port", str(free_port()), "-m", "tests.faults.on_rank", str(rank), fault]
    command += latest(*RUN, *SETTINGS[setting], "--model", model, "--output", output, "--resume", "auto")
    return subprocess.run(
        command, cwd=REPOSITORY, env=clean_environment(MARKS=str(marks)), text=True, timeout=300,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
    )  # fmt: skip


def finished(output: Path, marks: Path) -> Finished | None:
    """What a run left, if it reached its end."""
    records = read_metrics(output / "metrics.jsonl", "step")
    steps = {record["step"]: (record["loss"], record["grad_norm"]) for record in records}
    if max(steps, default=0) != STEPS or not (output / "export" / "model.safetensors").exists():
        return None
    told = [json.loads(path.read_text()) for path in marks.glob("seconds-*.json")]
    seconds = {phase: [each for of_rank in told for each in of_rank.get(phase, [])] for phase in PHASES}
    return Finished(steps, load_file(output / "export" / "model.safetensors"), seconds)


def loss_difference(found: Finished, expected: Finished) -> float:
    """The largest relative difference of a step's loss."""
    return max(abs(found.steps[step][0] / loss - 1) for step, (loss, _) in expected.steps.items())


def differs(found: Finished, expected: Finished, num_ranks: int) -> bool:
    """Whether a run that went on ended otherwise than one that nobody killed."""
    if num_ranks == 1:
        return loss_difference(found, expected) > CLOSE
    return found.steps != expected.steps or any(
        not torch.equal(found.weights[name], tensor) for name, tensor in expected.weights.items()
    )


class Expected:
    """Runs that nobody killed, by setting; each runs when it is first asked for."""

    def __init__(self, place: Path) -> None:
        self.place, self.found = place, dict[str, Finished]()

    def __getitem__(self, setting: str) -> Finished:
        if setting not in self.found:
            folder = self.place / f"expected-{len(self.found)}"
            folder.mkdir()
            done = launch(setting, folder / "run", folder / "marks")
            found = finished(folder / "run", folder / "marks")
            if found is None:
                sys.exit(done.stdout[:4000])
            self.found[setting] = found
        return self.found[setting]


def draw(chance: random.Random, expected: Expected, number: int, phases: Sequence[str]) -> Fault:
    """The next fault: phases and settings in turn, so that few kills hit many kinds; all else by chance."""
    setting = list(SETTINGS)[number % len(SETTINGS)]
    phase = phases[(number + number // len(phases)) % len(phases)]
    rank = 0 if phase in OF_RANK_0 else chance.randrange(2)
    times = len(expected[setting].seconds[phase]) // (1 if phase in OF_RANK_0 else 2)
    num_ranks_after = 1 if chance.random() < 0.25 else 2
    return Fault(setting, phase, rank, chance.randint(1, max(1, times)), chance.random(), num_ranks_after)


def kill_and_go_on(fault: Fault, expected: Finished, folder: Path) -> dict[str, Any] | None:
    """One kill and what came of it; `None` where the phase was over before the process died."""
    output, marks = folder / "run", folder / "marks"
    usual = expected.seconds[fault.phase]
    delay = fault.share * sum(usual) / len(usual)
    done = launch(fault.setting, output, marks, fault=f"{fault.phase} {fault.entry} {delay:.6f}", rank=fault.rank)
    ended = time.time()
    if done.returncode == 0 or not (marks / "killed").exists() or not (marks / f"{fault.phase}-{fault.rank}").exists():
        return None
    seconds = ended - float((marks / "killed").read_text())
    again = folder / "again"
    launch(fault.setting, output, again, num_ranks=fault.num_ranks_after)
    found = finished(output, again)
    on_one = fault.num_ranks_after == 1 and found is not None
    return {
        "seconds_to_stop": seconds,
        "lost": found is None,
        "on_one_rank": loss_difference(found, expected) if on_one and found is not None else 0.0,
        "not_bit_equal": found is not None and differs(found, expected, fault.num_ranks_after),
    }


def campaign(num_kills: int, seed: int, phases: Sequence[str] = PHASES) -> dict[str, Any]:
    """Runs it, prints each kill, and returns the figures."""
    chance, counts, results = random.Random(f"faults/{seed}"), Counter[str](), list[dict[str, Any]]()
    with tempfile.TemporaryDirectory() as place:
        expected, number = Expected(Path(place)), 0
        while len(results) < num_kills:
            fault = draw(chance, expected, number, phases)
            number += 1
            for attempt in range(ATTEMPTS):
                folder = Path(place) / f"{number}-{attempt}"
                folder.mkdir()
                result = kill_and_go_on(fault, expected[fault.setting], folder)
                if result is not None:
                    break
                counts["missed"] += 1
                fault = replace(fault, share=fault.share / 2)
            if result is None:
                continue
            results.append(result)
            counts[f"in_{fault.phase}"] += 1
            verdict = "LOST" if result["lost"] else "NOT BIT-EQUAL" if result["not_bit_equal"] else "equal"
            print(
                f"{len(results):3} {fault.setting:15} {fault.phase:11} rank {fault.rank}, entry {fault.entry}: stopped "
                f"after {result['seconds_to_stop']:.1f} s, went on with {fault.num_ranks_after}: {verdict}",
                flush=True,
            )
    return {
        "kills": len(results),
        "lost": sum(result["lost"] for result in results),
        "not_bit_equal": sum(result["not_bit_equal"] for result in results),
        "worst_on_one_rank": max(result["on_one_rank"] for result in results),
        "worst_seconds_to_stop": max(result["seconds_to_stop"] for result in results),
        **{name: counts[name] for name in sorted(counts)},
    }


def main() -> None:
    """The campaign as a command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=12, help="how many must count")
    parser.add_argument("--seed", type=int, default=0, help="what is drawn")
    parser.add_argument("--phases", nargs="+", choices=PHASES, default=PHASES, help="only in these")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    figures = campaign(arguments.kills, arguments.seed, arguments.phases)
    print(json.dumps(figures, indent=1))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")
    sys.exit(bool(figures["lost"] or figures["not_bit_equal"]))


if __name__ == "__main__":
    main()
