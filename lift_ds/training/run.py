"""A whole run, from what was prepared: the model, the engine, the trainer."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, cast

import torch
from transformers import PreTrainedModel

from lift_ds.models.attention import attention_kernels, choose_attention
from lift_ds.models.experts import Experts, mixtures_of
from lift_ds.models.head import MaskedDiffusionModel
from lift_ds.models.kernels import choose_kernels, use_kernels
from lift_ds.models.layers import DecoderLayer
from lift_ds.models.lora import add_adapters
from lift_ds.models.weights import WeightSource, whole_shape
from lift_ds.objectives import Objective, make_objective
from lift_ds.objectives.lift import Lift
from lift_ds.planning.report import Plan
from lift_ds.ranks.background import BackgroundGroup, Links, NoLinks, ThreadRanks
from lift_ds.ranks.launch import TIME_LIMIT, Launch, number_in
from lift_ds.ranks.meeting import meet
from lift_ds.ranks.watchdog import Watchdog
from lift_ds.storage.run_folder import DONE, FAILED, LOG_FILE, METRICS_FILE, STOPPED
from lift_ds.storage.run_record import write_run

from .buffers import DifficultyBuffers
from .engine import Engine, build_model, current_device
from .inputs import Prepared
from .loop import StopRequest
from .memory import Difficulties, DifficultyMemory
from .metrics import MetricsFile
from .progress import make_progress
from .prometheus import PrometheusFile
from .resumed import Resumed
from .step import DiffusionStep
from .trainer import Trainer


def build_root(
    prepared: Prepared, source: WeightSource, ds_json: dict[str, Any], objective: Objective
) -> DiffusionStep:
    """The root module that the config describes: weights loaded, adapters and checkpointing in place."""
    run = prepared.run
    model = cast(MaskedDiffusionModel, build_model(prepared.config, source, ds_json, str(prepared.folder)))
    lora = run.lora
    if run.model.freeze_router:
        for mixture in mixtures_of(model):
            mixture.gate.requires_grad_(False)
    if lora.rank:
        add_adapters(model, lora.rank, lora.alpha, lora.dropout, lora.targets, run.seed)
    if num_checkpointed := run.model.num_checkpointed(int(prepared.config.num_hidden_layers)):
        model.checkpoint_layers(num_checkpointed)
    use_kernels(model, choose_kernels(run.model.kernels, current_device(), run.model.compile)[0])
    if run.model.compile:
        compile_layers(model)
    return DiffusionStep(
        model,
        objective,
        keeps_observations=run.difficulty.enabled,
        is_packed=run.data.packing != "none",
        kernel=choose_attention(prepared.config, run.model.attention, current_device(), model.dtype),
    )


def compile_layers(model: PreTrainedModel, backend: str = "inductor") -> None:
    """Compiles what every decoder layer computes before and after attention, for any length.

    ZeRO-3's gathering stays outside, in the layer's hooks.

    Raises:
        ValueError: Layers have experts, whose products are not compiled.
    """
    if any(isinstance(module, Experts) for module in model.modules()):
        raise ValueError("model.compile=true: layers with experts are not compiled; set model.compile=false")
    for module in model.modules():
        if isinstance(module, DecoderLayer):
            for part in ("before_attention", "after_attention"):
                setattr(module, part, torch.compile(getattr(module, part), dynamic=True, backend=backend))


def make_buffers(prepared: Prepared, engine: Engine, objective: Objective) -> Difficulties | None:
    """What the config asks to keep of tokens' difficulty."""
    run = prepared.run
    if not run.difficulty.enabled:
        return None
    vocab_size = whole_shape(engine.model.get_input_embeddings().weight)[0]
    decay = run.difficulty.decay
    if not (isinstance(objective, Lift) and objective.remembers_rows):
        return DifficultyBuffers(vocab_size, engine, decay, run.difficulty.sync_every)
    links: Links = BackgroundGroup() if engine.world_size > 1 else NoLinks()
    ranks = ThreadRanks(links, engine.rank, engine.world_size, threading.Event())
    table = DifficultyBuffers(vocab_size, ranks, decay, sync_every=1)
    return DifficultyMemory(table, ranks, objective.settings.scoring_budget, run.optim.steps)


def execute(
    prepared: Prepared,
    source: WeightSource,
    ds_json: dict[str, Any],
    launch: Launch,
    resumed: Resumed | None,
    plan: Plan,
) -> None:
    """Runs a prepared config on this rank, from engine to export; `resumed` is the run that goes on, if any.

    `plan` says what the run will need.
    """
    run, is_main = prepared.run, launch.is_main
    objective = make_objective(run.objective)
    engine = Engine(build_root(prepared, source, ds_json, objective), ds_json, run.optim)
    output = Path(run.output)
    if is_main:
        output.mkdir(parents=True, exist_ok=True)
        for manifest in prepared.data.manifests:
            manifest.save_indexes()
    metrics = MetricsFile(output / METRICS_FILE if is_main else None)
    progress = make_progress(is_main, run.optim.steps, f"lift_ds  {run.objective.method}  {output}", output / LOG_FILE)
    stop, buffers = StopRequest(), make_buffers(prepared, engine, objective)
    trainer = Trainer(prepared, ds_json, objective, engine, progress, metrics, stop, buffers, resumed, plan)
    if is_main:
        write_run(output, trainer.resolved)
        engine.monitors.write_settings(trainer.resolved)
        if run.runtime.prometheus_file is not None:
            metrics.listeners.append(PrometheusFile(Path(run.runtime.prometheus_file), run.output, progress.say).take)
    minutes = 0.9 * number_in(TIME_LIMIT, 1, 10) if run.runtime.timeout is None else run.runtime.timeout
    watchdog = Watchdog(engine.activity, launch.rank, launch.world_size, 60 * minutes, meet(launch).another_client())
    with closing(metrics), closing(progress), closing(watchdog), attention_kernels(engine.root.kernel):
        gc.freeze()  # modules and model stay: without this, every full collection walks through them for 0.1 s
        with ending(metrics):
            with stop.listening():
                step = trainer.fit()
            if trainer.is_done(step):
                trainer.finish(step)
                metrics.write("end", step, {"reason": DONE})
            else:
                progress.say(f"stopped after step {step}; continue with --resume auto --output {output}")
                metrics.write("end", step, {"reason": STOPPED, "detail": stop.signal_name})


@contextmanager
def ending(metrics: MetricsFile) -> Iterator[None]:
    """Leaves a last line of its block's error in the metrics, for those who look at the run from outside."""
    try:
        yield
    except Exception as error:
        with suppress(RuntimeError, ValueError):  # where that file is what failed, the error says so
            metrics.write("end", metrics.step, {"reason": FAILED, "detail": f"{type(error).__name__}: {error}"})
        raise
