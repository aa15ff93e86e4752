"""A plan as a table: memory by part, what it costs, and what to change where it does not fit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

from lift_ds.config.deepspeed import MICRO_BATCH, rows_per_micro_batch
from lift_ds.models.settings import LoraConfig

from .costs import Rates, checkpoint_bytes, step_seconds, wire_bytes
from .memory import GIB, Memory, Setup, estimate, standing

USABLE = 0.95  # of a GPU's memory: the rest is lost between blocks
LORA_RANK = 128
PROCESS_GIB = {True: 0.7, False: 3.0}  # a rank's process in host memory: measured on a CPU, assumed with CUDA


@dataclass(frozen=True)
class Plan:
    """What a run will need.

    Args:
        setup: How it trains.
        num_nodes: Machines.
        num_micro_batches: Of a step, on a rank.
        gpu_gib: Memory of a GPU.
        rates: What is assumed of the machines.
    """

    setup: Setup
    num_nodes: int
    num_micro_batches: int
    gpu_gib: float
    rates: Rates

    @cached_property
    def memory(self) -> Memory:
        """Of a rank; runs the passes on the meta device when it is first asked for."""
        return estimate(self.setup)

    @property
    def fits(self) -> bool:
        """Whether the memory of a GPU suffices."""
        return self.memory.peak <= USABLE * self.gpu_gib * GIB

    def require_room(self) -> None:
        """Says, before weights are read, that they cannot be trained here.

        Raises:
            ValueError: What stays and an update, without any activation, take more than the memory of a GPU.
        """
        memory = standing(self.setup)
        least = max(sum(memory.kept.values()), memory.moments().get("update", 0.0)) / GIB
        if least > self.gpu_gib:
            parts = ", ".join(f"{name} {value / GIB:.1f}" for name, value in memory.kept.items())
            raise ValueError(
                f"the model cannot be trained here: a GPU has {self.gpu_gib:.1f} GiB, and without any activation "
                f"{least:.1f} GiB are needed ({parts}).\n" + "\n".join(self.remedies())
            )

    def host_gib(self) -> float:
        """Host memory of a node while training."""
        ranks = self.setup.world_size / self.num_nodes
        device = self.memory.peak if self.setup.is_cpu else 0.0
        return ranks * (PROCESS_GIB[self.setup.is_cpu] + (sum(self.memory.host.values()) + device) / GIB)

    def figures(self) -> dict[str, float | bool]:
        """Everything as numbers, flat, for programs."""
        gib = {f"{name} GiB".replace(" ", "_"): value / GIB for name, value in self.memory.kept.items()}
        gib |= {f"{name} GiB".replace(" ", "_"): value / GIB for name, value in self.memory.moments().items()}
        seconds, wire = step_seconds(self.setup, self.num_micro_batches, self.num_nodes, self.rates)
        return gib | {
            "peak_GiB": self.memory.peak / GIB,
            "fits": self.fits,
            "host_GiB_a_node": self.host_gib(),
            "checkpoint_GiB": self.checkpoint() / GIB,
            "wire_GiB_a_step": wire_bytes(self.setup, self.num_micro_batches) / GIB,
            "compute_seconds": seconds,
            "wire_seconds": wire,
        }

    def checkpoint(self) -> int:
        """Bytes of a checkpoint."""
        sizes = self.setup.sizes()
        return checkpoint_bytes(sizes.trained if self.setup.lora.rank else sizes.total, sizes.trained)

    def lines(self) -> Iterator[str]:
        """The table."""
        setup, memory, rates = self.setup, self.memory, self.rates
        sizes = setup.sizes()
        device = "rank" if setup.is_cpu else "GPU"
        yield (
            f"plan: {sizes.total / 1e6:,.1f} M parameters, {sizes.trained / 1e6:,.1f} M trained, ZeRO-{setup.stage} on "
            f"{plural(setup.world_size, device)} of {plural(self.num_nodes, 'node')}, micro-batch "
            f"{setup.num_documents} x {setup.length} tokens at most, {self.num_micro_batches} a step"
        )
        yield f"  memory of a {device}, estimated{'':30}GiB"
        for name, value in memory.kept.items():
            yield row(name, value)
        for moment, total in memory.moments().items():
            inside = memory.passes[moment].items()
            detail = ", ".join(f"{name} {value / GIB:.2f}" for name, value in inside if value >= 0.005 * GIB)
            yield row(f"most in the {moment}", total, detail)
        verdict = "fits" if self.fits else "DOES NOT FIT"
        limit = "" if setup.is_cpu else f"{verdict} in {USABLE:.0%} of {self.gpu_gib:g} GiB"
        yield row("peak", memory.peak, limit)
        seconds, wire = step_seconds(setup, self.num_micro_batches, self.num_nodes, rates)
        held = sum(memory.host.values()) / GIB
        yield f"  host memory of a node {self.host_gib():.1f} GiB ({held:.1f} a rank offloaded)"
        yield f"  disk for a checkpoint {self.checkpoint() / GIB:.1f} GiB"
        moved = wire_bytes(setup, self.num_micro_batches) / GIB
        gbytes = rates.node_gbytes if self.num_nodes == 1 else rates.network_gbytes
        yield f"  a {device} receives {moved:.1f} GiB a step, {wire:.2f} s at {gbytes:g} GB/s"
        if not setup.is_cpu:
            yield (
                f"  a step takes {max(seconds, wire):.2f} to {seconds + wire:.2f} s: {seconds:.2f} s of arithmetic at "
                f"{rates.mfu:.0%} of {rates.peak_tflops:g} TFLOP/s (assumed)"
            )
        if not self.fits and not setup.is_cpu:
            yield from self.remedies()

    def remedies(self) -> Iterator[str]:
        """What would make it fit, with the peak that each change leaves."""
        for change, setup in alternatives(self.setup):
            peak = estimate(setup).peak / GIB
            if peak < self.memory.peak / GIB:
                verdict = "fits" if peak <= USABLE * self.gpu_gib else "not enough alone"
                yield f"  change {change}: {peak:.1f} GiB, {verdict}"


def plural(count: int, what: str) -> str:
    """Such as `8 GPUs`."""
    return f"{count} {what}{'' if count == 1 else 's'}"


def row(name: str, value: float, detail: str = "") -> str:
    """A line of the table."""
    return f"    {name:34} {value / GIB:20.2f}" + (f"  {detail}" if detail else "")


def alternatives(setup: Setup) -> Iterator[tuple[str, Setup]]:
    """Changes that lower the peak, cheapest first, each alone, then all of them together."""
    changes = list(_changes(setup))
    for _, text, changed in changes:
        yield text, changed
    if len(changes) > 1:
        together = setup
        for name, _, _ in changes:
            together = next((changed for other, _, changed in _changes(together) if other == name), together)
        yield "all of these", together


def _changes(setup: Setup) -> Iterator[tuple[str, str, Setup]]:
    if not setup.has_checkpointing:
        yield "checkpointing", "model.gradient_checkpointing=true", replace(setup, has_checkpointing=True)
    if setup.num_documents > 1:
        by_tokens = rows_per_micro_batch(setup.ds_json) is None
        change = f"data.micro_batch_tokens={setup.length}" if by_tokens else f"{MICRO_BATCH} to 1 in the JSON"
        yield "micro", change, replace(setup, num_documents=1)
    if setup.stage < 3 and setup.world_size > 1:
        yield "stage", "--deepspeed to ds_configs/zero3.json", setup.with_zero(stage=3)
    if not setup.is_offloaded("optimizer"):
        offloaded = setup.with_zero(offload_optimizer={"device": "cpu"})
        yield "offload", "zero_optimization.offload_optimizer.device to cpu in the JSON", offloaded
    if not setup.lora.rank:
        lora = LoraConfig(rank=LORA_RANK)
        yield "lora", f"lora.rank={LORA_RANK}", replace(setup, lora=lora)
