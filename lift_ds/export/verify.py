"""Whether an exported folder is what the checkpoint holds: every tensor, and the logits of the families known here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lift_ds.storage.safetensors_file import read_header
from lift_ds.storage.stored_tensor import CHUNK_ELEMENTS, Chunked, StoredTensor

from .convert import Conversion
from .folder import is_supported

PROBE_LENGTH = 32


def verify_export(conversion: Conversion, folder: Path) -> dict[str, Any]:
    """Reads an exported folder again.

    Returns:
        Tensors that were compared, and the largest difference of logits (only where the family is known).

    Raises:
        RuntimeError: Something differs.
    """
    written: dict[str, StoredTensor] = {}
    for path in folder.glob("*.safetensors"):
        written |= read_header(path)
    if written.keys() != conversion.tensors.keys():
        raise RuntimeError(f"{folder}: its tensors are not those of the checkpoint.")
    for name, tensor in conversion.tensors.items():
        if not _equals_file(tensor, written[name]):
            raise RuntimeError(f"{folder}: {name} is not what the checkpoint holds; convert again.")
    results: dict[str, Any] = {"num_verified_tensors": len(written)}
    if conversion.hf_folder is not None and is_supported(conversion.hf_folder):
        types = {name: stored.dtype for name, stored in written.items()}
        results["max_logit_difference"] = _compare_logits(conversion.tensors, types, folder)
    return results


def _equals_file(tensor: Chunked, stored: StoredTensor) -> bool:
    """Whether a tensor is in a file bit for bit, rounded to the file's type."""
    return tensor.shape == stored.shape and all(
        torch.equal(chunk.flatten().to(stored.dtype), stored.read(start, start + chunk.numel()))
        for start, chunk in tensor.chunks(CHUNK_ELEMENTS)
    )


def _compare_logits(tensors: Mapping[str, Chunked], types: Mapping[str, torch.dtype], folder: Path) -> float:
    """Largest difference between logits of the reloaded folder and of a model filled from the checkpoint itself."""
    from lift_ds.models.families import read_config
    from lift_ds.models.hollow import hollow_model
    from lift_ds.models.weights import load_pretrained

    config = read_config(folder)
    model = hollow_model(config)
    state = {name: _load(tensor).to(types[name]) for name, tensor in tensors.items()}
    model.load_state_dict(state, strict=False, assign=True)
    ids = torch.arange(PROBE_LENGTH)[None] % int(config.vocab_size)
    with torch.no_grad():
        expected = model.eval()(input_ids=ids).logits.float()
        del model, state
        reloaded, _ = load_pretrained(folder)
        difference = float((reloaded(input_ids=ids).logits.float() - expected).abs().max())
    if difference != 0:
        raise RuntimeError(f"{folder}: logits differ from the checkpoint's by up to {difference:.1e}.")
    return difference


def _load(tensor: Chunked) -> Tensor:
    return torch.cat([chunk.flatten() for _, chunk in tensor.chunks(CHUNK_ELEMENTS)]).view(tensor.shape)
