"""Goodput of a supervised run whose ranks are killed: seconds of the steps that count, over all that pass.

    python benchmarks/goodput.py --json goodput.json
    python benchmarks/goodput.py --between 60 --save-every 10

`launchers/supervise.py` keeps a run on two ranks of the built-in base going, while a drawn rank gets SIGKILL after
times drawn from an exponential distribution; then the same run goes its way without kills. Steps that a restart takes
again count once. `same_losses` says that both have the same losses in all steps, to the last digit.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from lift_ds.cli.supervise import ranks_below
from lift_ds.storage.run_folder import METRICS_FILE, SUPERVISE_FILE, read_metrics

REPOSITORY = Path(__file__).resolve().parents[1]
RUN = [
    "--deepspeed", "ds_configs/zero3.json", "--model", "builtin:base", "--data", "builtin:reasoning",
    "data.builtin_rows=2000", "optim.global_batch=64", "eval.every=0", "eval.rows=0", "eval.solve_items=0",
    "data.clock=2026-01-01T00:00:00",
]  # fmt: skip


def supervised(output: Path, num_steps: int, save_every: int, kill_after: list[float]) -> int:
    """Runs to the end, with a kill after each of these seconds since the one before; returns how many there were."""
    options = [f"--output={output}", "--backoff=1", "--restarts=1000"]
    command = [sys.executable, "launchers/supervise.py", *options]
    command += ["--", "deepspeed", "--num_gpus", "2", "launchers/train.py", *RUN]
    command += [f"optim.steps={num_steps}", f"checkpoint.save_every={save_every}"]
    with (output.parent / f"{output.name}.txt").open("w") as printed:
        process = subprocess.Popen(command, cwd=REPOSITORY, stdout=printed, stderr=printed)
    chance, num_kills, waiting = random.Random("goodput"), 0, iter(kill_after)
    moment = time.monotonic() + next(waiting, float("inf"))
    while process.poll() is None:
        if time.monotonic() > moment:
            ranks = ranks_below(process.pid)
            if ranks:
                with suppress(ProcessLookupError):
                    os.kill(chance.choice(ranks), signal.SIGKILL)
                    num_kills += 1
                    moment = time.monotonic() + next(waiting, float("inf"))
        time.sleep(0.1)
    if process.returncode:
        sys.exit(Path(printed.name).read_text()[-4000:])
    return num_kills


def losses(output: Path) -> dict[int, float]:
    """The loss of each step."""
    return {record["step"]: record["loss"] for record in read_metrics(output / METRICS_FILE, "step")}


def summary(output: Path) -> dict[str, float]:
    """The last line of the supervisor's log."""
    return dict(json.loads((output / SUPERVISE_FILE).read_text().splitlines()[-1]))


def main() -> None:
    """Measures, prints the table and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=600, help="of the run (default: %(default)s)")
    parser.add_argument("--between", type=float, default=120.0, help="mean seconds to the next kill")
    parser.add_argument("--save-every", type=int, default=20, help="steps between checkpoints (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--quick", action="store_true", help="a smoke test: one kill in a short run")
    arguments = parser.parse_args()
    num_steps, chance = arguments.steps, random.Random(f"goodput/{arguments.between}")
    kill_after = [chance.expovariate(1 / arguments.between) for _ in range(1000)]
    if arguments.quick:
        num_steps, kill_after = 8, [10.0]
    with tempfile.TemporaryDirectory() as place:
        killed, straight = Path(place) / "killed", Path(place) / "straight"
        num_kills = supervised(killed, num_steps, arguments.save_every, kill_after)
        supervised(straight, num_steps, arguments.save_every, [])
        with_kills, without = summary(killed), summary(straight)
        figures = {
            "kills": num_kills,
            "starts": with_kills["starts"],
            "mean_seconds_between_kills": with_kills["seconds"] / max(1, num_kills),
            "goodput": with_kills["goodput"],
            "goodput_without_kills": without["goodput"],
            "seconds_over_without_kills": with_kills["seconds"] / without["seconds"],
            "seconds_lost_per_kill": (with_kills["seconds"] - without["seconds"]) / max(1, num_kills),
            "same_losses": int(losses(killed) == losses(straight)),
            "quick": arguments.quick,
        }
    print("| kills | mean seconds between | goodput | without kills | seconds lost per kill | same losses |")
    print("| --- | --- | --- | --- | --- | --- |")
    print(
        f"| {num_kills} | {figures['mean_seconds_between_kills']:.0f} | {figures['goodput']:.1%} "
        f"| {figures['goodput_without_kills']:.1%} | {figures['seconds_lost_per_kill']:.1f} "
        f"| {'yes' if figures['same_losses'] else 'NO'} |"
    )
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
