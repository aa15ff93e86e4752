"""The row in which a family's file ends: what the package needs to know of it; and which row a model folder is of.

Exports carry a family's file without its row and without what the file imports from here; see `export.modeling_file`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lift_ds.storage.file_diagnosis import explain
from lift_ds.storage.run_record import RUN_FILE
from lift_ds.storage.safetensors_file import SINGLE_FILE, read_header
from lift_ds.storage.safetensors_folder import read_index
from lift_ds.text_files import load_json, read_text

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from .layers import DecoderLayer

# Config fields, or patterns of weights' names, of models that share a `model_type` with families known here.
MIXTURE_MARKS = ("num_experts", "*.experts.*")
VISION_MARKS = ("*vision_tower*", "*mm_projector*")
MASK_TOKENS = ("<|mdm_mask|>", "<|mask|>", "[MASK]", "<mask>")


@dataclass(frozen=True)
class ControlIds:
    """Published ids of control tokens, under the config's names."""

    mask_token_id: int
    eos_token_id: int
    pad_token_id: int
    bos_token_id: int | None = None


@dataclass(frozen=True)
class Layout:
    """How a folder is told from others of its `model_type`."""

    example: str  # whose layout it is, for messages
    weights: str  # pattern that one of the weights' names has, as `fnmatch` reads it
    config_field: str  # that the config has; asked for only where the weights' names are not known
    without: tuple[str, ...] = ()  # config fields and patterns of weights' names that no folder in it has

    def fits(self, raw: Mapping[str, Any], names: Collection[str]) -> bool:
        """Whether a folder with such fields and weights (none where their names are not known) is in it."""
        if has_mark(self.without, raw, names):
            return False
        return any(fnmatchcase(name, self.weights) for name in names) if names else self.config_field in raw

    def __str__(self) -> str:
        return f"weights named {self.weights} ({self.example}, with {self.config_field} in the config)"


def has_mark(marks: Collection[str], raw: Mapping[str, Any], names: Collection[str]) -> bool:
    """Whether a mark is a field of a config, or the pattern of a weight's name."""
    return any(mark in raw or any(fnmatchcase(name, mark) for name in names) for mark in marks)


@dataclass(frozen=True)
class Family:
    """What the rest of the package needs to know of a family; `registry.register` makes it known.

    Args:
        name: Its name; the `model_type`, except for a further layout of one.
        config_class: Reads `config.json`, and has `embedding_size` (rows V of the vocabulary matrix), `init_std` and
            `right_shift_logits` (whether the model shifts its outputs inside `encode`).
        model_class: Provides `encode` and `head`; its logits are aligned (row i predicts token i). Exports carry its
            module, joined with what that imports from its neighbours and from this package.
        layer_class: The decoder layer, gathered as a whole by ZeRO-3.
        layout: How its folders are told from others of the `model_type`; `None` where there are no others.
        max_length_field: Config field with the longest sequence, in tokens.
        head: Name of the head's matrix, or its end; adapters leave it out.
        published_ids: Ids of control tokens by rows V, where neither config nor tokenizer names them; they hold for
            every layout of the `model_type`. Another vocabulary has other ids.
        mask_tokens: What the mask id may decode to, besides the tokenizer's own mask token.
        tokenizer_classes: Tokenizer classes of the family's remote code that are one of transformers' by another name.
        turn_ends: Tokens that a tokenizer may call its end token, though the config's is another.
        end_is_padding: Whether end and padding are one token: of the two, the one that is named is both.
        is_blockwise: Whether the model denoises block after block, with `models.blocks`' attention.
        published_block_sizes: Block sizes by rows V, where the config names none and every such model has the same.
        start_token_fields: Config fields that may hold the token before a document's first one, in order; asked only
            where outputs are shifted. Qwen's vocabularies name no start token; their end token stands between texts.
        adapted_from: `model_type` of the autoregressive models that `export.adapt` makes into this family's.
    """

    name: str
    config_class: type[PretrainedConfig]
    model_class: type[PreTrainedModel]
    layer_class: type[DecoderLayer]
    layout: Layout | None = None
    max_length_field: str = "max_position_embeddings"
    head: str = "lm_head"
    published_ids: Mapping[int, ControlIds] = field(default_factory=dict)
    mask_tokens: tuple[str, ...] = MASK_TOKENS
    tokenizer_classes: Mapping[str, str] = field(default_factory=dict)
    turn_ends: tuple[str, ...] = ()
    end_is_padding: bool = False
    is_blockwise: bool = False
    published_block_sizes: Mapping[int, int] = field(default_factory=dict)
    start_token_fields: tuple[str, ...] = ("bos_token_id", "eos_token_id")
    adapted_from: str | None = None

    @property
    def model_type(self) -> str:
        """The `model_type` of its configs."""
        return str(self.config_class.model_type)


STACKED = (
    "LLaDA2 in dFactory's merged layout, all experts of a layer in one tensor: split them with its own convertor, "
    "scripts/moe_convertor.py"
)
RENAMED = "LLaDA-MoE under another name: the published model_type is 'llada'; write that into config.json"
AUTOREGRESSIVE = "it is autoregressive; tools/make_diffusion_model.py makes a masked diffusion model of it"
VISION = "LLaDA-V with its vision tower: only the language model is implemented"
# What no family here computes: `model_type` (any where it is `*`), config fields or patterns of weights' names, one of
# which such a folder has (none where the type says it), and why it is refused. A family that is registered comes first.
RELATIVES: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("*", VISION_MARKS, VISION),
    ("llava_llada", (), VISION),
    ("lladamoe", (), RENAMED),
    ("llada_moe", (), RENAMED),
    ("llada2_moe", ("*.mlp.experts.gate_proj",), STACKED),
    ("llada2_moe_veomni", (), STACKED),
    ("sdar_moe", (), "SDAR-MoE: mixtures of experts with SDAR's layers are not implemented"),
)


def read_raw_config(folder: Path) -> dict[str, Any]:
    """The fields of a folder's `config.json`.

    Raises:
        ValueError: There is none, or it is no JSON object.
    """
    path = folder / "config.json"
    if not path.is_file():
        run = " This is a run: name its export, or make one with tools/zero_to_hf.py."
        hint = run if (folder / RUN_FILE).is_file() else ""
        raise ValueError(f"{folder}: no config.json; a model folder in the public layout is expected.{hint}")
    try:
        raw = load_json(read_text(path))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON: {error}.{explain(path)}") from error
    if not isinstance(raw, dict):
        raise ValueError(f"{path}: a JSON object with the model's fields is expected.")
    return raw


def stored_names(folder: Path) -> set[str]:
    """Names of a folder's weights, from the index or the one file's header; none where there are no safetensors.

    Raises:
        ValueError: Index or header cannot be read.
    """
    index = read_index(folder)
    if index is not None:
        return set(index)
    single = folder / SINGLE_FILE
    return set(read_header(single)) if single.is_file() else set()


def detect_family(raw: Mapping[str, Any], names: Collection[str], families: Collection[Family], path: Path) -> Family:
    """The family that a folder belongs to: the first of its `model_type` whose layout fits its config and weights.

    Where the weights' names are not known (empty), the config alone decides.

    Raises:
        ValueError: It is a known relative or unknown; the message says what is supported.
    """
    model_type = raw.get("model_type")
    of_type = [family for family in families if family.model_type == model_type]
    for family in of_type:
        if family.layout is None or family.layout.fits(raw, names):
            return family
    supported = ", ".join(dict.fromkeys(family.model_type for family in families))
    reason = refusal(raw, names, families)
    if reason is not None:
        raise ValueError(f"{path}: {reason}. Supported: {supported}.")
    if not of_type:
        raise ValueError(f"{path}: model_type={model_type!r} is not supported; supported: {supported}.")
    expected = " or ".join(str(family.layout) for family in of_type)
    raise ValueError(f"{path}: model_type={model_type!r}, but the layout is unknown: {expected} are expected.")


def refusal(raw: Mapping[str, Any], names: Collection[str], families: Collection[Family]) -> str | None:
    """Which known relative a folder is, and why it is refused; `None` where it is none."""
    model_type = str(raw.get("model_type"))
    for relative, marks, reason in RELATIVES:
        if relative in ("*", model_type) and (not marks or has_mark(marks, raw, names)):
            return reason
    is_adapted = any(family.adapted_from == model_type for family in families)
    return f"{model_type.capitalize()}: {AUTOREGRESSIVE}" if is_adapted else None
