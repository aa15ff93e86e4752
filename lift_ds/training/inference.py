"""Models that only answer: whole on every rank, or cut over the ranks by ZeRO-3."""

from __future__ import annotations

from pathlib import Path

import torch

from lift_ds.config.deepspeed import read_ds_json, resolve_ds_json
from lift_ds.config.loading import ConfigError
from lift_ds.config.run import RunConfig
from lift_ds.config.training import OptimConfig
from lift_ds.evaluation.asking.answering import Answerer, load_answerer, make_encoder, taught_format
from lift_ds.models.families import read_config
from lift_ds.models.vocabulary import check_tokenizer, load_tokenizer
from lift_ds.models.weights import check_fit, resolve_folder
from lift_ds.ranks.devices import check_device, check_no_gpu, settle_allocator, share_cores
from lift_ds.ranks.launch import Launch
from lift_ds.ranks.meeting import meet
from lift_ds.ranks.shares import Alone, Collectives, Ranks, agreement
from lift_ds.storage.frozen_base import hash_base
from lift_ds.storage.manifest import hash_file
from lift_ds.storage.safetensors_folder import ADAPTER_CONFIG, ADAPTER_WEIGHTS, SafetensorsFolder


def load_whole(path: str, adapters: str | None, launch: Launch) -> tuple[Answerer, Ranks]:
    """The whole model, with LoRA adapters in PEFT's format unmerged, on every rank; each answers on its own.

    Raises:
        ValueError: The model, its tokenizer or the adapters cannot be used.
        RuntimeError: This rank has no GPU of its own, or the ranks do not meet.
    """
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda", launch.local_rank) if on_gpu else torch.device("cpu")
    if on_gpu:
        check_device(launch, torch.cuda.device_count())
        settle_allocator()
        torch.cuda.set_device(device)
    else:
        check_no_gpu()
        share_cores(launch)
    if launch.world_size == 1:
        return load_answerer(path, adapters, device), Alone(device)
    meet(launch)
    torch.distributed.init_process_group("nccl" if on_gpu else "gloo")
    return load_answerer(path, adapters, device), Collectives(device)


def load_cut(path: str, json_path: Path, launch: Launch) -> tuple[Answerer, Ranks]:
    """A model whose weights are cut over the ranks, each of which reads its own part; all run the same forwards.

    Of a DeepSpeed JSON of ZeRO-3 "auto" is filled in; numbers of training do not matter.

    Raises:
        ValueError: The model, its tokenizer or the JSON cannot be used.
    """
    folder = resolve_folder(path)
    config, tokenizer = read_config(folder), load_tokenizer(folder)
    check_fit(config, folder)
    chat_format = taught_format(folder, None, tokenizer)
    encoder = make_encoder(config, tokenizer, path, chat_format)
    check_tokenizer(config, encoder.tokenizer, folder)
    loaded, problems = read_ds_json(json_path)
    from . import engine

    if not problems:
        run = RunConfig(optim=OptimConfig(global_batch=launch.world_size))
        has_bf16 = engine.has_bf16()
        resolved, problems = resolve_ds_json(
            loaded, json_path, run, launch.world_size, config, has_bf16, launch.local_world_size
        )
        stage = resolved["zero_optimization"]["stage"]
        if stage != 3:
            problems.append(f"{json_path}: zero_optimization.stage={stage} cuts no weights; use 3, or no --deepspeed")
    if problems:
        raise ConfigError(problems)
    engine.start_distributed(launch)
    model = engine.shard_for_inference(config, SafetensorsFolder(folder), resolved, str(folder))
    ranks = Collectives(engine.current_device())
    return Answerer(model, encoder, agreement(ranks), chat_format=chat_format), ranks


def weight_hashes(path: str, adapters: str | None, ranks: Ranks) -> dict[str, str]:
    """SHA-256 of every file with weights, and of those that say how they are used; all ranks call it and share it."""
    folder = resolve_folder(path)
    small = {"config.json": folder / "config.json"}
    if adapters is not None:
        small |= {name: Path(adapters) / name for name in (ADAPTER_WEIGHTS, ADAPTER_CONFIG)}
    shares = ranks.gather_objects(hash_base(folder, ranks.rank, ranks.world_size))
    shares.append(ranks.on_main(lambda: {name: hash_file(path) for name, path in small.items()}))
    return dict(sorted((name, record.sha256) for share in shares for name, record in share.items()))
