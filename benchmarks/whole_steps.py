"""Whole optimizer steps of an objective, without files: what the benchmarks of speed have in common.

A step is forward, backward, update, difficulty table and all, of documents that are handed to it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor
from transformers import PretrainedConfig

from lift_ds.config.deepspeed import read_ds_json, resolve_ds_json
from lift_ds.config.run import RunConfig
from lift_ds.config.training import OptimConfig
from lift_ds.data.batch import Document, MicroBatch, Noise, collate
from lift_ds.data.order.loader import StepBatch
from lift_ds.models.attention import choose_attention
from lift_ds.models.head import MaskedDiffusionModel
from lift_ds.models.kernels import choose_kernels, use_kernels
from lift_ds.models.lora import add_adapters
from lift_ds.models.settings import LoraConfig
from lift_ds.models.weights import WeightSource, parameter_shapes
from lift_ds.objectives import make_objective
from lift_ds.objectives.settings import ObjectiveSettings
from lift_ds.training.buffers import DifficultyBuffers
from lift_ds.training.draws import make_noise_rule
from lift_ds.training.engine import Engine, build_model, current_device
from lift_ds.training.loop import StepPlan, compute_step
from lift_ds.training.normalizer import step_counts
from lift_ds.training.step import DiffusionStep
from lift_ds.training.timing import StepClock

SEED = 3
Noised = tuple[Document, Noise]
Cut = Callable[[list[Noised]], list[list[Noised]]]


class DeviceWeights:
    """Random weights, drawn where they stay: matrices Normal(0, 0.02), vectors ones; other numbers on other devices."""

    def __init__(self, config: PretrainedConfig) -> None:
        """Lists the names."""
        self.named = parameter_shapes(config)

    def shapes(self) -> dict[str, torch.Size]:
        """Shapes of every parameter."""
        return self.named

    def read(self, name: str, into: Tensor, start: int = 0) -> None:
        """Fills `into`."""
        if len(self.named[name]) == 1:
            into.fill_(1.0)
        else:
            into.normal_(0.0, 0.02, generator=torch.Generator(into.device).manual_seed(SEED + start))


class WholeSteps:
    """An engine on new weights that takes steps; the seconds that each took, and the last one's record.

    Args:
        config: The model's config.
        weights: Its weights.
        engine_json: A file of `ds_configs`.
        objective: What is learned first; `learn` sets another.
        documents: Most documents of a step, over all ranks.
        lora: Adapters, if any.
        num_checkpointed: Layers that are computed again in backward.
        is_packed: Whether the documents of a micro-batch go through the model without padding.
        has_bf16: Whether "auto" means bf16.
        optim: Learning rate and all; a constant one where not given.
    """

    def __init__(
        self,
        config: PretrainedConfig,
        weights: WeightSource,
        engine_json: Path,
        objective: ObjectiveSettings,
        documents: int,
        world_size: int = 1,
        lora: LoraConfig | None = None,
        num_checkpointed: int = 0,
        is_packed: bool = False,
        has_bf16: bool = True,
        optim: OptimConfig | None = None,
    ) -> None:
        self.vocab_size = int(config.embedding_size)
        optim = optim or OptimConfig(lr=1e-4, global_batch=documents)
        self.run = RunConfig(optim=optim, lora=lora or LoraConfig())
        loaded = read_ds_json(engine_json)[0] | {"train_micro_batch_size_per_gpu": "auto"}
        ds_json, problems = resolve_ds_json(loaded, engine_json, self.run, world_size, config, has_bf16)
        assert not problems, problems
        model = build_model(config, weights, ds_json, "new weights")
        if lora is not None and lora.rank:
            add_adapters(model, lora.rank, lora.alpha, lora.dropout, lora.targets, SEED)
        cast(MaskedDiffusionModel, model).checkpoint_layers(num_checkpointed)
        use_kernels(model, choose_kernels("auto", current_device(), is_compiled=False)[0])
        self.model = model
        kernel = choose_attention(config, "auto", current_device(), model.dtype)
        root = DiffusionStep(
            cast(MaskedDiffusionModel, model), make_objective(objective), is_packed=is_packed, kernel=kernel
        )
        self.engine = Engine(root, ds_json, optim)
        self.buffers: DifficultyBuffers | None = None
        self.learn(objective)

    def learn(self, objective: ObjectiveSettings) -> None:
        """Goes on with another objective, and an empty difficulty table where it keeps one."""
        is_lift = objective.method != "vanilla"
        self.run = self.run.model_copy(update={"objective": objective})
        self.objective = make_objective(objective)
        self.engine.root.objective = self.objective
        self.engine.root.keeps_observations = is_lift
        self.buffers = DifficultyBuffers(self.vocab_size, self.engine, decay=0.999, sync_every=20) if is_lift else None
        self.noise_rule = make_noise_rule(objective, SEED, self.run.optim.global_batch)
        self.seconds: list[float] = []
        self.scoring_seconds: list[float] = []

    def step(
        self,
        documents: list[Document],
        number: int,
        wait: Callable[[], None] | None = None,
        cut: Cut = lambda noised: [noised],
    ) -> float:
        """One whole optimizer step on this rank's documents.

        Args:
            documents: What is learned.
            number: Which step it is; levels and masks follow from it.
            wait: Returns when the device is done; a barrier of the ranks where not given.
            cut: Makes micro-batches of documents and their noise, as many as the engine accumulates; one where not
                given.

        Returns:
            The loss over all ranks.
        """
        wait = wait or self.engine.barrier
        slots = [(self.engine.rank + index * self.engine.world_size, 0) for index in range(len(documents))]
        noised = list(zip(documents, self.noise_rule(documents, number, slots), strict=True))
        micro_batches = [_collate(pairs) for pairs in cut(noised)]
        batch = StepBatch(micro_batches, sum(len(document.ids) for document in documents), 0, 0, {})
        wait()
        began = time.perf_counter()
        counts = self.engine.all_reduce(step_counts(batch.micro_batches, self.objective))
        plan = StepPlan(batch, counts, False, None)
        clock = StepClock(self.engine)
        totals, _, observed = compute_step(self.engine, self.run, self.objective, plan, number, self.buffers, clock)
        if self.buffers is not None:
            self.buffers.take(observed, number + 1)
        wait()
        self.seconds.append(time.perf_counter() - began)
        self.record = totals.record(time_scaling=True)
        self.scoring_seconds.append(self.record["scoring_seconds"])
        return float(self.record["loss"])


def _collate(noised: list[Noised]) -> MicroBatch:
    documents, noises = map(list, zip(*noised, strict=True))
    return collate(documents, noises, 1)


def draw_documents(lengths: list[int], prompt_share: float, vocab_size: int, key: tuple[int, ...]) -> list[Document]:
    """Documents of random tokens, whose frequencies fall like 1/rank, as words' do; ids 0 and 1 are control tokens."""
    generator = np.random.default_rng((SEED, *key))
    documents = []
    for index, length in enumerate(lengths):
        ids = (vocab_size ** generator.random(length)).astype(np.int64).clip(2, vocab_size - 1)
        response = np.arange(length) >= round(prompt_share * length)
        documents.append(Document(ids, response, np.zeros(length, bool), index, 0, ""))
    return documents
