"""What a step moves between the ranks and how long it takes, from stated rates; what a checkpoint takes on the disk.

    ZeRO-3, a micro-batch   weights for the scoring pass, the forward and, where they were let go, the backward:
                            w T (n - 1)/n each; gradients w P (n - 1)/n
    with hpZ over h ranks   of what is trained the first of these gathers in a step comes from all ranks, all others
                            within the machine, with h for n
    ZeRO-1 and 2            gradients all-reduced, 2 w P (n - 1)/n a micro-batch (stage 1: a step);
                            weights w P (n - 1)/n a step

P trained and T all elements, w bytes of a weight, n ranks. All are bytes that one rank receives.
"""

from __future__ import annotations

from dataclasses import dataclass

from .flops import Arithmetic
from .memory import DEFAULT_REUSE, Setup

WEIGHT_BYTES = 4
OPTIMIZER_BYTES = 12
SPARE_BYTES = 64 << 20


@dataclass(frozen=True)
class Rates:
    """What is assumed of the machines.

    Args:
        peak_tflops: Dense bf16 products of a GPU, in 10^12 a second.
        mfu: Share of them that the training pass reaches, recomputation not counted.
        node_gbytes: What a GPU receives from others of its node, in GB/s.
        network_gbytes: The same from other nodes, which is what counts where there are several.
    """

    peak_tflops: float = 989.0
    mfu: float = 0.3
    node_gbytes: float = 200.0
    network_gbytes: float = 40.0


def checkpoint_bytes(num_weights: int, num_trained: int) -> int:
    """What a checkpoint takes: weights (only the trained ones, where the others are kept elsewhere) and optimizer."""
    return WEIGHT_BYTES * num_weights + OPTIMIZER_BYTES * num_trained + SPARE_BYTES


@dataclass(frozen=True)
class Received:
    """What one rank receives in a step, in bytes; see the module.

    Args:
        from_all: In exchanges between all ranks.
        within: In those of the ranks of a machine.
    """

    from_all: float
    within: float = 0.0

    @property
    def total(self) -> float:
        """All of it."""
        return self.from_all + self.within

    def seconds(self, num_nodes: int, rates: Rates) -> float:
        """How long it takes, one exchange after the other."""
        gbytes = rates.node_gbytes if num_nodes == 1 else rates.network_gbytes
        return self.from_all / (gbytes * 1e9) + self.within / (rates.node_gbytes * 1e9)


def received_in_step(setup: Setup, num_micro_batches: int) -> Received:
    """What one rank receives in a step."""
    sizes, width = setup.sizes(), setup.dtype.itemsize

    def share(ranks: int) -> float:
        return width * (ranks - 1) / ranks

    of_all = share(setup.world_size)
    if setup.stage < 3:
        reduced = 2.0 * num_micro_batches if setup.stage == 2 else 2.0
        return Received(of_all * sizes.trained * (reduced + 1.0))
    reuse = int(setup.zero.get("stage3_max_reuse_distance", DEFAULT_REUSE))
    let_go = max(0.0, 1.0 - reuse / 2 / sizes.total)
    gathers = num_micro_batches * (1.0 + let_go + (1.0 if setup.scores and let_go else 0.0))
    weights, gradients = float(sizes.total - sizes.small), num_micro_batches * float(sizes.trained)
    if setup.second_cut == 1:
        return Received(of_all * (gathers * weights + gradients))
    changed = min(weights, float(sizes.trained))  # frozen weights keep their second cut from the start on
    return Received(of_all * (changed + gradients), share(setup.second_cut) * (gathers * weights - changed))


def step_seconds(setup: Setup, num_micro_batches: int, num_nodes: int, rates: Rates) -> tuple[float, float]:
    """Seconds of a step's arithmetic, scoring pass and recomputation included, and of its traffic.

    Half of a document's tokens are taken to be masked, which is the mean of uniform levels.
    """
    lora = setup.lora
    arithmetic = Arithmetic.of(setup.config, lora.rank, tuple(lora.targets))
    rows = setup.length / 2
    operations = arithmetic.training(setup.length, rows)
    operations += arithmetic.layers(setup.length) * setup.num_checkpointed / setup.num_layers
    operations += arithmetic.forward(setup.length, rows) * float(setup.scores)
    documents = num_micro_batches * setup.num_documents
    seconds = documents * operations / (rates.peak_tflops * 1e12 * rates.mfu)
    return seconds, received_in_step(setup, num_micro_batches).seconds(num_nodes, rates)
