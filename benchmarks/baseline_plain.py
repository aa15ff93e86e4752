"""What people run today: masked diffusion and LIFT-3 in a plain loop with Hugging Face's `Trainer`, without lift_ds.

    python benchmarks/baseline_plain.py MODEL_FOLDER ROWS.jsonl FIRST_STEP

takes one step on rows of `prompt` and `response`, grouped by length, and writes the file FIRST_STEP when it is done.
The other way in is a cell's JSON, from `benchmarks/baseline.py`.

The model is transformers' Llama, attending to every position through SDPA, with a LLaDA folder's weights. A micro-batch
is padded to its longest row, the model returns the logits of all positions, and the loss is the cross entropy of the
masked ones over t. AdamW is torch's fused one, two ranks are DDP's. LIFT-3 scores its superset in a pass of its own
without gradient, and chooses row by row.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from baseline_cell import Cell, Watch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import (
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

LEARNING_RATE, WEIGHT_DECAY = 1e-4, 0.1
LLAMA_NAMES = (
    ("model.transformer.wte.", "model.embed_tokens."),
    ("model.transformer.ln_f.", "model.norm."),
    ("model.transformer.ff_out.", "lm_head."),
    ("model.transformer.blocks.", "model.layers."),
    (".attn_norm.", ".input_layernorm."),
    (".attn_out.", ".self_attn.o_proj."),
    (".q_proj.", ".self_attn.q_proj."),
    (".k_proj.", ".self_attn.k_proj."),
    (".v_proj.", ".self_attn.v_proj."),
    (".ff_norm.", ".post_attention_layernorm."),
    (".ff_proj.", ".mlp.gate_proj."),
    (".up_proj.", ".mlp.up_proj."),
    (".ff_out.", ".mlp.down_proj."),
)


def load_model(folder: Path) -> tuple[LlamaForCausalLM, int, int]:
    """A bidirectional Llama with the weights of a LLaDA folder, and its ids of mask and padding."""
    given = json.loads((folder / "config.json").read_text())
    fields: dict[str, Any] = {
        "hidden_size": given["d_model"],
        "intermediate_size": given["mlp_hidden_size"],
        "num_hidden_layers": given["n_layers"],
        "num_attention_heads": given["n_heads"],
        "vocab_size": given["embedding_size"],
        "max_position_embeddings": given["max_sequence_length"],
        "rms_norm_eps": given["rms_norm_eps"],
        "rope_parameters": {"rope_type": "default", "rope_theta": given["rope_theta"]},
        "is_causal": False,
        "use_cache": False,
    }
    weights = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        for old, new in LLAMA_NAMES:
            name = name.replace(old, new)
        weights[name] = tensor
    model = LlamaForCausalLM.from_pretrained(
        None, config=LlamaConfig(**fields), state_dict=weights, attn_implementation="sdpa", dtype=torch.float32
    )
    for layer in model.model.layers:
        layer.self_attn.is_causal = False
    return model, given["mask_token_id"], given["pad_token_id"]


def make_batch(rows: list[dict[str, Any]], pad_to: int | None, pad_token_id: int) -> dict[str, Tensor]:
    """Rows padded on the right to the longest of them, or to a length; what is not of tokens is stacked."""
    length = pad_to or max(len(row["input_ids"]) for row in rows)
    filling = {"input_ids": pad_token_id, "labels": -100, "attention_mask": 0, "mask_uniform": 1.0, "tie_uniform": 1.0}
    batch = {}
    for key, value in rows[0].items():
        if key in filling:
            padded = [F.pad(row[key], (0, length - len(row[key])), value=filling[key]) for row in rows]
            batch[key] = torch.stack(padded)
        else:
            batch[key] = torch.tensor([row[key] for row in rows], dtype=torch.tensor(value).dtype)
    return batch


def kept_by_lift(model: nn.Module, batch: dict[str, Tensor], response: Tensor, mask_token_id: int) -> Tensor:
    """LIFT-3's choice: the easiest, hardest or random tokens of a superset, whose share of it is t / (t + rho)."""
    clean_ids, t, rho = batch["input_ids"], batch["t"], batch["rho"]
    superset = response & (batch["mask_uniform"] < (t + rho)[:, None])
    noised_ids = clean_ids.masked_fill(superset, mask_token_id)
    gold_logprob = torch.zeros_like(batch["mask_uniform"])
    with torch.no_grad():
        logits = model(input_ids=noised_ids, attention_mask=batch["attention_mask"]).logits
        gold_logprob[superset] = -F.cross_entropy(logits[superset], clean_ids[superset], reduction="none")
    kept = torch.zeros_like(superset)
    for row, (level, extra, v) in enumerate(zip(t.tolist(), rho.tolist(), batch["v"].tolist(), strict=True)):
        places = superset[row].nonzero()[:, 0]
        num_kept = int(len(places) * (min(level, 1.0) / min(level + extra, 1.0)) + v)
        if 3 * level > 1 and 3 * (1 - level) > 1:
            scores = batch["tie_uniform"][row]
        else:
            scores = gold_logprob[row] if level > 0.5 else -gold_logprob[row]
        kept[row, places[scores[places].topk(num_kept).indices]] = True
    return kept


class PlainTrainer(Trainer):
    """Trainer with the loss of masked diffusion.

    Attributes:
        method: `vanilla` or `lift3`.
        mask_token_id: What is written on masked positions.
    """

    method = "vanilla"
    mask_token_id = 0

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Sum over masked tokens of CE / t, over the response tokens of the step, all micro-batches and ranks."""
        clean_ids, response, t = inputs["input_ids"], inputs["labels"] != -100, inputs["t"]
        if self.method == "lift3":
            masked = kept_by_lift(model, inputs, response, self.mask_token_id)
        else:
            masked = response & (inputs["mask_uniform"] < t[:, None])
        noised_ids = clean_ids.masked_fill(masked, self.mask_token_id)
        logits = model(input_ids=noised_ids, attention_mask=inputs["attention_mask"]).logits
        nll = F.cross_entropy(logits[masked], clean_ids[masked], reduction="none")
        weights = (1 / t)[:, None].expand_as(masked)[masked]
        return (nll * weights).sum() / num_items_in_batch * self.accelerator.num_processes


def make_arguments(folder: str, micro_batch: int, accumulation: int, num_steps: int, order: str) -> TrainingArguments:
    """Float32 on the CPU, AdamW in one kernel, no files but what is asked for."""
    return TrainingArguments(
        output_dir=folder,
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=accumulation,
        max_steps=num_steps,
        train_sampling_strategy=order,
        optim="adamw_torch_fused",
        learning_rate=LEARNING_RATE,
        weight_decay=WEIGHT_DECAY,
        lr_scheduler_type="constant",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        use_cpu=True,
        dataloader_pin_memory=False,
        ddp_backend="gloo" if "LOCAL_RANK" in os.environ else None,
        ddp_find_unused_parameters=False,
    )


class StepDone(TrainerCallback):
    """Calls a function at the end of every step."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self.function = function

    def on_step_end(self, *unused: Any, **more: Any) -> None:
        """Calls it."""
        self.function()


def train(
    model: LlamaForCausalLM,
    arguments: TrainingArguments,
    rows: Any,
    method: str,
    mask_token_id: int,
    collator: Callable[[list[dict[str, Any]]], dict[str, Tensor]],
    step_done: Callable[[], Any],
) -> list[float]:
    """Trains; the loss of every step."""
    trainer = PlainTrainer(
        model=model, args=arguments, train_dataset=rows, data_collator=collator, callbacks=[StepDone(step_done)]
    )
    trainer.method, trainer.mask_token_id = method, mask_token_id
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def run_cell(cell: Cell) -> None:
    """Trains on one rank and writes what it took."""
    arguments = make_arguments(cell.out, cell.micro_batch, cell.accumulation, cell.num_steps, "sequential")
    rows, rank = torch.load(cell.rows), arguments.process_index  # asking for the rank joins the process group
    watch = Watch(cell, rank)
    model, mask_token_id, pad_token_id = load_model(Path(cell.model))
    collator = partial(make_batch, pad_to=cell.pad_to, pad_token_id=pad_token_id)
    watch.write(train(model, arguments, rows, cell.method, mask_token_id, collator, watch.step_done))


class TextRows(Dataset):
    """Rows of `prompt` and `response` as tokens through a folder's chat template, with fresh noise at each visit."""

    def __init__(self, path: Path, folder: Path) -> None:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        self.rows = []
        for line in path.read_text().splitlines():
            row = json.loads(line)
            turns = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["response"]}]
            prompt = tokenizer.apply_chat_template(turns[:1], add_generation_prompt=True, return_dict=False)
            ids = torch.tensor(tokenizer.apply_chat_template(turns, return_dict=False))
            labels = ids.masked_fill(torch.arange(len(ids)) < len(prompt), -100)
            self.rows.append({"input_ids": ids, "labels": labels})

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.rows[index]
        ids, t = row["input_ids"], float(torch.rand(()).clamp(min=1e-3))
        uniform = torch.rand(len(ids))
        return {**row, "attention_mask": torch.ones_like(ids), "mask_uniform": uniform, "t": t}


def run_files(folder: Path, rows: Path, first_step: Path) -> None:
    """One step on a file's rows, after which `first_step` is there."""
    arguments = make_arguments(f"{first_step}.trainer", 8, 1, 1, "group_by_length")
    model, mask_token_id, pad_token_id = load_model(folder)
    collator = partial(make_batch, pad_to=None, pad_token_id=pad_token_id)
    train(
        model,
        arguments,
        TextRows(rows, folder),
        "vanilla",
        mask_token_id,
        collator,
        lambda: first_step.write_text("done"),
    )


if __name__ == "__main__":
    if len(sys.argv) == 2:
        run_cell(Cell(**json.loads(sys.argv[1])))
    else:
        run_files(*map(Path, sys.argv[1:]))
