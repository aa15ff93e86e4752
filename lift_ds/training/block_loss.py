"""The loss of block diffusion models as a plain function, for a training loop of your own.

Shapes: B rows, L tokens, D model width.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor

from lift_ds.method.loss import chunked_weighted_nll
from lift_ds.models.attention import attention_kernels
from lift_ds.models.head import encode_blocks
from lift_ds.models.layers import MaskedDiffusionModel
from lift_ds.models.registry import is_blockwise


def block_sft_loss(
    model: MaskedDiffusionModel,
    clean_ids: Tensor,
    masked: Tensor,
    weights: Tensor,
    num_targets: float | Tensor,
    position_ids: Tensor | None = None,
) -> Tensor:
    """Loss of given masks: sum over masked of weights * CE, divided by `num_targets`.

    One forward of [noised ; clean], 2L tokens: a masked token is predicted from its own block, noised, and the clean
    tokens of all blocks before.

    Args:
        model: A block diffusion model from `load_pretrained`.
        clean_ids: int64 (B, L) true ids, prompts included.
        masked: bool (B, L), the positions that are masked in the input and learned.
        weights: (B, L) weights of single tokens; read where `masked`.
        num_targets: The normaliser.
        position_ids: int64 (B, L), 0 to L-1 where not given. Where they do not count on, a document begins: it sees
            only itself, and its blocks are counted from there.

    Returns:
        A differentiable scalar; 0 where nothing is masked.

    Raises:
        ValueError: The model does not denoise block after block, or shapes differ.
    """
    if not is_blockwise(model.config):
        raise ValueError(f"{type(model).__name__} has no blocks; its loss is lift_ds.sft_loss(...).")
    for name, tensor in {"masked": masked, "weights": weights, "position_ids": position_ids}.items():
        if tensor is not None and tensor.shape != clean_ids.shape:
            raise ValueError(f"{name} has the shape {tuple(tensor.shape)}; {tuple(clean_ids.shape)} is expected.")
    masked = masked.bool()
    with attention_kernels("sdpa"):
        noised_ids = clean_ids.masked_fill(masked, model.config.mask_token_id)
        rows = encode_blocks(model, noised_ids, clean_ids, position_ids)[masked]
    learn = partial(chunked_weighted_nll, gold_ids=clean_ids[masked], row_weights=weights[masked].float())
    loss: Tensor = model.head(rows, learn)[0]
    return loss / num_targets
