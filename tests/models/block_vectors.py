"""The reference vectors of SDAR, LLaDA-MoE and LLaDA2: computed by the models' public code, replayed here."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from lift_ds import load_pretrained
from lift_ds.models.families import read_config
from lift_ds.models.hollow import hollow_model
from tests.conftest import VECTORS

# What the published configs do not say: the mask id of the mixtures, and LLaDA2's block size.
GIVEN: dict[str, dict[str, int]] = {
    "sdar_tiny": {},
    "llada_moe_tiny": {"mask_token_id": 250},
    "llada2_tiny": {"mask_token_id": 250, "block_size": 8},
}


def load(name: str, **changes: Any) -> Any:
    """A tiny model in eval mode."""
    return load_pretrained(VECTORS / name, **GIVEN[name] | changes)[0]


def write_folder(name: str, with_tokenizer: Path, folder: Path, weight_scale: float = 0.0, **changes: int) -> Path:
    """A folder of a tiny model's family with the tokenizer of another one; with random weights where they have a scale.

    Settings are the tiny model's but for `changes`, control tokens and vocabulary the tokenizer's.
    """
    shutil.copytree(with_tokenizer, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    base = json.loads((with_tokenizer / "config.json").read_text())
    raw = json.loads((VECTORS / name / "config.json").read_text()) | GIVEN[name]
    raw |= {key: base[key] for key in ("mask_token_id", "eos_token_id", "pad_token_id")}
    raw |= {"vocab_size": base["embedding_size"], "bos_token_id": base.get("bos_token_id")}
    raw.pop("auto_map")
    raw |= changes
    (folder / "config.json").write_text(json.dumps(raw))
    if weight_scale:
        generator = torch.Generator().manual_seed(5)
        state = hollow_model(read_config(folder)).state_dict()
        drawn = {key: torch.randn(each.shape, generator=generator) for key, each in state.items()}
        offsets = {key: 1.0 if each.dim() == 1 and "bias" not in key else 0.0 for key, each in state.items()}
        weights = {key: offsets[key] + weight_scale * each for key, each in drawn.items()}
        save_file(weights, folder / "model.safetensors")
    return folder


def complete_folder(place: Path, name: str) -> Path:
    """A copy of a reference model's folder, with what its config does not say."""
    shutil.copytree(VECTORS / name, place / name)
    config = place / name / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | GIVEN[name]))
    return place / name


def cases(name: str, what: str, tensors: str) -> list[tuple[dict[str, Any], dict[str, torch.Tensor]]]:
    """What `WHAT.json` says of each case, with its tensors of `TENSORS.safetensors`."""
    stored = load_file(VECTORS / name / f"{tensors}.safetensors")
    listed = json.loads((VECTORS / name / f"{what}.json").read_text())["cases"]
    return [(case, numbered(stored, case["case"])) for case in listed]


def numbered(stored: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """The tensors under a prefix, without it."""
    return {name.removeprefix(f"{prefix}."): each for name, each in stored.items() if name.startswith(f"{prefix}.")}


def forwards(name: str, prefix: str) -> list[dict[str, torch.Tensor]]:
    """The tensors of `forward.safetensors`, by case."""
    stored = load_file(VECTORS / name / "forward.safetensors")
    found = [numbered(stored, f"{prefix}{place}") for place in range(9)]
    return [tensors for tensors in found if tensors]


def document_positions(position_ids: torch.Tensor) -> torch.Tensor:
    """SDAR's collator gives a row's tail the position 0 throughout; its model counts there, as one more document."""
    positions = position_ids.clone()
    for row in positions:
        tail = len(row)
        while tail and row[tail - 1] == 0:
            tail -= 1
        if len(row) - tail > 1:
            row[tail:] = torch.arange(len(row) - tail)
    return positions


def check_gradients(model: Any, expected: dict[str, float]) -> None:
    """Every parameter under its public name has a gradient of this norm."""
    named = dict(model.named_parameters())
    assert named.keys() == expected.keys()
    for name, parameter in named.items():
        torch.testing.assert_close(parameter.grad.norm().item(), expected[name], rtol=1e-4, atol=1e-6, msg=name)
