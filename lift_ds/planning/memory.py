"""What a rank holds, by part, under DeepSpeed's ZeRO; most at once in a scoring pass, a training pass, or an update.

P trained and T all elements, n ranks, w bytes of a weight, G elements of the largest group that is gathered.

    stage 3    weights w T/n   master 4 P/n (w = 2)   moments 8 P/n   gradients 4 P/n   bucket w min(bucket, P)
               training   + gathered w min(T, reuse/2 + G) + activations + the head, a gather's copy, or a backward
               hpZ        + w T/h, the second cut over h ranks of a machine
    stage 1,2  weights w T     master 4 P/n   moments 8 P/n
               training   + gradients (w + 4) P/n (4 P/n where w = 4), two buckets w bucket with overlap_comm
    update     stages 1, 2: + gradients + 4 P/n: those of a parameter group, flat

Why, in DeepSpeed 0.19.8: `grad_partitions_flat_buffer` is float32; the engine spares stage 3 its other copies. What is
used again within `stage3_max_reuse_distance` elements, there and back, stays (`__params_to_release`): of a small
model all is gathered from the forward to its backward; a single rank gathers nothing. `AllGatherCoalescedHandle.wait`
makes a parameter of parts while the flat result of the gather is still there. A leaf layer's gradients are reduced when
the whole layer is done, and `reduce_scatter_coalesced` copies them in the order of the ranks. Stages 1 and 2 copy each
gradient into a bucket, from there into `grads_in_partition`, and let go of both after the update; `step` flattens them.
On a CPU, memory that is allocated but never written is none.

Measured on two CPU ranks, see `benchmarks/planned_memory.py`. Assumed: what a GPU's context and communication hold. Not
counted: what is lost between blocks, which on a CPU may be much.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import PretrainedConfig

from lift_ds.config.deepspeed import HPZ
from lift_ds.models.settings import LoraConfig

from .live_memory import measure_passes
from .sizes import Sizes

GIB = 1 << 30
MIB = 1 << 20
DEFAULT_BUCKET, DEFAULT_REUSE, DEFAULT_FEW = 500_000_000, 1_000_000_000, 100_000  # DeepSpeed's
RUNTIME = {"cpu": 50 * MIB, "cuda": 1536 * MIB}
"""What libraries hold that start with the engine: measured on a CPU; assumed on a GPU (context, NCCL, cuBLAS)."""


@dataclass(frozen=True)
class Setup:
    """How a model is trained, as far as memory and traffic go.

    Args:
        config: The model's.
        lora: Its adapters, if any.
        ds_json: Resolved DeepSpeed JSON.
        world_size: Ranks.
        num_checkpointed: Layers that are computed again in backward.
        num_documents: Documents, or packs, of a micro-batch.
        length: Tokens of the longest.
        scores: Whether there is a scoring pass.
        is_cpu: Whether the ranks compute on CPUs.
    """

    config: PretrainedConfig
    lora: LoraConfig
    ds_json: dict[str, Any]
    world_size: int
    num_checkpointed: int
    num_documents: int
    length: int
    scores: bool
    is_cpu: bool = False

    @property
    def zero(self) -> dict[str, Any]:
        """The section `zero_optimization`."""
        section: dict[str, Any] = self.ds_json["zero_optimization"]
        return section

    @property
    def num_layers(self) -> int:
        """Layers of the model."""
        return int(self.config.num_hidden_layers)

    @property
    def stage(self) -> int:
        """The ZeRO stage."""
        return int(self.zero["stage"])

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        return torch.bfloat16 if self.ds_json["bf16"]["enabled"] else torch.float32

    def sizes(self) -> Sizes:
        """The model's, with what this stage keeps whole."""
        few = int(self.zero.get("stage3_param_persistence_threshold", DEFAULT_FEW))
        return Sizes.of(self.config, self.lora, few if self.stage == 3 else 0)

    @property
    def second_cut(self) -> int:
        """Ranks of a machine that hold all weights once more (hpZ); 1 where they do not."""
        return int(self.zero.get(HPZ, 1)) if self.stage == 3 else 1

    def is_offloaded(self, what: str) -> bool:
        """Whether `optimizer` or `param` is kept in the host's memory."""
        return self.zero.get(f"offload_{what}", {}).get("device", "none") != "none"

    def with_zero(self, **changes: Any) -> Setup:
        """The same with other values in `zero_optimization`."""
        return replace(self, ds_json=self.ds_json | {"zero_optimization": self.zero | changes})


@dataclass(frozen=True)
class Memory:
    """Bytes of a rank by part.

    Args:
        kept: What stays from step to step.
        passes: What each pass holds on top of that.
        host: What is kept in the host's memory instead.
    """

    kept: dict[str, float]
    passes: dict[str, dict[str, float]]
    host: dict[str, float]

    def moments(self) -> dict[str, float]:
        """Most bytes in each pass, all that stays included."""
        return {name: sum([*self.kept.values(), *parts.values()]) for name, parts in self.passes.items() if parts}

    @property
    def peak(self) -> float:
        """Most bytes at any time."""
        return max(self.moments().values())


def standing(setup: Setup) -> Memory:
    """What stays, and an update, without any pass: from sizes alone, for every family."""
    sizes = setup.sizes()
    return offloaded(setup, sizes, _standing(setup, sizes))


def _standing(setup: Setup, sizes: Sizes) -> Memory:
    share = sizes.trained / setup.world_size
    shares_masters = setup.stage == 3 and setup.dtype == torch.float32 and not setup.is_offloaded("optimizer")
    masters = 0.0 if shares_masters else 4 * share
    kept = {"weights": weight_bytes(setup, sizes), "master weights": masters, "moments": 8 * share}
    if setup.second_cut > 1:
        kept["second cut"] = float(setup.dtype.itemsize * sizes.total / setup.second_cut)
    collected = collected_parts(setup, sizes)
    update = {} if setup.stage == 3 else {"gradients": collected["gradients"], "flat gradients": 4 * share}
    kept |= collected if setup.stage == 3 else {}
    kept["libraries"] = float(RUNTIME["cpu" if setup.is_cpu else "cuda"])
    return Memory(kept, {"update": update}, {})


def estimate(setup: Setup) -> Memory:
    """What a rank holds; see the module."""
    sizes = setup.sizes()
    base = _standing(setup, sizes)
    held = measure_passes(
        setup.config,
        setup.lora,
        setup.dtype,
        setup.num_checkpointed,
        setup.num_documents,
        setup.length,
        setup.num_documents * setup.length,
        "cpu" if setup.is_cpu else "cuda",
    )
    collected = {} if setup.stage == 3 else collected_parts(setup, sizes)
    live, copied = gathered_parts(setup, sizes)
    gathered = {"gathered layers": live} if live else {}
    most = {
        "the head's logits and gradients": float(held.head),
        "a gather's copy": copied,
        "backward": held.backward + way_bytes(setup, sizes.layer_trained),
    }
    last = copied + way_bytes(setup, sizes.largest_trained)
    name = max(most, key=lambda each: most[each])
    passes = {
        "scoring pass": gathered | {"hidden states and logits": float(held.scoring)} if setup.scores else {},
        "training pass": gathered | collected | {"activations": float(held.saved), name: most[name]},
        "backward's end": collected | {"a gathered matrix and its gradient": last},
    }
    return offloaded(setup, sizes, replace(base, passes=passes | base.passes))


def offloaded(setup: Setup, sizes: Sizes, memory: Memory) -> Memory:
    """The same with what the JSON's offload keys move to the host's memory."""
    kept, passes, host = dict(memory.kept), {name: dict(parts) for name, parts in memory.passes.items()}, {}
    if setup.is_offloaded("optimizer"):
        for name in ("master weights", "moments", "gradients"):
            host[name] = kept.pop(name, 0.0)
        if setup.stage < 3:
            host["gradients"] = 4 * sizes.trained / setup.world_size
            for parts in passes.values():
                parts.pop("gradients", None)
        passes["update"] = {}
    if setup.stage == 3 and setup.is_offloaded("param"):
        host["weights"] = kept.pop("weights")
    return Memory(kept, passes, host)


def weight_bytes(setup: Setup, sizes: Sizes) -> float:
    """The rank's weights: all, or under ZeRO-3 its part, and the small ones whole."""
    whole = sizes.total / setup.world_size + sizes.small if setup.stage == 3 else sizes.total
    return float(setup.dtype.itemsize * whole)


def collected_parts(setup: Setup, sizes: Sizes) -> dict[str, float]:
    """Gradients of the rank's part, and the buffers that they are collected in, in bytes."""
    width, share = setup.dtype.itemsize, sizes.trained / setup.world_size
    bucket = int(setup.zero.get("reduce_bucket_size", DEFAULT_BUCKET))
    bucket *= 2 if setup.stage < 3 and setup.zero.get("overlap_comm") else 1
    held = min(bucket, sizes.trained) if setup.is_cpu else bucket  # on a CPU only what was written
    gradients = 4 * share if width == 4 or setup.stage == 3 else (width + 4) * share
    return {"gradients": float(gradients), "buckets": float(width * held)}


def gathered_parts(setup: Setup, sizes: Sizes) -> tuple[float, float]:
    """Weights that are gathered at once, and the copy that the last gather makes meanwhile, in bytes.

    A single rank computes with its part, which is all, unless that is kept in the host's memory.
    """
    if setup.stage < 3 or (setup.world_size == 1 and not setup.is_offloaded("param")):
        return 0.0, 0.0
    group = max(sizes.layer, sizes.largest)
    reuse = int(setup.zero.get("stage3_max_reuse_distance", DEFAULT_REUSE))
    width = setup.dtype.itemsize
    return float(width * min(sizes.total, reuse // 2 + group)), float(width * group)


def way_bytes(setup: Setup, num_elements: int) -> float:
    """Under ZeRO-3 gradients on their way from a layer or matrix to the ranks, and their copy in the ranks' order."""
    if setup.stage < 3:
        return 0.0
    copies = 2 if setup.zero.get("reduce_scatter", True) else 1
    return float(setup.dtype.itemsize * num_elements * copies)
