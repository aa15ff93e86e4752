"""Each document's random numbers: its level, extra level, component and uniforms."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from lift_ds.data.batch import Document, Noise
from lift_ds.data.order.loader import NoiseRule, SlotPosition
from lift_ds.method.noise import level_from_uniform, stratify
from lift_ds.objectives import make_objective
from lift_ds.objectives.settings import ObjectiveSettings
from lift_ds.rng import Stream, keyed_uniform

NUM_SCALARS = 4


def make_noise_rule(settings: ObjectiveSettings, seed: int, global_batch: int) -> NoiseRule:
    """How documents' random numbers follow from (seed, epoch, sample).

    With `t_sampling: stratified` the level comes from (seed, step, slot, place in the slot's pack) instead, so that a
    global batch covers (0, 1] evenly. Neither depends on ranks or micro-batches.
    """
    objective = make_objective(settings)

    def draw(documents: Sequence[Document], step: int, positions: Sequence[SlotPosition]) -> list[Noise]:
        drawn = [
            keyed_uniform(seed, document.epoch, document.sample_id, Stream.NOISE, NUM_SCALARS + 2 * len(document.ids))
            for document in documents
        ]
        scalars = torch.from_numpy(np.array([uniforms[:NUM_SCALARS] for uniforms in drawn]).reshape(-1, NUM_SCALARS))
        u, u_rho, u_component, u_refresh = scalars.unbind(1)
        if settings.t_sampling == "stratified":
            u_step = float(keyed_uniform(seed, 0, step, Stream.STEP_TIME, 1)[0])
            u = torch.tensor([stratify(u_step, slot, global_batch, index) for slot, index in positions])
        t = level_from_uniform(u, settings.t_min)
        rho, component = objective.extra_level(u, t, u_rho), objective.component(t, u_component)
        columns = (t, rho, component, objective.is_refreshed(u_refresh, step))
        noises = []
        rows = zip(documents, drawn, *(column.tolist() for column in columns), strict=True)
        for document, uniforms, level, extra, component, is_refreshed in rows:
            count_uniform = float(keyed_uniform(seed, document.epoch, document.sample_id, Stream.KEPT_COUNT, 1)[0])
            of_tokens = uniforms[NUM_SCALARS:].reshape(2, -1)
            noises.append(Noise(level, extra, component, of_tokens, count_uniform, is_refreshed))
        return noises

    return draw
