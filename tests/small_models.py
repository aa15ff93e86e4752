"""Small causal models with a tokenizer, written as Hugging Face folders, and what is adapted from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from lift_ds.export.adapt import make_diffusion_model

NUM_TOKENS = 100
SIZES = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
LLAMA3_ROPE = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16, "rope_theta": 100.0,
}  # fmt: skip
# Tied and untied heads, embeddings with and without spare rows, heads wider than D / heads.
KINDS: dict[str, tuple[type, type, dict[str, Any]]] = {
    "llama": (LlamaConfig, LlamaForCausalLM, {"vocab_size": NUM_TOKENS, "tie_word_embeddings": True}),
    "llama3": (
        LlamaConfig,
        LlamaForCausalLM,
        {"vocab_size": NUM_TOKENS, "tie_word_embeddings": False, "rope_parameters": LLAMA3_ROPE},
    ),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {"vocab_size": NUM_TOKENS + 4, "tie_word_embeddings": False}),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {"vocab_size": NUM_TOKENS, "tie_word_embeddings": True, "head_dim": 12}),
}


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of whole words, without a mask token."""
    words = ["<unk>", "<s>", "</s>", *(f"w{place}" for place in range(NUM_TOKENS - 3))]
    tokenizer = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )


def write_causal(folder: Path, kind: str) -> Any:
    """Writes a causal model with random weights, biases and norms included; returns it."""
    config_class, model_class, fields = KINDS[kind]
    generator = torch.Generator().manual_seed(3)
    model = model_class(config_class(**SIZES, **fields)).eval()
    for parameter in model.parameters():
        offset = 1.0 if parameter.dim() == 1 else 0.0
        parameter.data = offset + 0.3 * torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return model


def write_adapted(folder: Path, kind: str) -> Path:
    """Writes a causal model and the masked diffusion model made of it; returns the latter's folder."""
    write_causal(folder / "causal", kind)
    make_diffusion_model(str(folder / "causal"), folder / "adapted")
    return folder / "adapted"
