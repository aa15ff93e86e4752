"""The weights of one of this package's checkpoints, for a new run to start from: float32, by exact ranges."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from .flat_groups import FlatTensor
from .frozen_base import read_base
from .manifest import MANIFEST, find_size_faults, pointed, read_manifest
from .stored_tensor import blocks
from .zero_checkpoint import open_zero_checkpoint
from .zero_files import ZERO_TAG

ROOT = "model."  # what a run's root module puts in front of the model's names


def checkpoint_at(path: str) -> Path | None:
    """The checkpoint that a path, or a pointer such as `RUN/checkpoints/best`, names; `None` where it names none.

    Raises:
        ValueError: It is not whole by the sizes of its files, or the pointer points to nothing.
    """
    named = pointed(Path(path))
    if not (named / MANIFEST).is_file():
        return None
    faults = find_size_faults(named, read_manifest(named))
    if faults:
        raise ValueError(f"{named}: not whole: {'; '.join(faults)}; copy it again, or take another one.")
    return named


class CheckpointWeights:
    """A source of weights, as `SafetensorsFolder` is one.

    Raises:
        ValueError: The checkpoint holds adapters only, or its shards do not belong together.
    """

    def __init__(self, checkpoint: Path) -> None:
        if read_base(checkpoint) is not None:
            raise ValueError(
                f"{checkpoint} holds adapters only; write their weights into the base's with "
                f"`python tools/zero_to_hf.py {checkpoint} FOLDER`, and name that folder."
            )
        zero = open_zero_checkpoint(checkpoint / ZERO_TAG)
        named = zero.weights()
        self.tensors: dict[str, FlatTensor] = {name.removeprefix(ROOT): each for name, each in named.items()}

    def shapes(self) -> dict[str, torch.Size]:
        """Every name with its shape; no data is read."""
        return {name: tensor.shape for name, tensor in self.tensors.items()}

    def read(self, name: str, into: Tensor, start: int = 0) -> None:
        """Fills `into`, a flat tensor of any type and device, with the elements from `start` of a flattened tensor."""
        for low, high in blocks(0, into.numel()):
            into[low:high].copy_(self.tensors[name].read(start + low, start + high))
