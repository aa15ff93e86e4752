"""What people run today: masked diffusion and LIFT-3 in a plain loop with Hugging Face's `Trainer`, without lift_ds.

    python benchmarks/plain_trainer.py MODEL_FOLDER ROWS.jsonl FIRST_STEP

trains on rows of `prompt` and `response`, grouped by length, and writes the file FIRST_STEP when a step is done; the
other way in is `run_cell`, for `benchmarks/baseline.py`.

The model is transformers' Llama, attending to every position through SDPA, with a LLaDA folder's weights. A micro-batch
is padded to its longest row, the model returns the logits of all positions, and the loss is the cross entropy of the
masked ones over t. AdamW is torch's fused one, two ranks are DDP's. LIFT-3 scores its superset in a pass of its own
without gradient, and chooses row by row.
"""

from __future__ import annotations

import gc
import json
import os
import re
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import (
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


@dataclass(frozen=True)
class Cell:
    """One run that is measured.

    Args:
        variant: Who trains: a name of `baseline.VARIANTS`.
        model: Folder of the model.
        rows: File of the rows, in the order of training; see `baseline.write_rows`.
        method: `vanilla` or `lift3`.
        micro_batch: Rows of one forward.
        accumulation: Forwards of a step on each rank.
        num_steps: Steps, the first of which warms up.
        pad_to: Tokens to which rows are padded; `None`: the longest of their micro-batch.
        is_packed: Whether rows go through the model without padding.
        engine_json: DeepSpeed's JSON, of ours.
        out: Folder in which each rank writes what it measured.
    """

    variant: str
    model: str
    rows: str
    method: str
    micro_batch: int
    accumulation: int
    num_steps: int
    pad_to: int | None
    is_packed: bool
    engine_json: str
    out: str


def load_model(folder: Path) -> LlamaForCausalLM:
    """A bidirectional Llama with the weights of a LLaDA folder."""
    given = json.loads((folder / "config.json").read_text())
    config = LlamaConfig(
        hidden_size=given["d_model"],
        intermediate_size=given["mlp_hidden_size"],
        num_hidden_layers=given["n_layers"],
        num_attention_heads=given["n_heads"],
        vocab_size=given["embedding_size"],
        max_position_embeddings=given["max_sequence_length"],
        rms_norm_eps=given["rms_norm_eps"],
        rope_parameters={"rope_type": "default", "rope_theta": given["rope_theta"]},
        is_causal=False,
        use_cache=False,
    )
    weights = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        for old, new in LLAMA_NAMES:
            name = name.replace(old, new)
        weights[name] = tensor
    model = LlamaForCausalLM.from_pretrained(
        None, config=config, state_dict=weights, attn_implementation="sdpa", dtype=torch.float32
    )
    for layer in model.model.layers:
        layer.self_attn.is_causal = False
    return model


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


def make_arguments(folder: Path, micro_batch: int, accumulation: int, num_steps: int, order: str) -> TrainingArguments:
    """Float32 on the CPU, AdamW in one kernel, no files but what is asked for."""
    return TrainingArguments(
        output_dir=str(folder),
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


class Watch(TrainerCallback):
    """Processor and wall seconds of all steps after the first, and the loss of every step."""

    def __init__(self) -> None:
        self.marks: list[tuple[float, float]] = []

    def on_step_end(self, *unused: Any, **more: Any) -> None:
        """Notes the clocks."""
        self.marks.append((time.process_time(), time.perf_counter()))


def memory_bytes(field: str) -> int:
    """Memory of this process: `VmRSS` now, `VmHWM` at its peak."""
    found = re.search(rf"{field}:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def begin_peak() -> int:
    """Has `VmHWM` begin here; the memory that is resident now."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    return memory_bytes("VmRSS")


def write_measured(cell: Cell, rank: int, marks: list[tuple[float, float]], losses: list[float], peak: int) -> None:
    """What one rank measured, for the process that started it."""
    cpu, wall = (marks[-1][part] - marks[0][part] for part in range(2))
    measured = {"cpu_seconds": cpu, "wall_seconds": wall, "losses": losses, "peak_bytes": peak}
    Path(cell.out, f"{rank}.json").write_text(json.dumps(measured))


def run_cell(cell: Cell) -> None:
    """Trains on one rank and writes what it took."""
    arguments = make_arguments(Path(cell.out), cell.micro_batch, cell.accumulation, cell.num_steps, "sequential")
    rank, rows = arguments.process_index, torch.load(cell.rows)  # asking for the index joins the process group
    before, watch = begin_peak(), Watch()
    trainer = PlainTrainer(
        model=load_model(Path(cell.model)),
        args=arguments,
        train_dataset=rows,
        data_collator=partial(make_batch, pad_to=cell.pad_to, pad_token_id=1),
        callbacks=[watch],
    )
    trainer.method = cell.method
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    write_measured(cell, rank, watch.marks, losses, memory_bytes("VmHWM") - before)


if __name__ == "__main__":
    run_cell(Cell(**json.loads(sys.argv[1])))
