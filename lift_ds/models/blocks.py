"""Block attention: inside a block every token sees every other, and all blocks before; in training, in three parts.

    i and j are of one document, c the clean copy of a token, x the noised one, b the block size; i sees j where

        c_i, c_j    i // b >= j // b        finished blocks, as at decoding
        x_i, c_j    i // b >  j // b        a block that is denoised sees what is finished before it
        x_i, x_j    i // b == j // b
        c_i, x_j    never

Training runs both copies as one sequence, [noised ; clean], with the positions 0 to L-1 twice. One rule is the mask
function of FlexAttention on a GPU, and elsewhere the mask of SDPA, made for some queries at a time, so that what is
held does not grow with the square of the length.

Shapes: B sequences, L tokens, Q queries, H heads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .layers import Visible

CHUNK_PAIRS = 1 << 20
"""Most pairs of query and key whose mask is held at once: 1 MiB of it."""
CHUNK_QUERIES = 128
"""Most queries of a chunk, so that few of the keys that any of them sees are hidden from the others."""
KEPT_PAIRS = 1 << 24
"""Most pairs of a whole forward whose masks are kept, where all layers and backward need them; longer ones' are not."""


@dataclass(eq=False)
class BlockAttention:
    """What `encode` takes in place of a mask.

    Args:
        document: int64 (B, L), the same number for all tokens of a document.
        block: int64 (B, L), the number of the token's block, counted from where its document begins.
        is_noised: bool (B, L), true for the noised copies.
        is_real: bool (B, L), false for keys that only they themselves see, on padding; `None` where there are none.
    """

    document: Tensor
    block: Tensor
    is_noised: Tensor
    is_real: Tensor | None = None
    flex_mask: Any = field(default=None, init=False)  # made once, for all layers
    kept: dict[int, tuple[Tensor, Tensor | slice]] = field(
        default_factory=dict, init=False
    )  # masks by where they begin

    @staticmethod
    def finished(position_ids: Tensor, block_size: int, is_real: Tensor | None = None) -> BlockAttention:
        """Of clean tokens alone: the plain forward; a document begins where positions (B, L) do not count on."""
        block = position_ids // block_size
        return BlockAttention(documents(position_ids), block, torch.zeros_like(block, dtype=torch.bool), is_real)

    @staticmethod
    def training(position_ids: Tensor, block_size: int, is_real: Tensor | None = None) -> BlockAttention:
        """Of [noised ; clean]: twice as many tokens as there are positions (B, L)."""
        if is_real is not None:
            position_ids, is_real = position_ids.expand_as(is_real), is_real.repeat(1, 2)
        document, block = documents(position_ids).repeat(1, 2), (position_ids // block_size).repeat(1, 2)
        is_noised = torch.zeros_like(block, dtype=torch.bool)
        is_noised[:, : position_ids.shape[1]] = True
        return BlockAttention(document, block, is_noised, is_real)

    def rule(self) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
        """Whether queries see keys, by their places in the sequences `row`: of tensors that broadcast, bool."""
        document, block, is_noised, is_real = self.document, self.block, self.is_noised, self.is_real

        def sees(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            query_block, key_block = block[row, query], block[row, key]
            from_noised, to_noised = is_noised[row, query], is_noised[row, key]
            to_clean = ~to_noised & (key_block <= query_block - from_noised.long())
            among_noised = from_noised & to_noised & (key_block == query_block)
            seen = (document[row, query] == document[row, key]) & (to_clean | among_noised)
            return seen if is_real is None else (seen & is_real[row, key]) | (query == key)

        return sees

    def mask(self, start: int, end: int) -> Tensor:
        """What queries from `start` to before `end` see: bool (B, 1, end - start, L)."""
        rows, length = self.block.shape
        device = self.block.device
        row = torch.arange(rows, device=device)[:, None, None]
        query = torch.arange(start, end, device=device)[None, :, None]
        key = torch.arange(length, device=device)[None, None]
        return self.rule()(row, row, query, key)[:, None]

    def seen_mask(self, start: int, end: int) -> tuple[Tensor, Tensor | slice]:
        """The mask of some queries, on the CPU of the keys alone that any of them sees, and which these are."""
        mask = self.mask(start, end)
        if mask.device.type != "cpu":  # where the host would wait for it
            return mask, slice(None)
        seen = mask.flatten(0, 2).any(0).nonzero()[:, 0]
        first, last = int(seen[0]), int(seen[-1])
        if last - first + 1 == len(seen):  # a view, which takes no memory
            return mask[..., first : last + 1], slice(first, last + 1)
        return mask[..., seen], seen

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, dropout: float) -> Tensor:
        """Attention of (B, H, L, head_dim)."""
        grouped = query.shape[1] != key.shape[1]
        if query.is_cuda and not dropout:
            return self.in_one_kernel(query, key, value, grouped)

        rows, length = self.block.shape
        step = max(1, min(CHUNK_QUERIES, CHUNK_PAIRS // (rows * length)))
        keeps = rows * length * length <= KEPT_PAIRS
        if keeps and not self.kept:
            self.kept = {start: self.seen_mask(start, min(start + step, length)) for start in range(0, length, step)}

        def attend(part: Tensor, key: Tensor, value: Tensor, start: int) -> Tensor:
            mask, seen = self.kept[start] if keeps else self.seen_mask(start, start + part.shape[2])
            return F.scaled_dot_product_attention(
                part, key[:, :, seen], value[:, :, seen], attn_mask=mask, dropout_p=dropout, enable_gqa=grouped
            )

        parts = []
        for start, part in zip(range(0, length, step), query.split(step, dim=2), strict=True):
            is_view = keeps and isinstance(self.kept[start][1], slice)
            if step >= length or is_view or not torch.is_grad_enabled():
                parts.append(attend(part, key, value, start))
            else:  # keys, values and masks that are not kept are chosen again in backward
                parts.append(
                    checkpoint(attend, part, key, value, start, use_reentrant=False, preserve_rng_state=dropout > 0)
                )
        return torch.cat(parts, dim=2)

    def in_one_kernel(self, query: Tensor, key: Tensor, value: Tensor, grouped: bool) -> Tensor:
        """FlexAttention's, which leaves out the tiles in which nothing is seen."""
        make_mask, attend = flex_functions()
        if self.flex_mask is None:
            rows, length = self.block.shape
            self.flex_mask = make_mask(self.rule(), rows, None, length, length, device=query.device)
        return attend(query, key, value, block_mask=self.flex_mask, enable_gqa=grouped)


@cache
def flex_functions() -> tuple[Callable[..., Any], Callable[..., Tensor]]:
    """FlexAttention's mask and attention, compiled: uncompiled they would hold every pair of query and key."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    return torch.compile(create_block_mask), torch.compile(flex_attention)


def documents(position_ids: Tensor) -> Tensor:
    """The number of each token's document: int64, like the positions (B, L), whose breaks separate documents."""
    begins = position_ids[:, 1:] != position_ids[:, :-1] + 1
    return torch.cat([torch.zeros_like(position_ids[:, :1]), begins.long().cumsum(-1)], dim=1)


class BlockDiffusion:
    """A model whose plain forward is block attention; stands before `MaskedDiffusionModel` among a class's bases."""

    config: Any

    def visible(self, attention_mask: Visible, position_ids: Tensor) -> Visible:
        """Block attention, unless a mask (B, 1, L, L) or a function is given; see `MaskedDiffusionModel.visible`."""
        if attention_mask is not None and not (isinstance(attention_mask, Tensor) and attention_mask.dim() == 2):
            return attention_mask.bool() if isinstance(attention_mask, Tensor) else attention_mask
        is_real = None if attention_mask is None else attention_mask.bool()
        if is_real is not None:
            position_ids = position_ids.expand(len(is_real), -1)
        return BlockAttention.finished(position_ids, check_block_size(self.config), is_real)


def check_block_size(config: Any) -> int:
    """The block size of a model that denoises block after block.

    Raises:
        ValueError: The config names none, or more tokens than the model was made for.
    """
    size, longest = config.block_size, config.max_position_embeddings
    if type(size) is not int or not 1 <= size <= longest:
        raise ValueError(
            f"{config.model_type} config: block_size={size!r}: the tokens of a block, 1 to {longest}, are needed: "
            "block_size in config.json, or load_pretrained(..., block_size=...). Models differ by it; a name that ends "
            "in -b64 says 64."
        )
    return size
