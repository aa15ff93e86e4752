"""Every extra of `setup.cfg` and the plain package, each installed from nothing and used for what it is for.

    python -m tests.extras             all, one after the other: a table, and 1 where something failed
    python -m tests.extras plain eval  these alone

Each gets a new environment, gone when it was tried. No package cache of the machine is used, and no compiler can be
found while pip runs: an extra that wants to build a language runtime fails. The paths of the environment, of the source
and of the empty folder where the commands run have a space and an umlaut. Needs Python and git alone.
"""

from __future__ import annotations

import argparse
import configparser
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from dataclasses import dataclass, field
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
PLAIN = "plain"
TASK = """task: sums
dataset_path: json
dataset_kwargs: {data_files: sums.jsonl}
test_split: train
output_type: multiple_choice
doc_to_text: question
doc_to_choice: [" 7", " 8"]
doc_to_target: 0
"""
FILES = {
    "rows.jsonl": "".join(f'{{"prompt": "{n}+1=", "response": "{n}+1={n + 1}"}}\n' for n in range(20)),
    "answers.jsonl": '{"question": "?", "generation": "\\\\boxed{\\\\frac{1}{2}}", "ground_truth": "0.5"}\n',
    "sums.jsonl": '{"question": "3+4="}\n',
    "tasks/sums.yaml": TASK,
}
"""What lies in the folder where the commands run."""
DEFAULT = (
    '--deepspeed "$SOURCE"/ds_configs/zero3.json optim.steps=2 optim.global_batch=4 eval.every=0 eval.rows=4'
    " eval.solve_items=0"
)
TRAIN = f"{DEFAULT} --data rows.jsonl"
PROOFS = {
    PLAIN: [
        "python -c 'import lift_ds; lift_ds.load_pretrained'",
        "lift-ds --help",
        "lift-ds train --help",
        "lift-ds generate builtin:base --prompt 'Work out 3+4-2.' --gen-length 32",
        f"lift-ds train {DEFAULT} output=default",
        f"lift-ds train {TRAIN} output=run",
        f'python -m deepspeed.launcher.runner --num_gpus 2 "$SOURCE"/launchers/train.py {TRAIN} output=two',
    ],
    "test": ['cd "$SOURCE" && pytest --collect-only', 'cd "$SOURCE" && pytest tests/test_style.py'],
    "gpu": ["python -c 'from lift_ds.models.kernels import liger_kernels; liger_kernels()'"],
    "report": [
        "lift-ds learnability builtin:base --data rows.jsonl --output page eval.rows=4",
        "test -s page/learnability.png",
    ],
    "bench": ["python -c 'import gguf'", 'python "$SOURCE"/benchmarks/data.py --quick --only datasets'],
    "eval": [
        "lift-ds score answers.jsonl --task math500 --scorer strict",
        "lift-ds lm-eval --model lift_ds --model_args pretrained=builtin:base --include_path tasks --tasks sums",
    ],
}
"""Shell commands that fail where the extra does not give what it is for."""


@dataclass
class Outcome:
    """What became of an extra: seconds, MiB, how many packages, and which were built from source."""

    extra: str
    install_seconds: float = 0.0
    proof_seconds: float = 0.0
    mib: float = 0.0
    num_packages: int = 0
    built: list[str] = field(default_factory=list)
    failure: str = ""

    def row(self) -> str:
        """Its line of the table."""
        return (
            f"{self.extra:8}{self.install_seconds:>10.0f} s{self.proof_seconds:>9.0f} s{self.mib:>8.0f}"
            f"{self.num_packages:>10}  {'FAILED' if self.failure else 'ok':7} {', '.join(self.built)}"
        )


def declared_extras() -> list[str]:
    """The plain package, and the extras of `setup.cfg`."""
    parser = configparser.ConfigParser()
    parser.read(REPOSITORY / "setup.cfg", encoding="utf-8")
    return [PLAIN, *parser["options.extras_require"]]


def copy_tracked(target: Path) -> None:
    """Copies the files that git knows, without what earlier builds left beside them."""
    for name in subprocess.check_output(["git", "ls-files", "-z"], cwd=REPOSITORY, text=True).split("\0"):
        if (REPOSITORY / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPOSITORY / name, target / name)


def run_step(command: list[str], folder: Path, environment: dict[str, str]) -> str:
    """Runs a command; its last lines where it failed, else nothing."""
    done = subprocess.run(
        command, cwd=folder, env=environment, text=True, errors="replace", stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )  # fmt: skip
    tail = "\n".join(done.stdout.splitlines()[-40:])
    return f"{tail}\nexit status {done.returncode} of: {command[-1]}" if done.returncode else ""


def install(outcome: Outcome, python: Path, source: Path, environment: dict[str, str]) -> None:
    """What README says, with the tested versions; notes what pip brought."""
    report = python.parent / "report.json"
    target = str(source) if outcome.extra == PLAIN else f"{source}[{outcome.extra}]"
    command = [str(python), "-m", "pip", "install", "--progress-bar", "off", "--report", str(report)]
    command += ["--constraint", str(source / "constraints.txt"), target]
    outcome.failure = run_step(command, source, environment | {"CC": "false", "CXX": "false"})
    if not outcome.failure:
        brought = json.loads(report.read_text(encoding="utf-8"))["install"]
        outcome.num_packages = len(brought)
        from_source = [item for item in brought if not item["download_info"]["url"].endswith((".whl", source.name))]
        outcome.built = sorted(item["metadata"]["name"] for item in from_source)


def try_extra(extra: str, work: Path, source: Path, commands: list[str]) -> Outcome:
    """Makes the environment, installs, runs the commands, and removes all of it."""
    outcome, place, folder = Outcome(extra), work / extra, work / f"Läufe {extra}"
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    environment |= {
        "PATH": f"{place / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "PIP_CACHE_DIR": str(work / "pip"),
        "TORCH_EXTENSIONS_DIR": str(work / "extensions"),
        "SOURCE": str(source),
    }
    began = time.monotonic()
    venv.create(place, with_pip=True)
    install(outcome, place / "bin" / "python", source, environment)
    outcome.install_seconds = time.monotonic() - began
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    began = time.monotonic()
    for command in commands:
        if not outcome.failure:
            print(f"  {command}", flush=True)
            outcome.failure = run_step(["bash", "-c", command], folder, environment)
    outcome.proof_seconds = time.monotonic() - began
    outcome.mib = sum(path.stat().st_size for path in place.rglob("*") if path.is_file()) / 2**20
    shutil.rmtree(place)
    shutil.rmtree(folder)
    return outcome


def main() -> None:
    """Tries the extras and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("extras", nargs="*", metavar="EXTRA")
    chosen, outcomes = parser.parse_args().extras or declared_extras(), []
    if unknown := [extra for extra in chosen if extra not in declared_extras()]:
        parser.error(f"no extra {', '.join(unknown)}; setup.cfg has {', '.join(declared_extras())}")
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder) / "für lift_ds"
        copy_tracked(work / "source")
        for extra in chosen:
            print(f"{extra}: a new environment", flush=True)
            outcomes.append(try_extra(extra, work, work / "source", PROOFS[extra]))
            print(outcomes[-1].failure or f"{extra}: ok", flush=True)
    end_with_table(outcomes)


def end_with_table(outcomes: list[Outcome]) -> None:
    """Prints what became of each, and ends with 1 where something failed."""
    print(f"\n{'extra':8}{'install':>12}{'commands':>11}{'MiB':>8}{'packages':>10}  {'':7} built from source")
    print("\n".join(outcome.row() for outcome in outcomes))
    sys.exit(any(outcome.failure for outcome in outcomes))


if __name__ == "__main__":
    main()
