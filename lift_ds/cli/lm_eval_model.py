"""The model that lm-evaluation-harness knows as `lift_ds`; importing this module makes it known.

import lift_ds.cli.lm_eval_model
lm_eval.simple_evaluate("lift_ds", {"pretrained": "runs/001/export"}, tasks=["gsm8k"])
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from lm_eval.api.registry import register_model
from lm_eval.utils import simple_parse_args_string

from lift_ds.evaluation.harness.language_model import DiffusionLM
from lift_ds.evaluation.harness.settings import read_arguments
from lift_ds.ranks.launch import read_launch
from lift_ds.training.inference import load_whole, weight_hashes

from .answer_flags import with_flags

HARNESS_DEFAULT_DEVICE = "cuda:0"  # what the harness's command says where nobody said anything


@register_model("lift_ds")
class LoadedLM(DiffusionLM):
    """A model that is loaded by its name, whole on each of the launcher's processes."""

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: dict | None = None) -> LoadedLM:
        """See `create_from_arg_obj`."""
        return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

    @classmethod
    def create_from_arg_obj(cls, arg_dict: Mapping[str, Any], additional_config: dict | None = None) -> LoadedLM:
        """Loads the model of `--model_args`, which go before the harness's own `batch_size` and `device`.

        Raises:
            ValueError: An argument is wrong, or the model cannot be used.
            RuntimeError: The processes cannot be joined.
        """
        given = {name: value for name, value in (additional_config or {}).items() if value is not None}
        given.pop("max_batch_size", None)  # of the harness's search for a batch size, which is not made here
        device = str(given.pop("device", HARNESS_DEFAULT_DEVICE))
        arguments = read_arguments(given | {name: value for name, value in arg_dict.items() if value is not None})
        answerer, ranks = load_whole(arguments.pretrained, arguments.adapters, read_launch())
        if device not in (HARNESS_DEFAULT_DEVICE, str(ranks.device), ranks.device.type):
            raise ValueError(
                f"--device {device}: each process takes the GPU of its number, or the CPU where there is none, here "
                f"{ranks.device}; leave the flag away, and choose GPUs with CUDA_VISIBLE_DEVICES."
            )
        model: Any = answerer.model
        if arguments.dtype != "auto":
            model.to(dtype=getattr(torch, arguments.dtype))
        is_kept = arguments.progress is not None
        identity = json.dumps(weight_hashes(arguments.pretrained, arguments.adapters, ranks)) if is_kept else ""
        answerer, lines = with_flags(answerer, arguments.system, arguments.chat_template, arguments.adapters)
        if ranks.rank == 0:
            print("".join(f"{line}\n" for line in lines), end="", flush=True)
        return cls(answerer, ranks, arguments, arguments.pretrained, identity)
