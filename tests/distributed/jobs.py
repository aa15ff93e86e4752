"""What the ranks of a distributed test do: `torchrun jobs.py JOB OUTPUT ARGUMENT...`; rank 0 writes JSON to OUTPUT."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import ClassVar

import torch
from deepspeed import zero
from deepspeed.accelerator import get_accelerator
from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator
from deepspeed.utils import safe_get_full_grad
from deepspeed.utils.z3_leaf_module import z3_leaf_module

from lift_ds import load_pretrained
from lift_ds.config.deepspeed import resolve_ds_json
from lift_ds.config.run import RunConfig
from lift_ds.config.training import OptimConfig
from lift_ds.data.batch import Document, MicroBatch, Noise, collate
from lift_ds.data.order.loader import StepBatch
from lift_ds.method.components import lift3_component
from lift_ds.method.difficulty import NUM_BINS, DifficultyTable, Observations, level_bin
from lift_ds.models.families import family_of, read_config
from lift_ds.models.lora import add_adapters
from lift_ds.models.settings import LoraConfig
from lift_ds.models.weights import NewWeights, fill_parameters
from lift_ds.objectives import make_objective, objective_settings
from lift_ds.ranks.launch import read_launch
from lift_ds.ranks.running import leave
from lift_ds.ranks.shares import Collectives, agreement
from lift_ds.sampling.reverse import denoise, pad
from lift_ds.sampling.settings import SamplingSettings
from lift_ds.storage.safetensors_folder import SafetensorsFolder
from lift_ds.training.buffers import DifficultyBuffers
from lift_ds.training.engine import Engine, build_model, shard_for_inference, start_distributed
from lift_ds.training.loop import StopRequest, train_steps
from lift_ds.training.normalizer import document_scale, step_counts
from lift_ds.training.spikes import Spikes
from lift_ds.training.step import DiffusionStep
from tests.models.block_vectors import GIVEN

VECTORS = Path(__file__).resolve().parents[1] / "data" / "llada_tiny"
NUM_STEPS = 50
THRESHOLDS = ("stage3_param_persistence_threshold", "stage3_max_reuse_distance", "stage3_max_live_parameters")

LIFT3, VANILLA = (make_objective(objective_settings(method=method)) for method in ("lift3", "vanilla"))


def make_documents(seed: int, levels: list[float], nothing_masked: set[int]) -> tuple[list[Document], list[Noise]]:
    """Documents of varying length with given levels; those in `nothing_masked` have no response."""
    generator = torch.Generator().manual_seed(seed)
    documents, noises = [], []
    for place, level in enumerate(levels):
        length = int(torch.randint(12, 40, (1,), generator=generator))
        ids = torch.randint(0, 98, (length,), generator=generator).numpy()
        response = (torch.arange(length) >= 4).numpy() & (place not in nothing_masked)
        uniforms = torch.rand(2, length, generator=generator).numpy()
        t = torch.tensor([level])
        rho = (1 - level) * 0.6
        documents.append(Document(ids, response, response & False, sample_id=place, epoch=0, where="made"))
        noises.append(Noise(level, rho, int(lift3_component(t)), uniforms))
    return documents, noises


def make_engine(
    ds_json: dict,
    global_batch: int,
    micro_batch: int | str,
    lr: float = 1e-3,
    folder: Path = VECTORS,
    lora_rank: int = 0,
) -> Engine:
    """A LIFT-3 engine on the reference checkpoint or another one, perhaps with adapters."""
    config = read_config(folder)
    optim = OptimConfig(global_batch=global_batch, lr=lr, steps=NUM_STEPS, schedule="constant", warmup_ratio=0.0)
    lora = LoraConfig(rank=lora_rank, alpha=2.0 * max(lora_rank, 1), dropout=0.0)
    run = RunConfig(optim=optim, lora=lora)
    world_size = torch.distributed.get_world_size()
    ds_json = {**ds_json, "train_micro_batch_size_per_gpu": micro_batch}
    resolved, problems = resolve_ds_json(ds_json, Path("test.json"), run, world_size, config, False)
    assert not problems, problems
    model = build_model(config, SafetensorsFolder(folder), resolved, "reference")
    if lora_rank:
        add_adapters(model, lora.rank, lora.alpha, lora.dropout, lora.targets, 0)
    return Engine(DiffusionStep(model, LIFT3), resolved, optim)


def forward_backward(engine: Engine, batches: list[MicroBatch]) -> float:
    """One step's gradients; returns its loss over all ranks."""
    totals = engine.all_reduce(step_counts(batches, engine.root.objective))
    loss_sum = torch.zeros(1)
    for place, batch in enumerate(batches):
        scale = document_scale(batch, "response_tokens", totals, len(batches) * engine.world_size)
        is_last = place + 1 == len(batches)
        loss_sum += engine.forward_backward(batch, scale, (0, 0), is_last=is_last).loss / engine.loss_factor
    return float(engine.all_reduce(loss_sum))


def divergent(rank: int, *json_paths: str) -> dict:
    """50 LIFT-3 steps for each JSON; the ranks have wildly different levels, and sometimes nothing is masked."""
    invalidations = []
    invalidate = PartitionedParameterCoordinator._invalidate_trace

    def counted(self: PartitionedParameterCoordinator) -> None:
        invalidations.append(1)
        invalidate(self)

    PartitionedParameterCoordinator._invalidate_trace = counted
    results = {}
    for path in json_paths:
        invalidations.clear()
        engine = make_engine(json.loads(Path(path).read_text()), global_batch=8, micro_batch=2)
        losses = []
        for step in range(NUM_STEPS):
            everyones = []
            for owner in (0, 1):
                level = 0.03 if owner == step % 2 else 0.97
                silent = {0, 1, 2, 3} if owner == 0 and step % 5 == 3 else set()
                everyones.append(make_documents(1000 * step + owner, [level, 0.5, level, level], silent))
            documents, noises = everyones[rank]
            batches = [collate(documents[start : start + 2], noises[start : start + 2], 99) for start in (0, 2)]
            losses.append(forward_backward(engine, batches))
            engine.update()
        results[Path(path).stem] = {"losses": losses, "invalidations": len(invalidations)}
        if engine.stage == 3:
            blocks = engine.root.model.model.blocks
            results[Path(path).stem]["leaves"] = sum(z3_leaf_module(block) for block in blocks)
            results[Path(path).stem]["invalidations_when_the_pattern_changes"] = change_pattern(
                engine, batches, invalidations
            )
        engine.ds.destroy()
    return results


def change_pattern(engine: Engine, batches: list[MicroBatch], invalidations: list[int]) -> int:
    """Trace invalidations when scoring is left out of every second step: what the constant pattern avoids."""
    invalidations.clear()
    for step in range(4):
        engine.root.objective = LIFT3 if step % 2 == 0 else VANILLA
        forward_backward(engine, batches)
        engine.update()
    return len(invalidations)


def gradients(rank: int, stage: str, output: str) -> dict:
    """The gradients of three equal steps of four documents, cut over ranks and other micro-batches each time.

    Rank 0 saves them. The learning rate is too small to change a weight.
    """
    section = {"stage": int(stage)}
    if stage == "3":
        section |= dict.fromkeys(THRESHOLDS, 0)
    world_size = torch.distributed.get_world_size()
    ds_json = {"bf16": {"enabled": False}, "zero_optimization": section}
    engine = make_engine(ds_json, global_batch=4, micro_batch="auto", lr=1e-30)
    documents, noises = make_documents(7, [0.2, 0.5, 0.8, 0.9], {3})
    mine = range(rank, 4, world_size)
    steps = []
    for rows in (1, 2, 1):
        parts = [mine[start : start + rows] for start in range(0, len(mine), rows)]
        batches = [collate([documents[each] for each in part], [noises[each] for each in part], 99) for part in parts]
        loss = forward_backward(engine, batches)
        found = {name: safe_get_full_grad(parameter) for name, parameter in engine.root.named_parameters()}
        gradients = {name: gradient.clone() for name, gradient in found.items()}
        steps.append({"loss": loss, "micro_batches": len(batches), "gradients": gradients, "norm": engine.update()})
    if rank == 0:
        torch.save(steps, output)
    return {}


def partitioned_loading(rank: int, model: str, ranks_within_node: str) -> dict:
    """Each rank's share of every weight, gathered again, equals the file; so do weights drawn anew.

    Sizes are odd, so that the second rank's ranges end in padding; half of the tensors are stored in bf16. The bytes
    are those of this process's read calls.
    """
    get_accelerator().is_fp16_supported = lambda: False  # as on most CPUs, where DeepSpeed prefers bf16
    folder = Path(model)
    config = read_config(folder)
    source = SafetensorsFolder(folder)
    section = {"stage": 3, "zero_hpz_partition_size": int(ranks_within_node)}
    ds_json = {"zero_optimization": section, "bf16": {"enabled": False}, "train_micro_batch_size_per_gpu": 1}
    named = dict(build_model(config, source, ds_json, "reference").named_parameters())
    result = {"bytes": 0, "worst": 0.0, "padding": 0}
    for weights in (source, NewWeights(config, 5)):
        before = bytes_read()
        fill_parameters(named.items(), weights, "reference")
        result["bytes"] += bytes_read() - before if weights is source else 0
        for name, parameter in named.items():
            start = parameter.ds_tensor.numel() * rank
            padding = parameter.ds_tensor[max(0, parameter.ds_numel - start) :]
            result["padding"] += padding.numel()
            assert not padding.any()
            with zero.GatheredParameters([parameter]):
                result["worst"] = max(result["worst"], float((parameter - weights.tensor(name)).abs().max()))
    everyone = [None, None]
    torch.distributed.all_gather_object(everyone, result)
    return {key: [each[key] for each in everyone] for key in result}


def bytes_read() -> int:
    """What this process's read calls have returned so far, whatever they read."""
    return int(Path("/proc/self/io").read_text().split("rchar: ")[1].split()[0])


def tied(rank: int) -> dict:
    """A model with tied weights: training loss and evaluation under ZeRO-3 equal one process's."""
    config = read_config(VECTORS)
    config.weight_tying = True
    ds_json = {"zero_optimization": {"stage": 3} | dict.fromkeys(THRESHOLDS, 0), "bf16": {"enabled": False}}
    ds_json["train_micro_batch_size_per_gpu"] = 1
    weights = NewWeights(config, 5)
    engine = Engine(DiffusionStep(build_model(config, weights, ds_json, "tied"), LIFT3), ds_json, OptimConfig())
    documents, noises = make_documents(7, [0.5, 0.8], set())
    batches = [collate([documents[rank]], [noises[rank]], 99)]
    alone = family_of(config).model_class(config)
    fill_parameters(alone.named_parameters(), weights, "tied")
    both = collate(documents, noises, 99)
    scale = document_scale(both, "response_tokens", step_counts([both], LIFT3), 1)
    loss, _ = DiffusionStep(alone, LIFT3)(both, scale)
    before = forward_backward(engine, batches)
    engine.update()
    engine.root.eval()
    with torch.no_grad():
        logits = engine.model.head(engine.model.encode(both.clean_ids))
    return {"loss": before, "expected": float(loss), "is_finite": bool(logits.isfinite().all())}


def families(rank: int, output: str, *settings: str) -> dict:
    """Four steps of each FOLDER:LORA_RANK, and again from a save after the second: their losses, and one process's."""
    ds_json = {"zero_optimization": {"stage": 3} | dict.fromkeys(THRESHOLDS, 0), "bf16": {"enabled": False}}
    documents, noises = make_documents(7, [0.5, 0.8], set())
    batches, both = [collate([documents[rank]], [noises[rank]], 99)], collate(documents, noises, 99)
    results = {}
    for number, setting in enumerate(settings):
        folder, lora_rank = setting.rsplit(":", 1)
        save = Path(output) / str(number)
        losses = []
        for steps in (range(4), range(2, 4)):
            engine = make_engine(ds_json, 2, 1, 1e-2, Path(folder), int(lora_rank))
            if steps[0] == 2:
                engine.ds.load_checkpoint(str(save), tag="half")
            for step in steps:
                losses.append(forward_backward(engine, batches))
                engine.update()
                if step == 1:
                    engine.ds.save_checkpoint(str(save), tag="half")
            engine.ds.destroy()
        alone, _ = load_pretrained(folder)
        assert all(z3_leaf_module(layer) for layer in engine.root.modules() if type(layer).__name__.endswith("Layer"))
        scale = document_scale(both, "response_tokens", step_counts([both], LIFT3), 1)
        loss, _ = DiffusionStep(alone, LIFT3)(both, scale)
        results[setting] = {"straight": losses[:4], "resumed": losses[4:], "alone": float(loss)}
    return results


def stages(rank: int, *folders: str) -> dict:
    """Vanilla SFT of each model under ZeRO-0 and ZeRO-3, levels near 0 on one rank and near 1 on the other: losses."""
    results = {}
    for folder in folders:
        for section in ({"stage": 0}, {"stage": 3} | dict.fromkeys(THRESHOLDS, 0)):
            ds_json = {"bf16": {"enabled": False}, "zero_optimization": section}
            engine = make_engine(ds_json, 4, 2, folder=Path(folder))
            engine.root.objective = VANILLA
            losses = []
            for step in range(8):
                level = 0.05 if rank == step % 2 else 0.95
                documents, noises = make_documents(1000 * step + rank, [level, 0.5], {0, 1} if step == rank else set())
                losses.append(forward_backward(engine, [collate(documents, noises, 99)]))
                engine.update()
            engine.ds.destroy()
            results[f"{Path(folder).name} {section['stage']}"] = losses
    return results


def routing(rank: int, json_paths: str, *folders: str) -> dict:
    """LIFT-3 steps of mixtures whose experts of one half see tokens of one rank alone: losses, and who saw how many.

    Ids below 50, and the mask token, go to the first half of the experts, others to the second; the ranks have one kind
    each, and swap after every step.
    """
    results = {}
    for folder in folders:
        for path in json_paths.split(","):
            engine = make_engine(json.loads(Path(path).read_text()), 4, 2, folder=Path(folder))
            mixtures, seen = engine.root.choices.mixtures, {}

            def count(router: torch.nn.Module, given: tuple, out: tuple, seen: dict = seen) -> None:
                of_second = out[1] >= out[0].shape[1] // 2
                totals = seen.setdefault("training" if torch.is_grad_enabled() else "scoring", [0, 0])
                totals[0] += int((~of_second).sum())
                totals[1] += int(of_second.sum())

            for mixture in mixtures:
                mixture.gate.register_forward_hook(count)
            losses, counts = [], []
            for step in range(8):
                is_second = rank == step % 2
                documents, noises = make_documents(1000 * step + rank, [0.05 if is_second else 0.95, 0.9], set())
                for document in documents:
                    document.ids[:] = document.ids % 50 + 50 * is_second
                seen.clear()
                fill = 50 if is_second else 0  # of the rank's own kind, as routers see padding, too
                losses.append(forward_backward(engine, [collate(documents, noises, fill)]))
                counts.append([is_second, seen["training"], seen["scoring"]])
                engine.update()
            engine.ds.destroy()
            name = f"{Path(folder).name} {Path(path).stem}"
            results[name] = {"losses": losses, "counts": engine.gather_objects(counts)}
    return results


def buffers(rank: int) -> dict:
    """The sharded table equals one process's; ranks observe and ask for different tokens, and one for none."""
    engine = make_engine({"bf16": {"enabled": False}, "zero_optimization": {"stage": 3}}, 2, 1)
    sharded = DifficultyBuffers(101, engine, decay=0.9, sync_every=3)
    alone = DifficultyTable(101, decay=0.9)
    generator = torch.Generator().manual_seed(3)
    worst = 0.0
    for step in range(1, 11):
        tokens = torch.randint(101, (80,), generator=generator)
        levels, nll = torch.rand(80, generator=generator), torch.rand(80, generator=generator)
        mine = slice(0, 60) if rank == 0 else slice(60, 60 if step == 3 else 80)
        everyone = slice(0, 60 if step == 3 else 80)
        alone.observe([Observations.of(tokens[everyone], levels[everyone], nll[everyone])], step)
        sharded.observe([(tokens[mine], levels[mine], nll[mine])], step)
        if step % 3 == 0:
            alone.set_groups(alone.absorb(alone.outgoing(step), step))
            asked = slice(0, 40) if rank == 0 else slice(40, 40 if step == 6 else 80)
            found = sharded.look_up(tokens[asked], levels[asked])
            expected = alone.look_up(tokens[asked] * NUM_BINS + level_bin(levels[asked]))
            differences = torch.cat([(found - expected).abs(), torch.zeros(1)])
            worst = max(worst, float(differences.max()))
    worst = float(engine.all_reduce(torch.tensor([worst]), "max"))
    return {"worst": worst, "bytes": sharded.bytes_moved, "share": sharded.table.num_bytes / alone.num_bytes}


def bad_steps(rank: int) -> dict:
    """Rank 1's loss is NaN in steps 2 and 4 of 5; one bad step is allowed, the second ends the run."""
    engine = make_engine({"bf16": {"enabled": False}, "zero_optimization": {"stage": 3}}, 2, 1)
    documents, noises = make_documents(7, [0.5, 0.8], set())
    batch = collate([documents[rank]], [noises[rank]], 99)
    step_batch = StepBatch([batch], num_tokens=9, num_skipped=0, num_bad_rows=0, state={})
    matrix = dict(engine.root.named_parameters())["model.model.transformer.ff_out.weight"]
    state: dict = {"weights": [], "bad": [], "samples": [], "error": ""}

    class Loader:
        state: ClassVar[dict] = {}

        def __next__(self) -> StepBatch:
            return step_batch

    def spoil(module: torch.nn.Module, inputs: tuple, hidden: torch.Tensor) -> torch.Tensor:
        return hidden * float("nan") if rank == 1 and len(state["bad"]) in (1, 3) else hidden

    engine.root.model.model.transformer["ln_f"].register_forward_hook(spoil)

    def after_step(step: int, record: dict) -> None:
        with zero.GatheredParameters([matrix]):
            state["weights"].append(float(matrix.detach().double().sum()))
        state["bad"].append(record["num_bad_steps"])
        state["samples"].append(record.get("bad_sample_ids"))

    run = RunConfig(optim=OptimConfig(steps=5, global_batch=2, max_bad_steps=1), objective=LIFT3.settings)
    try:
        train_steps(engine, run, LIFT3, Loader(), 0, StopRequest(), None, Spikes(None), after_step)
    except RuntimeError as error:
        state["error"] = str(error)
    return state | {"errors": engine.gather_objects(state["error"])}


def spikes(rank: int, stage: str) -> dict:
    """Rank 1's logits are a thousand times as large in step 2 of 4, as norms of earlier steps tell."""
    engine = make_engine({"bf16": {"enabled": False}, "zero_optimization": {"stage": int(stage)}}, 2, 1)
    documents, noises = make_documents(7, [0.5, 0.8], set())
    step_batch = StepBatch([collate([documents[rank]], [noises[rank]], 99)], 9, 0, 0, {})
    matrix = dict(engine.root.named_parameters())["model.model.transformer.ff_out.weight"]
    records, weights = [], []

    class Loader:
        state: ClassVar[dict] = {}

        def __next__(self) -> StepBatch:
            return step_batch

    def grow(module: torch.nn.Module, inputs: tuple, hidden: torch.Tensor) -> torch.Tensor:
        return hidden * 1000 if rank == 1 and len(records) == 1 else hidden

    engine.root.model.model.transformer["ln_f"].register_forward_hook(grow)

    def after_step(step: int, record: dict) -> None:
        with zero.GatheredParameters([matrix], enabled=stage == "3"):
            weights.append(float(matrix.detach().double().sum()))
        records.append((record["grad_norm"], record.get("norm_limit")))

    seen = Spikes(10.0)
    seen.norms.extend([1.0] * 9 + [2.0] * 9)
    run = RunConfig(optim=OptimConfig(steps=4, global_batch=2), objective=LIFT3.settings)
    train_steps(engine, run, LIFT3, Loader(), 0, StopRequest(), None, seen, after_step)
    return {"records": engine.gather_objects(records), "weights": weights, "norms": list(seen.norms)}


def slow_rank(rank: int, place: str) -> dict:
    """Rank 1 sleeps 0.6 s a step, in its loader or twice in a layer; what each of six steps says of the ranks."""
    thresholds = dict.fromkeys((*THRESHOLDS, "stage3_prefetch_bucket_size"), 0)
    engine = make_engine({"bf16": {"enabled": False}, "zero_optimization": {"stage": 3, **thresholds}}, 2, 1)
    documents, noises = make_documents(7, [0.5, 0.8], set())
    step_batch = StepBatch([collate([documents[rank]], [noises[rank]], 99)], 9, 0, 0, {})
    records = []

    def sleep(seconds: float) -> None:
        time.sleep(seconds * (rank == 1))

    class Loader:
        state: ClassVar[dict] = {}

        def __next__(self) -> StepBatch:
            sleep(0.6 * (place == "loader"))
            return step_batch

    if place == "layer":  # the scoring and the training pass
        first, _ = engine.root.model.model.transformer["blocks"]
        first.register_forward_hook(lambda *given: sleep(0.3))
    run = RunConfig(optim=OptimConfig(steps=6, global_batch=2), objective=LIFT3.settings)
    arguments = (engine, run, LIFT3, Loader(), 0, StopRequest(), None, Spikes(None))
    train_steps(*arguments, lambda step, record: records.append(record))
    return {"records": records}


def diverging(rank: int) -> dict:
    """Rank 1 runs its two layers in the other order in step 3 of 5; nothing stays gathered or is fetched ahead."""
    thresholds = dict.fromkeys((*THRESHOLDS, "stage3_prefetch_bucket_size"), 0)
    engine = make_engine({"bf16": {"enabled": False}, "zero_optimization": {"stage": 3, **thresholds}}, 2, 1)
    documents, noises = make_documents(7, [0.5, 0.8], set())
    step_batch = StepBatch([collate([documents[rank]], [noises[rank]], 99)], 9, 0, 0, {})
    blocks, taken = engine.root.model.model.transformer["blocks"], []
    plain = list(blocks)

    class Loader:
        state: ClassVar[dict] = {}

        def __next__(self) -> StepBatch:
            if rank == 1 and len(taken) == 2:
                blocks._modules.update({"0": plain[1], "1": plain[0]})
            return step_batch

    run, error = RunConfig(optim=OptimConfig(steps=5, global_batch=2), objective=LIFT3.settings), ""
    try:
        train_steps(
            engine, run, LIFT3, Loader(), 0, StopRequest(), None, Spikes(None), lambda step, record: taken.append(step)
        )
    except RuntimeError as caught:
        error = str(caught)
    return {"errors": engine.gather_objects(error), "steps": len(taken)}


def precisions(rank: int) -> dict:
    """Type of the weights with bf16 off and on under ZeRO-3, on a processor that has no float16."""
    get_accelerator().is_fp16_supported = lambda: False
    found = {}
    for is_bf16 in (False, True):
        ds_json = {"train_batch_size": 1, "bf16": {"enabled": is_bf16}, "zero_optimization": {"stage": 3}}
        model = build_model(read_config(VECTORS), SafetensorsFolder(VECTORS), ds_json, "weights")
        found[str(is_bf16)] = sorted({str(each.ds_tensor.dtype) for each in model.parameters()})
    return found


def block_answers(rank: int, name: str) -> dict:
    """Answers of a rank's own prompts by a model cut over the ranks, and by a whole one; forwards of the cut one."""
    folder, given = VECTORS.parent / name, GIVEN[name]
    config, source = read_config(folder, **given), SafetensorsFolder(folder)
    ds_json = {"zero_optimization": {"stage": 3} | dict.fromkeys(THRESHOLDS, 0), "bf16": {"enabled": False}}
    model = shard_for_inference(config, source, ds_json | {"train_micro_batch_size_per_gpu": 1}, name)
    whole, _ = load_pretrained(folder, **given)
    size = config.block_size
    settings = SamplingSettings(gen_length=4 * size, block_length=size, steps=4 * size, stop_early=True)
    prompts, attention = pad([[5, 6, 7, 8, 9], [10, 11], list(range(20, 29))][: 3 if rank == 0 else 1], 247)
    stop = int(denoise(whole, prompts, settings, attention).ids[0, -1])
    counted = []
    model.model.norm.register_forward_hook(lambda *_: counted.append(1))
    ranks = Collectives(torch.device("cpu"))
    cut = denoise(model, prompts, settings, attention, any_rank=agreement(ranks), stop_ids=[stop])
    expected = denoise(whole, prompts, settings, attention, stop_ids=[stop])
    mine = {"cut": cut.ids.tolist(), "whole": expected.ids.tolist(), "num_forwards": len(counted)}
    everyone = ranks.gather_objects(mine)
    return {key: [each[key] for each in everyone] for key in mine}


def main() -> None:
    job, output, *arguments = sys.argv[1:]
    launch = read_launch()
    start_distributed(launch)
    result = globals()[job](launch.rank, *arguments)
    if launch.is_main:
        Path(output).write_text(json.dumps(result))
    leave(0)


if __name__ == "__main__":
    main()
