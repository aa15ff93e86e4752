"""The random numbers of documents, or of their blocks: levels, extra levels, components and uniforms."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from lift_ds.data.batch import Document, Noise
from lift_ds.data.order.loader import NoiseRule, SlotPosition
from lift_ds.method.noise import level_from_uniform, narrowed, stratify
from lift_ds.objectives import make_objective
from lift_ds.objectives.settings import ObjectiveSettings
from lift_ds.rng import Stream, keyed_uniform

NUM_SCALARS = 4


def make_noise_rule(
    settings: ObjectiveSettings, seed: int, global_batch: int, block_size: int | None = None
) -> NoiseRule:
    """How documents' random numbers follow from (seed, epoch, sample).

    With `t_sampling: stratified` the level comes from (seed, step, slot, place in the slot's pack) instead, so that a
    global batch covers (0, 1] evenly. Neither depends on ranks or micro-batches.

    With `level_per: block` each block of `block_size` tokens, counted from where its document begins, has its own:
    they follow from (seed, epoch, sample, number of the block), a stratified level from that number and its document's
    place in the step.
    """
    objective = make_objective(settings)
    assert (block_size is not None) == (settings.level_per == "block")

    def draw_scalars(document: Document, uniforms: np.ndarray) -> np.ndarray:
        """Float32 (number of spans, 4): uniforms of level, extra level, component, and how many are kept."""
        key = (seed, document.epoch, document.sample_id)
        if block_size is None:
            return np.append(uniforms[: NUM_SCALARS - 1], keyed_uniform(*key, Stream.KEPT_COUNT, 1))[None]
        num_blocks = -(-len(document.ids) // block_size)
        return keyed_uniform(*key, Stream.BLOCK_NOISE, NUM_SCALARS * num_blocks).reshape(-1, NUM_SCALARS)

    def draw(documents: Sequence[Document], step: int, positions: Sequence[SlotPosition]) -> list[Noise]:
        drawn = [
            keyed_uniform(seed, document.epoch, document.sample_id, Stream.NOISE, NUM_SCALARS + 2 * len(document.ids))
            for document in documents
        ]
        scalars = [draw_scalars(*each) for each in zip(documents, drawn, strict=True)]
        counts = [len(each) for each in scalars]
        u, u_rho, u_component, v = torch.from_numpy(np.concatenate([*scalars, np.zeros((0, 4), np.float32)])).unbind(1)
        if settings.t_sampling == "stratified":
            u_step = float(keyed_uniform(seed, 0, step, Stream.STEP_TIME, 1)[0])
            places = zip(positions, counts, strict=True)
            numbered = ((*place, block) for place, count in places for block in range(count))
            u = torch.tensor([stratify(u_step, slot, global_batch, index, block) for slot, index, block in numbered])
        u = narrowed(u, settings.t_min, settings.t_max)
        t = level_from_uniform(u, settings.t_min)
        columns = (t, objective.extra_level(u, t, u_rho), objective.component(t, u_component), v)
        of_documents = zip(*(column.split(counts) for column in columns), strict=True)
        u_refresh = torch.tensor([uniforms[NUM_SCALARS - 1] for uniforms in drawn])
        noises = []
        rows = zip(drawn, of_documents, objective.is_refreshed(u_refresh, step).tolist(), strict=True)
        for uniforms, of_document, is_refreshed in rows:
            level, extra, component, kept = (
                each.item() if block_size is None else each.numpy() for each in of_document
            )
            of_tokens = uniforms[NUM_SCALARS:].reshape(2, -1)
            noises.append(Noise(level, extra, component, of_tokens, kept, is_refreshed, block_size))
        return noises

    return draw
