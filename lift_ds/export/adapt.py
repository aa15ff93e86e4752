"""An autoregressive model made into a masked diffusion model (A2D), ready to be fine-tuned.

The weights stay. Attention becomes full, the output at i goes on predicting token i + 1, and one mask token is added,
whose row of the embedding (and of a head of its own) is the mean of the other tokens' rows. Or, where a block size is
given, attention becomes that of blocks, and the output at i is to predict token i: SDAR's way with Qwen3.

Source: DiffuLLaMA (arXiv 2410.17891) for full attention with the shift kept; SDAR (arXiv 2510.06303) for blocks.
Differs: no annealing of the mask.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from lift_ds.models.family import Family, read_raw_config
from lift_ds.models.registry import adapted_families
from lift_ds.models.vocabulary import load_tokenizer
from lift_ds.models.weights import resolve_folder
from lift_ds.storage.file_diagnosis import explain
from lift_ds.storage.safetensors_folder import SafetensorsFolder

from .folder import DTYPES, export_folder

MASK_TOKEN = "<|mask|>"
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
ROTARY_TABLE = ".rotary_emb.inv_freq"
# Fields that speak of the causal model, its files or the library that wrote them.
DROPPED_FIELDS = (
    "_name_or_path _model_name_or_path architectures auto_map dtype torch_dtype transformers_version use_cache"
).split()


@dataclass(frozen=True)
class _CausalModel:
    """An autoregressive model as it was read: config fields, weights by name, tokenizer, and where they were."""

    config: dict[str, Any]
    state: dict[str, Tensor]
    tokenizer: PreTrainedTokenizerBase
    where: str


@dataclass(frozen=True)
class MaskToken:
    """The mask token: its text, its id, whether it is new, and the rows of the embedding before and after."""

    text: str
    token_id: int
    is_new: bool
    rows_before: int
    rows_after: int


def make_diffusion_model(
    source: str,
    output: Path,
    mask_token: str = MASK_TOKEN,
    dtype_name: str = "auto",
    block_size: int | None = None,
) -> MaskToken:
    """Writes a masked diffusion model with the weights of an autoregressive one.

    Args:
        source: Folder with safetensors or one GGUF file, the GGUF file itself, or a hub name.
        output: Folder to create.
        mask_token: Text of the mask token, where the tokenizer has none.
        dtype_name: Type of the written weights: a key of `DTYPES`, or `auto` for the source's (float32 from GGUF).
        block_size: Tokens of a block, for a model that denoises block after block.

    Returns:
        What became of the mask token.

    Raises:
        ValueError: The source cannot be read, is of another family, or has no tokenizer or another model's; the block
            size is out of range; or `output` is not empty.
    """
    families = adapted_families(is_blockwise=block_size is not None)
    model = _open_causal_model(source, families)
    if EMBEDDING not in model.state:
        raise ValueError(f"{model.where}: no weight {EMBEDDING}; a causal language model's own folder is expected.")
    mask = _add_mask_token(model, mask_token)
    config = _adapted_config(model, mask, families[model.config["model_type"]], block_size)
    state = _with_mask_row(model, mask)
    dtype = state[EMBEDDING].dtype if dtype_name == "auto" else DTYPES[dtype_name]
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=".adapting-") as folder:
        model.tokenizer.save_pretrained(folder)
        (Path(folder) / "config.json").write_text(json.dumps(config, indent=2))
        export_folder(state, Path(folder), output, dtype)
    return mask


def _open_causal_model(source: str, families: Mapping[str, Family]) -> _CausalModel:
    path = Path(source)
    quantized = sorted(path.glob("*.gguf")) if path.is_dir() else [path] if path.suffix == ".gguf" else []
    if len(quantized) > 1:
        raise ValueError(f"{path}: {len(quantized)} GGUF files; name one of them: {quantized[0]}")
    if quantized and not (path / "config.json").is_file():
        return _read_gguf(quantized[0], families)
    folder = resolve_folder(source)
    config = read_raw_config(folder)
    _check_model_type(config, str(folder), families)
    tokenizer = load_tokenizer(folder)
    if tokenizer is None:
        raise ValueError(f"{folder}: no tokenizer; the mask token is added to the model's own.")
    weights = SafetensorsFolder(folder)
    return _CausalModel(config, {name: weights.tensor(name) for name in weights.shapes()}, tokenizer, str(folder))


def _read_gguf(path: Path, families: Mapping[str, Family]) -> _CausalModel:
    try:
        config = AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
        _check_model_type({"model_type": config.model_type}, str(path), families)
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
        model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    except ImportError as error:
        raise ValueError(f"{path}: reading GGUF needs the package gguf: pip install gguf") from error
    except OSError as error:
        raise ValueError(f"{path}: cannot be read as GGUF: {error}{explain(path)}") from error
    fields = config.to_diff_dict() | {"tie_word_embeddings": config.tie_word_embeddings}
    return _CausalModel(fields, model.state_dict(), tokenizer, str(path))


def _check_model_type(config: dict[str, Any], where: str, families: Mapping[str, Family]) -> None:
    model_type = config.get("model_type")
    if model_type not in families:
        kind = " that denoises block after block" if any(family.is_blockwise for family in families.values()) else ""
        raise ValueError(
            f"{where}: model_type={model_type!r} cannot be made into a masked diffusion model{kind}; supported: "
            f"{', '.join(families)}."
        )
    if config.get("quantization_config"):
        raise ValueError(f"{where}: its weights are quantized; a folder with plain safetensors, or GGUF, is needed.")


def _add_mask_token(model: _CausalModel, text: str) -> MaskToken:
    tokenizer, rows = model.tokenizer, model.state[EMBEDDING].shape[0]
    num_tokens = len(tokenizer)
    if num_tokens > rows:
        raise ValueError(f"{model.where}: {num_tokens} tokens for {rows} embedding rows; the tokenizer is another's.")
    if tokenizer.mask_token is None:
        tokenizer.add_special_tokens({"mask_token": text})
    token_id = int(tokenizer.mask_token_id)
    is_new = len(tokenizer) > num_tokens
    return MaskToken(str(tokenizer.mask_token), token_id, is_new, rows, max(rows, token_id + 1))


def _with_mask_row(model: _CausalModel, mask: MaskToken) -> dict[str, Tensor]:
    """The weights with the mask token's rows; rotary tables that old checkpoints hold are left to be computed."""
    state = {name: tensor for name, tensor in model.state.items() if not name.endswith(ROTARY_TABLE)}
    is_tied = model.config.get("tie_word_embeddings", False)
    if is_tied and HEAD in state and not torch.equal(state.pop(HEAD), state[EMBEDDING]):
        raise ValueError(f"{model.where}: tie_word_embeddings=true, but {HEAD} differs from {EMBEDDING}.")
    for name in (EMBEDDING, HEAD):
        if name in state:
            state[name] = _extended(state[name], mask, len(model.tokenizer) - mask.is_new)
    return state


def _extended(matrix: Tensor, mask: MaskToken, num_known: int) -> Tensor:
    """A matrix (rows, D) with the mask token's row: the mean of the rows of the first `num_known` tokens."""
    mean = matrix[:num_known].float().mean(0).to(matrix.dtype)
    longer = torch.cat((matrix, mean.expand(mask.rows_after - mask.rows_before, -1)))
    longer[mask.token_id] = mean
    return longer


def _adapted_config(model: _CausalModel, mask: MaskToken, family: Family, block_size: int | None) -> dict[str, Any]:
    """Config fields of the adapted model; ids of control tokens are the tokenizer's where it has them.

    Where the family ends texts with its padding token, a token that ends turns is not the config's end token.
    """
    fields = {name: value for name, value in model.config.items() if name not in DROPPED_FIELDS}
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        own = getattr(model.tokenizer, name, None)
        fields[name] = fields.get(name) if own is None else own
    if fields["pad_token_id"] is None:
        fields["pad_token_id"] = fields["eos_token_id"]
    if family.end_is_padding and model.tokenizer.eos_token in family.turn_ends:
        fields["eos_token_id"] = fields["pad_token_id"]
    if block_size is not None:  # as SDAR's configs say it, which engines read
        rope = fields.pop("rope_parameters", None) or {}
        fields.setdefault("rope_theta", rope.pop("rope_theta", None))
        fields.setdefault("rope_scaling", None if rope.get("rope_type", "default") == "default" else rope)
    return fields | {
        "model_type": family.model_type,
        **({"right_shift_logits": True} if block_size is None else {"block_size": block_size}),
        "mask_token_id": mask.token_id,
        "vocab_size": mask.rows_after,
    }
