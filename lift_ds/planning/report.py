"""A plan as a table: memory by part, what it costs, and what to change where it does not fit."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

from lift_ds.config.deepspeed import MICRO_BATCH, rows_per_micro_batch
from lift_ds.models.settings import LoraConfig

from .costs import Rates, checkpoint_bytes, received_in_step, step_seconds
from .memory import GIB, Memory, Setup, estimate, standing

USABLE = 0.95  # of a GPU's memory: the rest is lost between blocks
LORA_RANK = 128
PROCESS_GIB = {True: 0.7, False: 3.0}  # a rank's process in host memory: measured on a CPU, assumed with CUDA


@dataclass(frozen=True)
class Longest:
    """How long the longest document or pack is, and how that is known.

    Args:
        length: Its tokens.
        num_read: Rows that were read, of which it is the longest; `None` where that is only what is allowed.
    """

    length: int
    num_read: int | None = None

    def __str__(self) -> str:
        if self.num_read is None:
            return f"longest allowed {self.length:,}"
        return f"longest row {self.length:,} of {self.num_read:,} read"


@dataclass(frozen=True)
class Plan:
    """What a run will need.

    Args:
        setup: How it trains.
        num_nodes: Machines.
        num_documents: Documents, or packs, of the largest micro-batch.
        num_micro_batches: Of a step, on a rank.
        gpu_gib: Memory of a GPU.
        rates: What is assumed of the machines.
        longest: Of the documents or packs.
        copies_state: Whether checkpoints are written from copies of the state in host memory.
    """

    setup: Setup
    num_nodes: int
    num_documents: int
    num_micro_batches: int
    gpu_gib: float
    rates: Rates
    longest: Longest
    copies_state: bool

    @cached_property
    def memory(self) -> Memory:
        """Of a rank; runs the passes on the meta device when it is first asked for."""
        return estimate(self.setup)

    @property
    def one_document(self) -> Setup:
        """The same with the longest document, or pack, alone in a micro-batch."""
        views = self.setup.num_documents // self.num_documents
        return replace(self.setup, num_documents=views, length=self.longest.length)

    @property
    def fits(self) -> bool:
        """Whether the memory of a GPU suffices."""
        return self.memory.peak <= self.usable

    @property
    def usable(self) -> float:
        """Bytes of a GPU that can be filled."""
        return USABLE * self.gpu_gib * GIB

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

    def measurable_gib(self) -> float:
        """Most that a rank can measure of itself in a pass: torch's memory of a GPU, on a CPU all of the process."""
        moments = self.memory.moments()
        held = max(total for name, total in moments.items() if name != "update") / GIB
        if not self.setup.is_cpu:
            return held - self.memory.kept["libraries"] / GIB
        return held + PROCESS_GIB[True] + sum(self.memory.host.values()) / GIB

    def host_gib(self) -> float:
        """Host memory of a node while training."""
        ranks = self.setup.world_size / self.num_nodes
        device = self.memory.peak if self.setup.is_cpu else 0.0
        return ranks * (PROCESS_GIB[self.setup.is_cpu] + (sum(self.memory.host.values()) + device + self.copy()) / GIB)

    def copy(self) -> float:
        """Bytes of a rank's copy of its part of a checkpoint, which is written from there (`checkpoint.async_save`)."""
        return self.checkpoint() / self.setup.world_size if self.copies_state else 0.0

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
            "checkpoint_copy_GiB": self.copy() / GIB,
            "wire_GiB_a_step": received_in_step(self.setup, self.num_micro_batches).total / GIB,
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
            f"{setup.num_documents} x {setup.length} tokens at most, {self.num_micro_batches} a step; {self.longest}"
            + (f", {setup.num_checkpointed} of {setup.num_layers} layers computed again" * (setup.num_checkpointed > 0))
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
        copied = f", {self.copy() / GIB:.1f} a rank for the checkpoint that is being written" * self.copies_state
        yield f"  host memory of a node {self.host_gib():.1f} GiB ({held:.1f} a rank offloaded{copied})"
        yield f"  disk for a checkpoint {self.checkpoint() / GIB:.1f} GiB"
        moved = received_in_step(setup, self.num_micro_batches)
        gbytes = rates.node_gbytes if self.num_nodes == 1 else rates.network_gbytes
        within = f" ({moved.within / GIB:.1f} within the node, at {rates.node_gbytes:g})" if moved.within else ""
        yield f"  a {device} receives {moved.total / GIB:.1f} GiB a step, {wire:.2f} s at {gbytes:g} GB/s{within}"
        if not setup.is_cpu:
            yield (
                f"  a step takes {max(seconds, wire):.2f} to {seconds + wire:.2f} s: {seconds:.2f} s of arithmetic at "
                f"{rates.mfu:.0%} of {rates.peak_tflops:g} TFLOP/s (assumed)"
            )
        if not self.fits and not setup.is_cpu:
            yield from self.remedies()

    def remedies(self) -> Iterator[str]:
        """What would make it fit, with the peak that each change leaves."""
        for text, setup in alternatives(self.setup, self.one_document, self.usable):
            peak = estimate(setup).peak
            if peak < self.memory.peak:
                verdict = "fits" if peak <= self.usable else "not enough alone"
                yield f"  change {text}: {peak / GIB:.1f} GiB, {verdict}"


def plural(count: int, what: str) -> str:
    """Such as `8 GPUs`."""
    return f"{count} {what}{'' if count == 1 else 's'}"


def row(name: str, value: float, detail: str = "") -> str:
    """A line of the table."""
    return f"    {name:34} {value / GIB:20.2f}" + (f"  {detail}" if detail else "")


def alternatives(setup: Setup, alone: Setup, usable: float) -> Iterator[tuple[str, Setup]]:
    """Changes that lower the peak, which should be `usable` bytes, cheapest first: each alone, then all together.

    `alone` is the same with the longest document alone in a micro-batch.
    """
    together = setup
    changes = list(_changes(setup, alone, usable))
    for text, change in changes:
        yield text, change(setup)
        together = change(together)
    if len(changes) > 1:
        yield "all of these", together


def _changes(setup: Setup, alone: Setup, usable: float) -> Iterator[tuple[str, Callable[[Setup], Setup]]]:
    if setup.num_checkpointed < setup.num_layers:
        count = fewest_layers(setup, usable)
        yield f"model.checkpoint_layers={count}", lambda made: replace(made, num_checkpointed=count)
    if setup.num_documents > alone.num_documents:
        by_tokens = rows_per_micro_batch(setup.ds_json) is None
        change = f"data.micro_batch_tokens={alone.length}" if by_tokens else f"{MICRO_BATCH} to 1 in the JSON"
        yield change, lambda made: replace(made, num_documents=alone.num_documents, length=alone.length)
    if setup.stage < 3 and setup.world_size > 1:
        yield "--deepspeed to ds_configs/zero3.json", lambda made: made.with_zero(stage=3)
    if not setup.is_offloaded("optimizer"):
        offloaded = {"device": "cpu"}
        yield (
            "zero_optimization.offload_optimizer.device to cpu in the JSON",
            lambda made: made.with_zero(offload_optimizer=offloaded),
        )
    if not setup.lora.rank:
        yield f"lora.rank={LORA_RANK}", lambda made: replace(made, lora=LoraConfig(rank=LORA_RANK))


def fewest_layers(setup: Setup, usable: float) -> int:
    """The fewest layers which, computed again in backward, let the peak be `usable` bytes; all where none do."""
    counts = range(setup.num_checkpointed + 1, setup.num_layers)

    def fits(count: int) -> bool:
        return estimate(replace(setup, num_checkpointed=count)).peak <= usable

    place = bisect_left(counts, True, key=fits)
    return counts[place] if place < len(counts) else setup.num_layers
