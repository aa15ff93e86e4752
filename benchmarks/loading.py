"""Loading under ZeRO-3 on two ranks: every rank reads its own bytes, against transformers' own path.

    python benchmarks/loading.py --json loading.json

Writes two folders of 1.5 GB with random bf16 weights in shards of 500 MB: one in LLaDA's public layout, and one with
the same shapes in Llama's, which transformers has. Ours is `SafetensorsFolder` and `build_model`; the baseline is
`LlamaForCausalLM.from_pretrained` with a live `HfDeepSpeedConfig` (rank 0 maps the shards and broadcasts). Both have
two fresh processes a load, everything imported before; loads are interleaved, with the page cache warm (both folders
read just before) and cold (`posix_fadvise` DONTNEED; what then came from the disk is in the table).

- `bytes_read_ratio`: the largest rank's bytes by read calls (rchar of /proc/self/io, while loading) over 1/N of the
  weights' bytes. 1.0 is exactly 1/N.
- `peak_beyond_partition_mib`: the largest rank's peak resident memory (VmHWM, reset before loading) beyond what was
  there before and beyond the bytes of its partition. VmHWM also counts mapped pages of files, so it is an upper bound
  of private memory; the baseline's private memory alone is sampled (RssAnon, every 2 ms).
- `time_ratio`, `time_ratio_cold`: medians of seconds, between barriers of all ranks, ours over the baseline's.

Each rank compares two of its loaded ranges with the file, bit by bit. `--quick` is a smoke test with small shapes and
never quoted.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lift_ds.models.families import read_config
from lift_ds.models.llada import LLaDAConfig
from lift_ds.models.weights import NewWeights, whole_shape
from lift_ds.storage.safetensors_file import ShardWriter
from lift_ds.storage.safetensors_folder import SafetensorsFolder
from lift_ds.storage.stored_tensor import TensorSpec

NUM_RANKS = 2
SHARD_BYTES = 500_000_000
MIB = 2**20
VARIANTS = ("ours", "transformers")
LLAMA_NAMES = {
    "model.transformer.wte.": "model.embed_tokens.",
    "model.transformer.ln_f.": "model.norm.",
    "model.transformer.ff_out.": "lm_head.",
    "model.transformer.blocks.": "model.layers.",
    ".attn_norm.": ".input_layernorm.",
    ".ff_norm.": ".post_attention_layernorm.",
    ".attn_out.": ".self_attn.o_proj.",
    ".ff_proj.": ".mlp.gate_proj.",
    ".up_proj.": ".mlp.up_proj.",
    ".ff_out.": ".mlp.down_proj.",
    **{f".{name}_proj.": f".self_attn.{name}_proj." for name in "qkv"},
}


def make_folders(root: Path, is_quick: bool) -> int:
    """Writes both folders; returns the bytes of the weights of one."""
    width, num_layers, mlp, vocab = (128, 2, 384, 4000) if is_quick else (2048, 11, 6144, 36_000)
    sizes: dict[str, Any] = {"vocab_size": vocab, "rms_norm_eps": 1e-5, "eos_token_id": 1, "pad_token_id": 1}
    llada = LLaDAConfig(d_model=width, n_layers=num_layers, n_heads=16, mlp_hidden_size=mlp, mask_token_id=0, **sizes)
    llama = LlamaConfig(
        hidden_size=width, num_hidden_layers=num_layers, num_attention_heads=16, intermediate_size=mlp, **sizes
    )
    specs = {name: TensorSpec(shape, torch.bfloat16) for name, shape in NewWeights(llada, 0).shapes().items()}
    for variant, config in zip(VARIANTS, (llada, llama), strict=True):
        config.save_pretrained(root / variant)
        named = {name if variant == "ours" else llama_name(name): spec for name, spec in specs.items()}
        generator = torch.Generator().manual_seed(0)
        with ShardWriter(root / variant, named, 5_000_000 if is_quick else SHARD_BYTES) as writer:
            for name, spec in named.items():
                writer.write(name, torch.randn(spec.shape, generator=generator, dtype=torch.float32) * 0.02)
    return sum(spec.num_bytes for spec in specs.values())


def llama_name(name: str) -> str:
    """Llama's name of one of LLaDA's weights."""
    for ours, theirs in LLAMA_NAMES.items():
        name = name.replace(ours, theirs)
    return name


def memory_bytes(field: str) -> int:
    """A field of this process's status: `VmRSS`, `VmHWM`, `RssAnon`, `RssFile`."""
    return int(Path("/proc/self/status").read_text().split(f"{field}:")[1].split()[0]) * 1024


def io_bytes(field: str) -> int:
    """A counter of this process: `rchar` (read calls), `read_bytes` (from the disk)."""
    return int(Path("/proc/self/io").read_text().split(f"{field}: ")[1].split()[0])


class PeakSampler(threading.Thread):
    """The largest private memory of this process, sampled every 2 ms until `stop` is set."""

    def __init__(self) -> None:
        """Starts it."""
        super().__init__(daemon=True)
        self.stop = threading.Event()
        self.peak = memory_bytes("RssAnon")
        self.start()

    def run(self) -> None:
        """Samples."""
        while not self.stop.wait(0.002):
            self.peak = max(self.peak, memory_bytes("RssAnon"))


def probe(variant: str, folder: Path, output: Path) -> None:
    """One load on this rank, measured; rank 0 writes what all ranks found."""
    from transformers.integrations import HfDeepSpeedConfig

    from lift_ds.ranks.launch import read_launch
    from lift_ds.ranks.running import leave
    from lift_ds.training.engine import build_model, start_distributed

    launch = read_launch()
    start_distributed(launch)
    ds_json: dict[str, Any] = {"zero_optimization": {"stage": 3}, "bf16": {"enabled": True}}
    ds_json["train_micro_batch_size_per_gpu"] = 1
    live = HfDeepSpeedConfig(ds_json) if variant == "transformers" else None  # counts for as long as it lives
    torch.distributed.barrier()
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew
    before = {name: memory_bytes(name) for name in ("VmRSS", "RssAnon")}
    counters = {name: io_bytes(name) for name in ("rchar", "read_bytes")}
    sampler = PeakSampler() if variant == "transformers" else None  # each sample is a read call, so not in ours
    began = time.perf_counter()
    if live is None:
        model = build_model(read_config(folder), SafetensorsFolder(folder), ds_json, str(folder))
    else:
        model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    torch.distributed.barrier()
    measured = {"seconds": time.perf_counter() - began}
    measured |= {name: io_bytes(name) - value for name, value in counters.items()}
    if sampler is not None:
        sampler.stop.set()
    measured["resident_peak"] = memory_bytes("VmHWM") - before["VmRSS"]
    measured["private_peak"] = measured["resident_peak"] if sampler is None else sampler.peak - before["RssAnon"]
    parts: list[torch.Tensor] = [getattr(parameter, "ds_tensor") for parameter in model.parameters()]  # noqa: B009
    measured["partition"] = sum(part.numel() * part.element_size() for part in parts)
    check_values(model, folder)
    everyone: list[Any] = [None] * launch.world_size
    torch.distributed.all_gather_object(everyone, measured)
    if launch.is_main:
        output.write_text(json.dumps(everyone))
    leave(0)


def check_values(model: torch.nn.Module, folder: Path) -> None:
    """Compares this rank's ranges of the first and the last parameter with the file, bit by bit."""
    source = SafetensorsFolder(folder)
    named: list[tuple[str, Any]] = list(model.named_parameters())
    for name, parameter in (named[0], named[-1]):
        start = parameter.ds_tensor.numel() * parameter.ds_zero_partition_rank
        mine = source.tensor(name).flatten()[start : start + parameter.ds_tensor.numel()]
        assert whole_shape(parameter) == source.shapes()[name] and torch.equal(parameter.ds_tensor[: len(mine)], mine)


def load_once(root: Path, variant: str, is_cold: bool) -> dict[str, float]:
    """One load in fresh processes; the largest value of the ranks."""
    for path in sorted((root / variant).glob("*.safetensors")):
        with open(path, "rb", buffering=0) as file:
            if is_cold:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            while not is_cold and file.read(8 * MIB):
                pass
    output = root / "found.json"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(NUM_RANKS)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": os.environ.get("DS_ACCELERATOR", "cpu")}
    probing = [__file__, "--probe", variant, str(root / variant), str(output)]
    done = subprocess.run(
        [*command, *probing], env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    if done.returncode:
        raise RuntimeError(f"loading with {variant} failed:\n{done.stdout[-4000:]}")
    ranks = json.loads(output.read_text())
    return {name: max(rank[name] for rank in ranks) for name in ranks[0]}


def main() -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="loads of each kind")
    parser.add_argument("--folder", type=Path, help="where 3 GB are written and removed; default: the temporary folder")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--quick", action="store_true", help="a smoke test with small shapes")
    parser.add_argument("--probe", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.probe:
        variant, folder, output = arguments.probe
        probe(variant, Path(folder), Path(output))
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        root = Path(name)
        num_bytes = make_folders(root, arguments.quick)
        loads: dict[tuple[str, bool], list[dict[str, float]]] = {}
        for number in range(1 if arguments.quick else arguments.rounds):
            for is_cold in (False, True):
                for variant in VARIANTS if number % 2 == 0 else reversed(VARIANTS):
                    loads.setdefault((variant, is_cold), []).append(load_once(root, variant, is_cold))
    report(loads, num_bytes, arguments.quick, arguments.json)


def report(
    loads: dict[tuple[str, bool], list[dict[str, float]]], num_bytes: int, is_quick: bool, path: Path | None
) -> None:
    """Prints the table and writes the figures."""
    print(f"{num_bytes / 1e9:.2f} GB of weights, {NUM_RANKS} ranks, {len(loads['ours', False])} loads of each kind")
    print(
        f"{'':22}{'seconds':>9}{'by read calls':>15}{'from disk':>11}{'beyond partition: resident':>28}{'private':>9}"
    )
    seconds: dict[tuple[str, bool], float] = {}
    for (variant, is_cold), runs in loads.items():
        seconds[variant, is_cold] = statistics.median(run["seconds"] for run in runs)
        peaks = [max(run[name] - run["partition"] for run in runs) for name in ("resident_peak", "private_peak")]
        label = variant + (", cold" if is_cold else ", warm")
        called, disk = (max(run[name] for run in runs) / MIB for name in ("rchar", "read_bytes"))
        print(
            f"{label:22}{seconds[variant, is_cold]:>9.2f}{called:>12.1f}{disk:>8.0f}"
            f"{peaks[0] / MIB:>18.1f}{peaks[1] / MIB:>9.1f}"
        )
    ours = [run for is_cold in (False, True) for run in loads["ours", is_cold]]
    theirs = [run for is_cold in (False, True) for run in loads["transformers", is_cold]]
    figures = {
        "quick": is_quick,
        "bytes_read_ratio": max(run["rchar"] for run in ours) / (num_bytes / NUM_RANKS),
        "peak_beyond_partition_mib": max(run["resident_peak"] - run["partition"] for run in ours) / MIB,
        "baseline_private_beyond_partition_mib": max(run["private_peak"] - run["partition"] for run in theirs) / MIB,
        "time_ratio": seconds["ours", False] / seconds["transformers", False],
        "time_ratio_cold": seconds["ours", True] / seconds["transformers", True],
        "seconds": seconds["ours", False],
        "baseline_seconds": seconds["transformers", False],
    }
    for name, value in figures.items():
        print(f"{name:40}{value if isinstance(value, bool) else format(value, '.4f')}")
    if path:
        path.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
