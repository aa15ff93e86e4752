"""What the modelling files share: norm, rotary positions, attention, vocabulary matrices, and the model's outer class.

This file and the modelling files depend on torch and transformers alone: `export/folder.py` joins them into the one
file that every exported folder carries, which loads with `trust_remote_code=True` where lift_ds is not installed.

Shapes: B sequences, L tokens, D model width, H heads, V vocabulary rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from .elementwise import ElementwiseModule

AttentionFunction = Callable[[Tensor, Tensor, Tensor, float], Tensor]
Visible = Tensor | AttentionFunction | None
HeadFunction = Callable[[Tensor, Tensor], Any]


class RMSNorm(ElementwiseModule):
    """x / sqrt(mean(x^2) + eps), in float32, cast back, times a learned weight."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, hidden: Tensor) -> Tensor:
        """Normalises the last dimension."""
        return self.elementwise.rms_norm(hidden, self.weight, self.eps)


def rotary_frequencies(head_dim: int, theta: float, device: torch.device | None = None) -> Tensor:
    """Radians a position, float32 (head_dim / 2,): theta^(-2i / head_dim)."""
    exponents = torch.arange(0, head_dim, 2, device=device, dtype=torch.float32) / head_dim
    return 1.0 / theta**exponents


def rotary_tables(position_ids: Tensor, frequencies: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotary embedding, in float32; computed in each forward, never kept in a buffer.

    Args:
        position_ids: (B or 1, L) positions.
        frequencies: float32 (head_dim / 2,), in radians a position.

    Returns:
        Two tensors (B or 1, 1, L, head_dim); the two halves of the last dimension are equal (half-split rotation).
    """
    angles = position_ids[:, None, :, None].float() * frequencies
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def project(layer: Any, hidden: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rotated queries and keys, and values, with grouped heads: three tensors (B, H, L, head_dim).

    Args:
        layer: Has `q_proj`, `k_proj`, `v_proj`, `head_dim` and `elementwise`, and perhaps `q_norm` and `k_norm`.
        hidden: (B, L, D).
        cos: See `rotary_tables`.
        sin: See `rotary_tables`.
    """
    projected = (layer.q_proj(hidden), layer.k_proj(hidden), layer.v_proj(hidden))
    query, key, value = (each.unflatten(-1, (-1, layer.head_dim)) for each in projected)
    if hasattr(layer, "q_norm"):
        query, key = layer.q_norm(query), layer.k_norm(key)
    return turned(layer, query, key, value, cos, sin)


def turned(
    layer: Any, query: Tensor, key: Tensor, value: Tensor, cos: Tensor, sin: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """What `project` gives, from (B, L, H, head_dim); where tables are narrower than heads, a head's first part turns.

    Arguments as there.
    """
    query, key, value = (each.transpose(1, 2) for each in (query, key, value))
    width = cos.shape[-1]
    if width == query.shape[-1]:
        return *layer.elementwise.rotate(query, key, cos, sin), value
    first = layer.elementwise.rotate(query[..., :width], key[..., :width], cos, sin)
    query, key = (torch.cat([one, each[..., width:]], -1) for one, each in zip(first, (query, key), strict=True))
    return query, key, value


def attend(query: Tensor, key: Tensor, value: Tensor, visible: Visible, dropout: float) -> Tensor:
    """Bidirectional attention with grouped heads: (B, H, L, head_dim) to (B, L, H head_dim).

    Args:
        query: (B, H, L, head_dim).
        key: Of as many heads, or fewer.
        value: The same.
        visible: bool (B, 1, 1 or L, L), true where a key may be seen, or a function that attends.
        dropout: Probability on the attention weights.
    """
    if callable(visible):
        attended = visible(query, key, value, dropout)
    else:
        attended = F.scaled_dot_product_attention(
            query, key, value, attn_mask=visible, dropout_p=dropout, enable_gqa=query.shape[1] != key.shape[1]
        )
    return attended.transpose(1, 2).flatten(2)


class GatedMLP(ElementwiseModule):
    """down(silu(gate(x)) * up(x))."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, inner, bias=False)
        self.up_proj = nn.Linear(width, inner, bias=False)
        self.down_proj = nn.Linear(inner, width, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """Maps (..., D) to (..., D)."""
        return self.down_proj(self.elementwise.gate(self.gate_proj(hidden), self.up_proj(hidden)))


class DecoderLayer(ElementwiseModule):
    """Attention, and what comes before and after it: the two parts that `model.compile` compiles.

    Attention stays outside: it is one kernel already, and what it does to packed documents follows from their lengths.
    """

    attention_dropout: float

    def before_attention(self, hidden: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of (B, L, D), as `project` gives them."""
        raise NotImplementedError

    def after_attention(self, hidden: Tensor, attended: Tensor) -> Tensor:
        """The layer's output (B, L, D), from its input and what was attended to (B, L, H head_dim)."""
        raise NotImplementedError

    def forward(self, hidden: Tensor, cos: Tensor, sin: Tensor, visible: Visible) -> Tensor:
        """Maps (B, L, D) to (B, L, D)."""
        query, key, value = self.before_attention(hidden, cos, sin)
        dropout = self.attention_dropout if self.training else 0.0
        return self.after_attention(hidden, attend(query, key, value, visible, dropout))


def as_visible(attention_mask: Visible) -> Visible:
    """An attention mask as `attend` takes it: (B, L) stands for the same keys at every query."""
    if not isinstance(attention_mask, Tensor):
        return attention_mask
    visible = attention_mask.bool()
    return visible[:, None, None, :] if visible.dim() == 2 else visible


class TokenEmbedding(nn.Embedding):
    """An embedding, and the head where weights are tied; both go through `forward`, where ZeRO-3 gathers the matrix."""

    def forward(self, input: Tensor, through: HeadFunction | None = None) -> Any:
        """Embeddings of ids (B, L), or `through(hidden states, matrix)`."""
        return super().forward(input) if through is None else through(input, self.weight)


class VocabularyHead(nn.Linear):
    """The head; what is computed with its matrix is computed inside, which is where ZeRO-3 gathers it."""

    def forward(self, input: Tensor, through: HeadFunction = F.linear) -> Any:
        """`through(hidden states, matrix)`."""
        return through(input, self.weight)


class DecoderLayers(nn.ModuleList):
    """The decoder layers; transformers' `gradient_checkpointing_enable` finds its switch here.

    Attributes:
        num_checkpointed: Layers that are computed again in backward where the switch is on, spread evenly; `None`: all.
            The last one is stored unless all are: what it holds is free before the first is computed again.
    """

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__(layers)
        self.gradient_checkpointing = False
        self._gradient_checkpointing_func: Callable[..., Any] = checkpoint
        self.num_checkpointed: int | None = None

    def is_checkpointed(self, index: int) -> bool:
        """Whether the layer of this index is among those that are computed again, where any is."""
        num_stored = 0 if self.num_checkpointed is None else len(self) - self.num_checkpointed
        return index * num_stored // len(self) == (index + 1) * num_stored // len(self)

    def run(self, hidden: Tensor, cos: Tensor, sin: Tensor, visible: Visible) -> Tensor:
        """Hidden states (B, L, D) after all layers."""
        if self.training and torch.is_grad_enabled() and not hidden.requires_grad:
            hidden = hidden.requires_grad_()  # with a frozen embedding ZeRO-3 lets go of the first layer too early
        checkpoints = self.gradient_checkpointing and self.training and torch.is_grad_enabled()
        for index, layer in enumerate(self.children()):
            if checkpoints and self.is_checkpointed(index):
                hidden = self._gradient_checkpointing_func(layer.__call__, hidden, cos, sin, visible)
            else:
                hidden = layer(hidden, cos, sin, visible)
        return hidden


class MaskedDiffusionModel(PreTrainedModel):
    """A bidirectional transformer with its language-model head. Row i of the logits predicts token i.

    A family's class makes the modules and provides `encode`; where its vocabulary matrices are not a `TokenEmbedding`
    and a `VocabularyHead` under these names, `head` and the accessors, too. A tied head is the embedding.
    """

    embedding_name = "model.embed_tokens"
    head_name = "lm_head"
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _supports_sdpa = True

    def enable_input_require_grads(self) -> None:
        """Nothing: `DecoderLayers.run` sees to it, and a hook on a tied embedding would meet the head's results."""

    def checkpoint_layers(self, count: int) -> None:
        """Has this many decoder layers, spread evenly, computed again in backward: they store their input alone."""
        self.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        for module in self.modules():
            if isinstance(module, DecoderLayers):
                assert 0 <= count <= len(module)
                module.num_checkpointed = count

    def get_input_embeddings(self) -> Any:
        """The embedding module."""
        return self.get_submodule(self.embedding_name)

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replaces the embedding module."""
        self.set_submodule(self.embedding_name, value)

    def get_output_embeddings(self) -> nn.Module | None:
        """The head module; `None` where the weights are tied."""
        parent, _, name = self.head_name.rpartition(".")
        return getattr(self.get_submodule(parent), name, None)

    def encode(self, input_ids: Tensor, attention_mask: Visible = None, position_ids: Tensor | None = None) -> Tensor:
        """Hidden states after the final norm, ready for `head`.

        Args:
            input_ids: (B, L) token ids.
            attention_mask: (B, L), true where a position may be attended to, or (B, 1, L, L), or a function from
                queries, keys, values (B, H, L, head_dim) and a dropout probability to (B, H, L, head_dim).
            position_ids: (B, L) rotary positions; 0 to L-1 where not given. Where they do not count on, a document
                begins.

        Returns:
            (B, L, D). Row i holds what `head` needs to predict token i.
        """
        raise NotImplementedError

    def visible(self, attention_mask: Visible, position_ids: Tensor) -> Visible:
        """What `attend` takes, from what `encode` was given and positions (B or 1, L)."""
        return as_visible(attention_mask)

    def head(self, hidden: Tensor, through: HeadFunction = F.linear) -> Any:
        """Logits (..., V) of the hidden states (..., D) that are needed, or `through` of them and the matrix (V, D)."""
        matrix = self.get_output_embeddings() or self.get_input_embeddings()
        return matrix(hidden, through)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        **unused: Any,
    ) -> CausalLMOutput:
        """Logits (B, L, V) of every position; arguments as in `encode`.

        Raises:
            ValueError: `labels` was given. A masked diffusion loss needs a mask and a level, which labels do not hold.
        """
        if unused.get("labels") is not None:
            raise ValueError("a masked diffusion model computes no loss from `labels`; use lift_ds.sft_loss(...).")
        return CausalLMOutput(logits=self.head(self.encode(input_ids, attention_mask, position_ids)))


def default_positions(input_ids: Tensor, position_ids: Tensor | None) -> Tensor:
    """The positions given, or 0 to L-1 (1, L)."""
    return torch.arange(input_ids.shape[1], device=input_ids.device)[None] if position_ids is None else position_ids
