"""Each document's random numbers: its level, extra level, component and uniforms."""

from __future__ import annotations

import torch
from torch import Tensor

from lift_ds.config import ObjectiveConfig
from lift_ds.data.batch import Document, Noise
from lift_ds.data.loader import NoiseRule
from lift_ds.diffusion.noise import extra_level, level_from_uniform, stratify
from lift_ds.objectives import make_objective
from lift_ds.rng import Stream, keyed_uniform


def make_noise_rule(settings: ObjectiveConfig, seed: int, global_batch: int) -> NoiseRule:
    """How a document's random numbers follow from (seed, epoch, sample).

    With `t_sampling: stratified` the level comes from (seed, step, slot, place in the slot's pack) instead, so that a
    global batch covers (0, 1] evenly. Neither depends on ranks or micro-batches.
    """
    objective = make_objective(settings)

    def draw(document: Document, step: int, slot: int, place: int = 0) -> Noise:
        epoch, sample, length = document.epoch, document.sample_id, len(document.ids)

        def uniform(stream: Stream, count: int = 1) -> Tensor:
            return torch.from_numpy(keyed_uniform(seed, epoch, sample, stream, count))

        u = uniform(Stream.TIME)
        if settings.t_sampling == "stratified":
            u_step = float(keyed_uniform(seed, 0, step, Stream.STEP_TIME, 1)[0])
            u = torch.tensor([stratify(u_step, slot, global_batch, place)])
        t = level_from_uniform(u, settings.t_min)
        rho = extra_level(u, t, uniform(Stream.RHO), settings.rho) if objective.draws_superset else torch.zeros(1)
        return Noise(
            t=float(t),
            rho=float(rho),
            component=int(objective.component(t, uniform(Stream.COMPONENT))),
            mask_uniform=uniform(Stream.MASK, length).numpy(),
            tie_uniform=uniform(Stream.TIES, length).numpy(),
            is_refreshed=not objective.reads_difficulty
            or step < settings.warm_start_steps
            or float(uniform(Stream.REFRESH)) < settings.refresh_share,
        )

    return draw
