"""The package with the oldest versions that it allows: images for GPUs hold a torch that is months old.

    python -m tests.versions

makes a new environment (7 GB, gone afterwards) with the versions below and else those of `constraints.txt`, and there
imports every module, trains two steps on one rank and on two, runs the first parts of the GPU benchmark on the CPU, and
the tests of what computes. Needs Python and git alone.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

from tests.extras import TRAIN, copy_tracked, end_with_table, try_extra

OLDEST = {
    "torch": "2.11.0",
    "transformers": "5.17.0",
    "huggingface_hub": "1.33.0",  # transformers 5.17 takes no 2
    "setuptools": "81.0.0",  # torch 2.11 takes no later one
}
VERSIONS = [f"{name}=={version}" for name, version in OLDEST.items()]
IMPORT_ALL = """
import importlib, importlib.metadata, pkgutil, sys, lift_ds
for name, wanted in (pair.split("==") for pair in sys.argv[1:]):
    found = importlib.metadata.version(name).split("+")[0]
    assert found == wanted, f"{name}: {found} was installed, not {wanted}"
names = [module.name for module in pkgutil.walk_packages(lift_ds.__path__, "lift_ds.")]
for name in names:
    importlib.import_module(name)
assert len(names) > 100, names
"""
LAUNCH = "python -m deepspeed.launcher.runner"
PROOFS = [
    f"python -c '{IMPORT_ALL}' {' '.join(VERSIONS)}",
    f"lift-ds train {TRAIN} output=one",
    f'{LAUNCH} --num_gpus 2 --master_port 29517 "$SOURCE"/launchers/train.py {TRAIN} output=two',
    'python "$SOURCE"/benchmarks/gpu/run.py --quick --device cpu --only conformance packed_is_alone --out gpu',
    'cd "$SOURCE" && pytest tests/models tests/method tests/objectives tests/training/test_step.py',
]
"""Shell commands that fail where a version lacks something."""


def constrain(constraints: Path) -> None:
    """Puts the oldest versions in the place of the pinned ones.

    Raises:
        ValueError: One of them is not pinned there.
    """
    text = constraints.read_text(encoding="utf-8")
    for name, version in OLDEST.items():
        text, count = re.subn(rf"^{name}==.*$", f"{name}=={version}", text, flags=re.MULTILINE)
        if count != 1:
            raise ValueError(f"{constraints} pins {name} {count} times, not once")
    constraints.write_text(text, encoding="utf-8")


def main() -> None:
    """Tries them."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        copy_tracked(work / "source")
        constrain(work / "source" / "constraints.txt")
        print(f"a new environment with {', '.join(VERSIONS)}", flush=True)
        outcome = try_extra("test", work, work / "source", PROOFS)
    print(outcome.failure)
    end_with_table([outcome])


if __name__ == "__main__":
    main()
