"""The methods as one table, and each document's random numbers by method."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lift_ds.config import ObjectiveConfig
from lift_ds.data.batch import Document, Noise
from lift_ds.data.loader import NoiseRule
from lift_ds.diffusion.noise import extra_level, level_from_uniform, stratify
from lift_ds.lift.schedule import Component, lift2_component, lift3_component
from lift_ds.rng import Stream, keyed_uniform


@dataclass(frozen=True)
class Method:
    """One row of the table.

    Args:
        is_scored: Whether a superset is drawn and a scoring pass chooses from it.
        component: (t, c) -> component ids.
    """

    is_scored: bool
    component: Callable[[Tensor, float], Tensor]


METHODS: dict[str, Method] = {
    "vanilla": Method(False, lambda t, c: torch.full_like(t, int(Component.RANDOM), dtype=torch.int64)),
    "lift2": Method(True, lambda t, c: lift2_component(t)),
    "lift3": Method(True, lift3_component),
}


def make_noise_rule(objective: ObjectiveConfig, seed: int, global_batch: int) -> NoiseRule:
    """How a document's level, extra level, component and uniforms follow from (seed, epoch, sample).

    With `t_sampling: stratified` the level comes from (seed, step, slot) instead, so that a global batch covers (0, 1]
    evenly. Neither depends on ranks or micro-batches.
    """
    method = METHODS[objective.method]

    def draw(document: Document, step: int, slot: int) -> Noise:
        epoch, sample, length = document.epoch, document.sample_id, len(document.ids)

        def uniform(stream: Stream, count: int = 1) -> Tensor:
            return torch.from_numpy(keyed_uniform(seed, epoch, sample, stream, count))

        u = uniform(Stream.TIME)
        if objective.t_sampling == "stratified":
            u_step = float(keyed_uniform(seed, 0, step, Stream.STEP_TIME, 1)[0])
            u = torch.tensor([stratify(u_step, slot, global_batch)])
        t = level_from_uniform(u, objective.t_min)
        rho = extra_level(u, t, uniform(Stream.RHO), objective.rho) if method.is_scored else torch.zeros(1)
        component = method.component(t, objective.random_weight)
        return Noise(
            t=float(t),
            rho=float(rho),
            component=int(component),
            mask_uniform=uniform(Stream.MASK, length).numpy(),
            tie_uniform=uniform(Stream.TIES, length).numpy(),
        )

    return draw
