"""Runs of programs that are not ours: `deepspeed strangers.py PLAN`; PLAN is JSON, a list of `make`'s arguments.

On a CPU both programs need two steps more than on a GPU: DeepSpeed's process group is opened first, and Accelerate's
state is told that this is a CPU, without which it would leave DeepSpeed out.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import deepspeed
import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DeepSpeedPlugin
from peft import LoraConfig, get_peft_model
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

LENGTH = 12
NUM_ROWS = 16
LEARNING_RATE = 1e-2


def make(program: str, **plan: Any) -> None:
    """Trains a model for some steps and leaves a checkpoint, as `program` does it."""
    deepspeed.init_distributed()
    AcceleratorState._reset_state(reset_partial_state=True)
    {"trainer": run_trainer, "accelerate": run_accelerate}[program](**plan)


def rows() -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [{"input_ids": ids, "labels": ids} for ids in torch.randint(3, 90, (NUM_ROWS, LENGTH), generator=generator)]


def loss_of(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
    return cross_entropy(outputs.logits.float().flatten(0, 1), labels.flatten())


def load_model(folder: str, dtype: torch.dtype, lora_rank: int) -> Any:
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype=dtype)
    if lora_rank:
        config = LoraConfig(r=lora_rank, lora_alpha=2 * lora_rank, target_modules=["q_proj", "v_proj"])
        model = get_peft_model(model, config, autocast_adapter_dtype=False)
    return model


def run_trainer(
    model: str, output: str, ds: dict[str, Any], lora_rank: int = 0, steps: int = 2, batch: int = 2, resume: Any = None
) -> None:
    """Hugging Face's Trainer; a checkpoint every two steps."""
    arguments = TrainingArguments(
        output_dir=output,
        max_steps=steps,
        save_steps=2,
        per_device_train_batch_size=batch,
        learning_rate=LEARNING_RATE,
        logging_steps=1,
        use_cpu=True,
        bf16=ds["bf16"]["enabled"] is True,
        deepspeed=ds,
        report_to=[],
        remove_unused_columns=False,
        average_tokens_across_devices=False,  # else the loss is multiplied by the number of ranks
    )
    dtype = torch.bfloat16 if lora_rank and arguments.bf16 else torch.float32
    trainer = Trainer(
        load_model(model, dtype, lora_rank),
        arguments,
        train_dataset=rows(),
        compute_loss_func=loss_of,
        processing_class=AutoTokenizer.from_pretrained(model),
    )
    trainer.train(resume_from_checkpoint=resume)


def run_accelerate(model: str, output: str, ds: dict[str, Any], lora_rank: int = 0) -> None:
    """A loop of one's own with `Accelerator.save_state`."""
    PartialState(cpu=True)
    accelerator = Accelerator(deepspeed_plugin=DeepSpeedPlugin(hf_ds_config=ds))
    dtype = torch.bfloat16 if lora_rank and ds["bf16"]["enabled"] else torch.float32
    loaded = load_model(model, dtype, lora_rank)
    optimizer = torch.optim.AdamW([each for each in loaded.parameters() if each.requires_grad], lr=LEARNING_RATE)
    prepared, optimizer, batches = accelerator.prepare(loaded, optimizer, torch.utils.data.DataLoader(rows(), 2))
    for _, batch in zip(range(2), batches, strict=False):
        accelerator.backward(loss_of(prepared(input_ids=batch["input_ids"]), batch["labels"]))
        optimizer.step()
        optimizer.zero_grad()
    accelerator.save_state(output)


if __name__ == "__main__":
    for each in json.loads(Path(sys.argv[-1]).read_text()):
        make(**each)
