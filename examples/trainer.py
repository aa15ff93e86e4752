"""LIFT inside Hugging Face's Trainer: one method is replaced, everything else is the Trainer's.

    python examples/trainer.py --steps 300

A small BERT learns sums of two digits, character by character: `3+4=07`. Any model of transformers that sees the whole
input and returns logits will do; for masked diffusion checkpoints (LLaDA, Dream), `lift_ds.load_pretrained` gives one.
"""

from __future__ import annotations

import argparse
import tempfile
from typing import Any

import torch
from torch import Tensor
from transformers import BertConfig, BertForMaskedLM, Trainer, TrainingArguments

import lift_ds

CHARACTERS = "0123456789+="
MASK = len(CHARACTERS)


class LiftTrainer(Trainer):
    """A Trainer whose loss is LIFT's."""

    def compute_loss(
        self, model: Any, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Noise, score, choose and loss, in one call."""
        loss = lift_ds.lift_loss(
            model, inputs["input_ids"], inputs["response_mask"].bool(), mask_token_id=MASK, t_min=0.05
        )
        return (loss, {}) if return_outputs else loss


def sums() -> list[dict[str, Tensor]]:
    """All sums of two digits, as ids with their response marked."""
    rows = []
    for first in range(10):
        for second in range(10):
            text = f"{first}+{second}={first + second:02d}"
            ids = torch.tensor([CHARACTERS.index(character) for character in text])
            rows.append({"input_ids": ids, "response_mask": torch.arange(len(ids)) >= 4})
    return rows


def main() -> None:
    """Trains, and shows how many sums are right when the whole answer is masked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    steps = parser.parse_args().steps
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=MASK + 1, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, max_position_embeddings=16,
    )  # fmt: skip
    model = BertForMaskedLM(config)
    rows = sums()
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(
            output_dir=folder, max_steps=steps, per_device_train_batch_size=50, learning_rate=3e-3, seed=0,
            remove_unused_columns=False, report_to=[], save_strategy="no", logging_steps=50, use_cpu=True,
            disable_tqdm=True,
        )  # fmt: skip
        LiftTrainer(model=model, args=settings, train_dataset=rows).train()
    ids = torch.stack([row["input_ids"] for row in rows])
    response = torch.stack([row["response_mask"] for row in rows])
    with torch.no_grad():
        predicted = model.eval()(input_ids=ids.masked_fill(response, MASK)).logits.argmax(-1)
    print(f"{(predicted == ids)[response].view(len(rows), -1).all(-1).float().mean():.0%} of the sums are right")


if __name__ == "__main__":
    main()
