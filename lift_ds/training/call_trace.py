"""Whether all ranks have run the same forwards of the same modules in a step, found before its update.

Under ZeRO-3 a module's forward gathers its weights from all ranks. A rank that runs another module of equal shapes, or
one more where a small model stays gathered, may not hang: it computes with parts of wrong weights, and the update
spreads them. Here every module that owns weights notes its calls; before the update the ranks compare a digest of them,
in the control group, so that no device is waited for. (Where the ranks do hang, `ranks.watchdog` ends the run.)
"""

from __future__ import annotations

import zlib
from array import array

import torch
from torch import nn

from lift_ds.ranks.control import waiting_in_control
from lift_ds.ranks.errors import AgreedError
from lift_ds.ranks.shares import Collectives


class CallTrace:
    """The calls of a model's modules in a step.

    Args:
        root: What owns parameters in it is watched, a layer as one, as ZeRO-3 gathers it.
        layer_class: Of the layers.
    """

    def __init__(self, root: nn.Module, layer_class: type[nn.Module]) -> None:
        self.names: list[str] = []
        self.calls: list[int] = []
        self.is_on = False
        self._watch(root, "", layer_class)

    def _watch(self, module: nn.Module, name: str, layer_class: type[nn.Module]) -> None:
        is_layer = isinstance(module, layer_class)
        if is_layer or any(True for _ in module.parameters(recurse=False)):
            number = len(self.names)
            self.names.append(name)
            module.register_forward_pre_hook(lambda *given: self.calls.append(number) if self.is_on else None)
        if not is_layer:
            for part, child in module.named_children():
                self._watch(child, f"{name}.{part}".lstrip("."), layer_class)

    def begin(self) -> None:
        """A step begins; what runs between steps does not count."""
        self.calls, self.is_on = [], True

    def digest(self) -> int:
        """CRC-32 of the calls, in order."""
        return zlib.crc32(array("I", self.calls).tobytes())

    def require_same(self, ranks: Collectives, step: int) -> None:
        """Compares all ranks, which all call it before the update of a step.

        Raises:
            AgreedError: Some ran other forwards; on every rank, with the first that differs.
        """
        mine, self.is_on = self.digest(), False
        if ranks.world_size == 1:
            return
        most = torch.tensor([mine, -mine])
        with ranks.waiting(), waiting_in_control():
            torch.distributed.all_reduce(most, op=torch.distributed.ReduceOp.MAX, group=ranks.control)
        if most[0] == -most[1]:
            return
        everyones = ranks.gather_objects(self.calls)
        for rank, theirs in enumerate(everyones):
            if theirs != everyones[0]:
                where = self.first_difference(everyones[0], theirs)
                raise AgreedError(
                    f"step {step}: rank {rank} ran other forwards than rank 0: {where}. Its gradients are of other "
                    "weights; the step is not applied. Every rank must run the same modules in the same order: look "
                    "for a branch that depends on a rank's own rows"
                )

    def first_difference(self, ours: list[int], theirs: list[int]) -> str:
        """Where two ranks' calls part."""
        for place, (one, other) in enumerate(zip(ours, theirs, strict=False)):
            if one != other:
                return f"call {place + 1} was of {self.names[other]}, not {self.names[one]}"
        return f"{len(theirs)} calls, not {len(ours)}"
