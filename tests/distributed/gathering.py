"""Which layers ZeRO-3 holds while a backward runs: `torchrun gathering.py OUTPUT MODEL JSON...`; rank 0 writes JSON.

All layers are checkpointed, and under the last JSON also every second one (`half`).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus
from torch import nn

from lift_ds.data.batch import collate
from lift_ds.models.families import family_of
from lift_ds.ranks.launch import read_launch
from lift_ds.ranks.running import leave
from lift_ds.training.engine import Engine, start_distributed
from tests.distributed.jobs import forward_backward, make_documents, make_engine

LORA_RANK = 16
NUM_MICRO_BATCHES = 4
NUM_LAYERS = 10


def gathered_numel(layer: nn.Module) -> int:
    """Elements of a layer's parameters that are gathered or on their way, but for those that always are."""
    held = (parameter for parameter in layer.parameters() if parameter.ds_status != ZeroParamStatus.NOT_AVAILABLE)
    return sum(parameter.ds_numel for parameter in held if not parameter.ds_persist)


def watch_backward(engine: Engine) -> tuple[list[nn.Module], list[dict[str, Any]]]:
    """The layers, and a list to which each backward of one adds what all of them hold just then."""
    layer_class = family_of(engine.model.config).layer_class
    layers = [module for module in engine.root.modules() if isinstance(module, layer_class)]
    records: list[dict[str, Any]] = []

    def watch(index: int, layer: nn.Module) -> None:
        def note(gradient: torch.Tensor) -> None:
            held = [gathered_numel(each) for each in layers]
            records.append({"layer": index, "held": held})

        def after_forward(module: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
            if output.requires_grad:  # in training's forward; a recomputation only fills what that one's graph lacks
                output.register_hook(note)

        for module in layer.modules():
            if isinstance(module, nn.Linear):
                module.register_forward_hook(after_forward)

    for index, layer in enumerate(layers):
        watch(index, layer)
    return layers, records


def watch(rank: int, model: Path, json_path: Path, num_checkpointed: int) -> dict[str, Any]:
    """Micro-batches of LoRA with checkpointed layers under a JSON: what was held at each layer's backward."""
    engine = make_engine(json.loads(json_path.read_text()), NUM_MICRO_BATCHES * 2, 1, folder=model, lora_rank=LORA_RANK)
    engine.model.checkpoint_layers(num_checkpointed)
    layers, records = watch_backward(engine)
    sizes = [parameter for parameter in layers[0].parameters() if not parameter.ds_persist]
    documents, noises = make_documents(7 + rank, [0.2, 0.5, 0.8, 0.9], set())
    batches = [collate([document], [noise], 99) for document, noise in zip(documents, noises, strict=True)]
    loss = forward_backward(engine, batches)
    engine.update()
    found = {
        "loss": loss,
        "records": records,
        "layer": sum(parameter.ds_numel for parameter in sizes),
        "prefetch": engine.ds.config["zero_optimization"]["stage3_prefetch_bucket_size"],
    }
    engine.ds.destroy()
    return found


def main() -> None:
    output, model, *json_paths = map(Path, sys.argv[1:])
    launch = read_launch()
    start_distributed(launch)
    result = {path.stem: watch(launch.rank, model, path, NUM_LAYERS) for path in json_paths}
    result["half"] = watch(launch.rank, model, json_paths[-1], NUM_LAYERS // 2)
    if launch.is_main:
        output.write_text(json.dumps(result))
    leave(0)


if __name__ == "__main__":
    main()
