"""One command for a machine with one GPU: is training right there, how fast is it, and where does the time go.

    python benchmarks/gpu/run.py --out gpu_results
    python benchmarks/gpu/run.py --quick --device cpu --out /tmp/quick

Parts run one after the other, each in a process of its own with a time limit: what is right first, then speed, then a
profile. What a part found is written as soon as it ends (`parts.json`), and a second call with the same commit and
device goes on with those that are missing or failed. No network; weights are random, and drawn on the device. At the
end `gpu.json` has the figures, flat, and `gpu.md` the tables. `--quick` runs everything with small shapes, and is never
quoted.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
sys.path.insert(0, str(HERE.parent))

LIMITS = {
    "conformance": 60,
    "gradients": 90,
    "far_scores": 60,
    "packed_is_alone": 60,
    "blocks": 60,
    "sync": 90,
    "bf16_head": 30,
    "lora_8b": 120,
    "lora_8b_checkpointed": 120,
    "stages": 120,
    "resume": 90,
    "short": 100,
    "full_1b": 80,
    "kernels": 90,
}
"""Parts in the order in which they run, and the seconds that each may take; all of them end within `--minutes`."""


def main() -> None:
    """Runs the parts that are missing, and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu_results"), help="folder for what is found")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="what computes")
    parser.add_argument("--only", nargs="+", choices=list(LIMITS), default=list(LIMITS), help="which parts")
    parser.add_argument("--minutes", type=float, default=10.0, help="time for all parts")
    parser.add_argument("--json", type=Path, help="another file for the figures")
    parser.add_argument("--quick", action="store_true", help="small shapes, never quoted")
    parser.add_argument("--part", choices=list(LIMITS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        run_part(arguments.part, arguments.device, arguments.quick, arguments.out)
        return
    arguments.out.mkdir(parents=True, exist_ok=True)
    machine = describe_machine(arguments.device, arguments.quick)
    found = read_found(arguments.out, machine)
    ends = time.monotonic() + 60 * arguments.minutes
    for name in LIMITS:
        seconds = min(LIMITS[name] * (3 if arguments.quick else 1), ends - time.monotonic())
        if name not in arguments.only or "failed" not in found.get(name, {"failed": ""}):
            continue
        if seconds < 5:
            found[name] = {"failed": "no time left; run the command again"}
        else:
            found[name] = start_part(name, arguments.device, arguments.quick, arguments.out, seconds)
        print(f"{name:22} {summary(found[name])}", flush=True)
        write(arguments.out / "parts.json", {"machine": machine, "parts": found})
    from page import flat, render

    figures = flat(machine, found)
    for path in filter(None, [arguments.out / "gpu.json", arguments.json]):
        write(path, figures)
    (arguments.out / "gpu.md").write_text(render(figures), encoding="utf-8")
    failed = [name for name in arguments.only if "failed" in found.get(name, {"failed": ""})]
    if failed:
        sys.exit(f"failed: {', '.join(failed)}; see {arguments.out / 'parts.json'}")


def run_part(name: str, device_name: str, is_quick: bool, out: Path) -> None:
    """One part in this process: its figures and notes go to a file of the folder."""
    import blocks
    import correctness
    import throughput
    import torch
    import waits

    from lift_ds.ranks.running import leave

    device = torch.device(device_name)
    notes: list[str] = []
    checks = correctness.PARTS | {"blocks": blocks.blocks, "sync": waits.sync}
    if name in checks:
        figures = checks[name](device, is_quick)
    else:
        throughput.start(device)
        part, checkpointed = throughput.PARTS[name]
        figures = part(device, is_quick, checkpointed, notes.append)
    write(out / "part.json", {"figures": figures, "notes": notes})
    if torch.distributed.is_initialized():
        leave(0)


def start_part(name: str, device: str, is_quick: bool, out: Path, seconds: float) -> dict[str, Any]:
    """A part in a process of its own: its figures, notes and seconds, or how it failed."""
    result = out / "part.json"
    result.unlink(missing_ok=True)
    command = [sys.executable, str(HERE / "run.py"), "--part", name, "--device", device, "--out", str(out)]
    command += ["--quick"] * is_quick
    environment = os.environ | {
        "PYTHONPATH": f"{REPOSITORY}:{os.environ.get('PYTHONPATH', '')}",
        "PYTHONWARNINGS": "ignore",
    }
    if device == "cpu":
        environment |= {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    began = time.monotonic()
    try:
        done = subprocess.run(
            command, env=environment, timeout=seconds, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
    except subprocess.TimeoutExpired as error:
        return {"failed": f"not done within {seconds:.0f} s", "output": tail(error.stdout)}
    spent = round(time.monotonic() - began, 1)
    if done.returncode or not result.is_file():
        return {"failed": f"ended with {done.returncode} after {spent} s", "output": tail(done.stdout)}
    found = json.loads(result.read_text()) | {"seconds": spent}
    result.unlink()
    return dict(found)


def tail(output: str | bytes | None) -> str:
    """The end of what a process printed."""
    text = output.decode(errors="replace") if isinstance(output, bytes) else output or ""
    return text[-4000:]


def describe_machine(device: str, is_quick: bool) -> dict[str, Any]:
    """What is measured, and on what; results of another machine or commit are not gone on with."""
    import torch

    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    git = ["git", "-C", str(REPOSITORY), "rev-parse", "--short=7", "HEAD"]
    done = subprocess.run(git, text=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    commit = done.stdout.strip() or os.environ.get("LIFT_DS_COMMIT", "unknown")
    return {
        "device": name,
        "torch": torch.__version__,
        "commit": commit,
        "quick": is_quick,
        "date": time.strftime("%F"),
    }


def read_found(out: Path, machine: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What earlier calls found, on the same machine and commit."""
    path = out / "parts.json"
    if not path.is_file():
        return {}
    stored = json.loads(path.read_text())
    keys = ("device", "torch", "commit", "quick")
    return stored["parts"] if all(stored["machine"][key] == machine[key] for key in keys) else {}


def summary(found: dict[str, Any]) -> str:
    """A part in one line."""
    if "failed" in found:
        last = found.get("output", "").strip().splitlines()[-1:]
        return f"FAILED: {found['failed']} {' '.join(last)}"
    figures = ", ".join(f"{name} {value:.4g}" for name, value in found["figures"].items())
    return f"{found['seconds']:.0f} s: {figures}"


def write(path: Path, content: dict[str, Any]) -> None:
    """JSON, whole or not at all."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)


if __name__ == "__main__":
    main()
