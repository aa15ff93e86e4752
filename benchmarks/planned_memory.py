"""How far the plan's memory is from what two CPU ranks take: peak resident less the process before the model is built.

    python benchmarks/planned_memory.py --json planned_memory.json

Each case is a run of three whole steps with nearly all tokens masked (t from 0.95), made twice: with glibc giving back
at once what is freed (MALLOC_MMAP_THRESHOLD_), which shows what is in use, and as any run is started. A ratio is the
estimate over the larger of the ranks' peaks. `--quick` is a smoke test of one small case and never quoted.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass, fields, replace
from pathlib import Path

from whole_steps import DeviceWeights, WholeSteps, draw_documents

from lift_ds.config.deepspeed import read_ds_json, resolve_ds_json
from lift_ds.config.run import RunConfig
from lift_ds.config.training import OptimConfig
from lift_ds.models.llada import LLaDAConfig
from lift_ds.models.settings import LoraConfig
from lift_ds.objectives import objective_settings
from lift_ds.planning.memory import MIB, Memory, Setup, estimate
from lift_ds.ranks.launch import read_launch
from lift_ds.ranks.running import leave
from lift_ds.training.engine import start_distributed

DS_CONFIGS = Path(__file__).resolve().parents[1] / "ds_configs"
NUM_RANKS, NUM_STEPS = 2, 3
GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}


@dataclass(frozen=True)
class Case:
    """A model and how it is trained; `rank` is that of the adapters, `documents` are of a rank's micro-batch."""

    width: int = 512
    layers: int = 8
    vocabulary: int = 8192
    stage: int = 3
    length: int = 64
    documents: int = 2
    rank: int = 0
    bf16: bool = False
    checkpointed: int = 0

    def name(self) -> str:
        """Such as `zero3_512x8_v8192_2x64`."""
        more = f"{'_bf16' * self.bf16}{f'_checkpointed{self.checkpointed}' * (self.checkpointed > 0)}" + (
            f"_lora{self.rank}" * (self.rank > 0)
        )
        sizes = f"{self.width}x{self.layers}_v{self.vocabulary}_{self.documents}x{self.length}"
        return f"zero{self.stage}_{sizes}{more}"

    def config(self) -> LLaDAConfig:
        """The model's."""
        return LLaDAConfig(
            d_model=self.width,
            n_layers=self.layers,
            n_heads=self.width // 64,
            mlp_hidden_size=3 * self.width,
            vocab_size=self.vocabulary,
            mask_token_id=0,
            eos_token_id=1,
            pad_token_id=1,
        )

    def engine_json(self) -> Path:
        """The file of `ds_configs`."""
        return DS_CONFIGS / f"zero{self.stage}.json"


LARGE = Case(width=1024, vocabulary=32768)
CASES = (
    Case(),
    Case(length=512),
    Case(length=512, checkpointed=4),
    Case(length=512, checkpointed=8),
    Case(length=512, stage=2, checkpointed=8),
    Case(length=512, stage=2, bf16=True, rank=64),
    LARGE,
    replace(LARGE, stage=2),
    replace(LARGE, stage=2, bf16=True, rank=64),
    replace(LARGE, bf16=True),
)
QUICK = Case(width=256, layers=2, vocabulary=4096)


def planned(case: Case) -> Memory:
    """The estimate."""
    documents = NUM_RANKS * case.documents
    run = RunConfig(optim=OptimConfig(global_batch=documents))
    path, config = case.engine_json(), case.config()
    ds_json, _ = resolve_ds_json(read_ds_json(path)[0], path, run, NUM_RANKS, config, case.bf16)
    lora = LoraConfig(rank=case.rank)
    return estimate(
        Setup(config, lora, ds_json, NUM_RANKS, case.checkpointed, case.documents, case.length, False, is_cpu=True)
    )


def status(key: str) -> int:
    """Bytes that /proc says of this process."""
    found = re.search(rf"{key}:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def measure(case: Case, folder: Path) -> None:
    """On each rank: takes the steps and writes the peak beside the others'."""
    launch = read_launch()
    start_distributed(launch)
    config = case.config()
    gc.collect()
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
    steps = WholeSteps(
        config,
        DeviceWeights(config),
        case.engine_json(),
        objective_settings(method="vanilla", t_min=0.95),
        NUM_RANKS * case.documents,
        NUM_RANKS,
        LoraConfig(rank=case.rank),
        case.checkpointed,
        has_bf16=case.bf16,
    )
    for number in range(NUM_STEPS):
        lengths = [case.length] * case.documents
        steps.step(draw_documents(lengths, 0.0, case.vocabulary, (launch.rank, number)), number)
    (folder / f"{launch.rank}.txt").write_text(str(status("VmHWM") - before))
    steps.engine.barrier()
    leave(0)


def measured(case: Case, environment: dict[str, str]) -> int:
    """The larger peak of two ranks in bytes."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(NUM_RANKS), "--standalone"]
        values = json.dumps({field.name: getattr(case, field.name) for field in fields(case)})
        done = subprocess.run(
            [*command, __file__, "--case", values, "--folder", folder],
            env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        peaks = [int(path.read_text()) for path in Path(folder).glob("*.txt")]
        if done.returncode or len(peaks) != NUM_RANKS:
            sys.exit(done.stdout[-4000:])
        return max(peaks)


def main() -> None:
    """Compares every case and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--quick", action="store_true", help="a smoke test of one small case")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case is not None:
        measure(Case(**json.loads(arguments.case)), arguments.folder)
        return
    figures: dict[str, float | bool] = {"quick": arguments.quick}
    print("| run | estimated, MiB | in use | ratio | as started | ratio | where |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | --- |")
    for case in [QUICK] if arguments.quick else CASES:
        memory = planned(case)
        moments = memory.moments()
        where = max(moments, key=lambda name: moments[name])
        in_use, as_started = measured(case, GIVE_BACK), measured(case, {})
        cells = [f"{peak / MIB:,.0f} | {memory.peak / peak:.3f}" for peak in (in_use, as_started)]
        print("|", " | ".join([case.name(), f"{memory.peak / MIB:,.0f}", *cells, where]), "|", flush=True)
        named = {"estimated_mib": memory.peak, "in_use_mib": in_use, "as_started_mib": as_started}
        figures |= {f"{case.name()}/{name}": value / MIB for name, value in named.items()}
        ratios = {"in_use_ratio": memory.peak / in_use, "as_started_ratio": memory.peak / as_started}
        figures |= {f"{case.name()}/{name}": value for name, value in ratios.items()}
        if arguments.json:
            arguments.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
