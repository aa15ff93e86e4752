"""What a forward and backward hold at most, found by running them on the meta device, where nothing is computed.

Every storage that an operation makes is counted until it is freed. Numbers of layers do not matter: a model of one
layer and one of two are run, and what the second adds is what every further layer adds. Where some layers are computed
again in backward, what the forward leaves lies between all and none by their share; the backward holds most at the last
layer, which is stored then.

Shapes: B documents, L tokens, R rows that reach the head, N layers.
"""

from __future__ import annotations

import copy
import weakref
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PretrainedConfig

from lift_ds.method.loss import CHUNK_BYTES, chunked_gold_logprob, chunked_weighted_nll
from lift_ds.models.hollow import hollow_model
from lift_ds.models.keyed_dropout import KeyedDropout
from lift_ds.models.layers import MaskedDiffusionModel
from lift_ds.models.lora import inject_adapters, present_targets
from lift_ds.models.registry import is_blockwise
from lift_ds.models.settings import LoraConfig


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of storages that operations inside make, until they are freed.

    Attributes:
        now: Bytes that are held.
        peak: Most bytes that were held at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known: weakref.WeakSet[Any] = weakref.WeakSet()

    def know(self, tensors: Any) -> None:
        """Leaves storages out that were there before."""
        for tensor in tensors:
            self.known.add(tensor.untyped_storage())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for made in tree_leaves(result):
            if isinstance(made, Tensor):
                self._count(made.untyped_storage())
        return result

    def _count(self, storage: Any) -> None:
        if storage in self.known:
            return
        self.known.add(storage)
        size = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._free, size)

    def _free(self, size: int) -> None:
        self.now -= size


class FlashLike(torch.autograd.Function):
    """Attention as a flash kernel holds memory: queries, keys, values, output and log-sum-exp (B, H, L) in float32."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """An empty output."""
        attended = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, attended, query.new_empty(query.shape[:-1], dtype=torch.float32))
        return attended

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Empty gradients."""
        query, key, value, *_ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


def flash_like(query: Tensor, key: Tensor, value: Tensor, dropout: float) -> Tensor:
    """`FlashLike` as `encode` takes it in place of a mask."""
    attended: Tensor = FlashLike.apply(query, key, value)
    return attended


class MaskedFeatures(KeyedDropout):
    """A `KeyedDropout` that holds what that holds, and draws nothing: the meta device has no generator."""

    def forward(self, hidden: Tensor) -> Tensor:
        """The features times a mask that is kept for backward."""
        return torch.where(torch.zeros_like(hidden, dtype=torch.bool), hidden, 0) / (1 - self.p)


def hollow_with_adapters(
    config: PretrainedConfig, num_layers: int, dtype: torch.dtype, lora: LoraConfig
) -> MaskedDiffusionModel:
    """A model without data, of fewer layers, adapters in place where these have their targets; in training mode."""
    is_whole, config = num_layers == config.num_hidden_layers, copy.deepcopy(config)
    config.num_hidden_layers = num_layers
    model = hollow_model(config)
    with torch.device("meta"):
        targets = lora.targets if is_whole else present_targets(model, lora.targets)
        if lora.rank and targets:
            inject_adapters(model, lora.rank, lora.alpha, lora.dropout, targets, MaskedFeatures)
        elif lora.rank:
            model.requires_grad_(False)
    nn.Module.to(model, dtype=dtype)  # adapters, too, which are of their matrices' type
    model.train()
    return model


@dataclass(frozen=True)
class Held:
    """Most bytes that passes hold at once, beside weights and what the optimizer keeps.

    Args:
        saved: What the forward leaves for the backward, before the head.
        head: The head's logits and gradients on top of that, at most.
        backward: Most that is held later, on top of `saved`, until the embedding's turn: gradients on their way, and
            what is computed again.
        scoring: The pass without gradient, logits included.
    """

    saved: int
    head: int
    backward: int
    scoring: int

    @property
    def training(self) -> int:
        """Most of a training pass."""
        return self.saved + max(self.head, self.backward)


def measure_passes(
    config: PretrainedConfig,
    lora: LoraConfig,
    dtype: torch.dtype,
    num_checkpointed: int,
    num_documents: int,
    length: int,
    num_rows: int,
    device_type: str,
) -> Held:
    """What the passes of a micro-batch hold.

    Args:
        config: The model's.
        lora: Its adapters, if any.
        dtype: Type of the weights.
        num_checkpointed: Layers that are computed again in backward.
        num_documents: B.
        length: L.
        num_rows: R.
        device_type: `cpu` or `cuda`, by which the head's chunks go.
    """
    num_layers = int(config.num_hidden_layers)

    def measure_all(has_checkpointing: bool) -> Held:
        one, two = (
            measure_model(
                hollow_with_adapters(config, count, dtype, lora),
                count if has_checkpointing else 0,
                num_documents,
                length,
                num_rows,
                device_type,
            )
            for count in (1, 2)
        )
        return Held(*(a + (b - a) * (num_layers - 1) for a, b in zip(one, two, strict=True)))

    most = measure_all(num_checkpointed == num_layers)
    if not 0 < num_checkpointed < num_layers:
        return most
    saving = most.saved - measure_all(True).saved
    return replace(most, saved=most.saved - saving * num_checkpointed // num_layers)


def measure_model(
    model: MaskedDiffusionModel,
    num_checkpointed: int,
    num_documents: int,
    length: int,
    num_rows: int,
    device_type: str,
) -> tuple[int, int, int, int]:
    """What `Held` says of a model that is run as it is; arguments as in `measure_passes`."""
    model.checkpoint_layers(num_checkpointed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(_let_go)
    with torch.device("meta"):
        num_tokens = 2 * length if is_blockwise(model.config) else length  # [noised ; clean]
        ids = torch.zeros(num_documents, num_tokens, dtype=torch.long)
        rows, gold_ids = torch.zeros(2, num_rows, dtype=torch.long)
        row_weights = torch.zeros(num_rows)

    def encode() -> Tensor:
        return model.encode(ids, flash_like).flatten(0, 1)[rows]

    chunk_bytes = CHUNK_BYTES[device_type]
    learn = partial(chunked_weighted_nll, gold_ids=gold_ids, row_weights=row_weights, chunk_bytes=chunk_bytes)
    score = partial(chunked_gold_logprob, gold_ids=gold_ids, chunk_bytes=chunk_bytes)
    at_embedding: list[int] = []
    embedding: nn.Module = model.get_input_embeddings()

    def note(module: nn.Module, args: Any, embedded: Tensor) -> None:
        if embedded.requires_grad:
            embedded.register_hook(lambda gradient: at_embedding.append(trained.peak))

    with _counting(model) as scored, torch.no_grad():
        model.head(encode(), score)
    embedding.register_forward_hook(note)
    with _counting(model) as trained:
        hidden = encode()
        saved, trained.peak = trained.now, trained.now
        loss, _ = model.head(hidden, learn)
        head, trained.peak = trained.peak, trained.now
        del hidden
        loss.backward()
    backward = at_embedding[0] if at_embedding else trained.peak
    return saved, head - saved, backward - saved, scored.peak


def _counting(model: nn.Module) -> LiveBytes:
    counter = LiveBytes()
    counter.know(model.parameters())
    return counter


def _let_go(parameter: Tensor) -> None:
    parameter.grad = None
