"""Trains the tokenizer of the small base model and writes it, with the model's config, to a folder.

    python tools/make_base_tokenizer.py runs/base/new

Byte-level BPE with single digits, line breaks (a chat header ends in two; they must not merge differently depending on
what follows) and brackets, and a token for each answer tag, on the built-in tasks' text and common words; special
tokens and chat template are LLaDA's. The output is the same on every machine. `launchers/recipes/pretrain_base.yaml`
then trains the weights; `--width` and `--layers` make a larger model of the same kind. `--weights-from FOLDER` brings
the weights of an earlier base along, so that the second stage alone makes a base of them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from lift_ds.cli.tool import check_counts, flag, tool
from lift_ds.data.tasks import MIXTURES, pretraining_text
from lift_ds.models.llada import LLaDAConfig, LLaDAModelLM
from lift_ds.models.vocabulary import load_tokenizer
from lift_ds.models.weights import parameter_shapes

VOCABULARY = 1024
WIDTH, NUM_LAYERS, HEAD_WIDTH = 128, 6, 32
NUM_TEXTS = 20_000
WORD_REPEATS = 60
NAMES = ("startoftext", "endoftext", "mdm_mask", "start_header_id", "end_header_id", "eot_id")
ANSWER_TAGS = ["<answer>", "</answer>"]  # text like any other, one token each
SPECIAL_TOKENS = [f"<|{name}|>" for name in NAMES]
HEADER = "'<|start_header_id|>' + {role} + '<|end_header_id|>\\n\\n'"
CHAT_TEMPLATE = (  # all text in expressions: a template drops a line break at its own end
    "{{ bos_token }}{% for message in messages %}"
    "{{ " + HEADER.format(role="message['role']") + " + message['content'] | trim + '<|eot_id|>' }}"
    "{% endfor %}{{ " + HEADER.format(role="'assistant'") + " }}"
)


def texts() -> Iterator[str]:
    """The tasks' text without special tokens, and common English words, so that people's own text stays short."""
    words = (files("lift_ds") / "assets" / "common_words.txt").read_text().split()
    for _ in range(WORD_REPEATS):
        yield " ".join(words)
    for index in range(NUM_TEXTS):
        item = MIXTURES["reasoning"].item(0, "train", index)
        for text in (pretraining_text(0, "train", index), f"{item.question}\n\n{item.response}"):
            for token in (*SPECIAL_TOKENS, *ANSWER_TAGS):
                text = text.replace(token, "\n")
            yield text


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Trains the tokenizer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"[\n(),=]"), "isolated"),
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(ANSWER_TAGS),
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts(), trainer)
    tokenizer.add_tokens(ANSWER_TAGS)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|startoftext|>",
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        mask_token="<|mdm_mask|>",
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def make_config(tokenizer: PreTrainedTokenizerFast, width: int, num_layers: int) -> LLaDAConfig:
    """The base model's architecture."""
    return LLaDAConfig(
        d_model=width,
        n_layers=num_layers,
        n_heads=width // HEAD_WIDTH,
        mlp_hidden_size=3 * width,
        vocab_size=VOCABULARY,
        max_sequence_length=2048,
        rope_theta=300.0,  # documents have about 100 tokens: most of the frequencies should turn within them
        init_std=width**-0.5,  # with 0.02 attention starts flat, and copying is learned late
        mask_token_id=tokenizer.mask_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        architectures=["LLaDAModelLM"],
    )


def bring_weights(tokenizer: PreTrainedTokenizerFast, config: LLaDAConfig, earlier: Path) -> dict[str, torch.Tensor]:
    """Weights of an earlier base, for another tokenizer: a token's rows are the mean of the rows of its text's tokens.

    Raises:
        ValueError: The earlier base has other shapes, or no tokenizer.
    """
    known = load_tokenizer(earlier)
    if known is None:
        raise ValueError(f"{earlier}: no tokenizer; --weights-from needs a base with its own.")
    vocabulary = known.get_vocab()
    pieces = []
    for token in tokenizer.convert_ids_to_tokens([*range(len(tokenizer))]):
        text = tokenizer.convert_tokens_to_string([token])
        is_known = token in vocabulary
        pieces.append([vocabulary[token]] if is_known else known(text, add_special_tokens=False)["input_ids"])
    weights = load_file(earlier / "model.safetensors")
    for name in (LLaDAModelLM.embedding_name, LLaDAModelLM.head_name):
        key = f"{name}.weight"
        weights[key] = torch.stack([weights[key][ids].float().mean(0) for ids in pieces])
    shapes = {name: tensor.shape for name, tensor in weights.items()}
    if shapes != (wanted := parameter_shapes(config)):
        different = sorted(name for name in {*shapes, *wanted} if shapes.get(name) != wanted.get(name))
        raise ValueError(f"{earlier}: other shapes than the new model's, for example {different[0]}.")
    return {name: tensor.float() for name, tensor in weights.items()}


@tool(
    __doc__,
    flag("output", type=Path, help="folder to write tokenizer.json, tokenizer_config.json and config.json to"),
    flag("--width", type=int, default=WIDTH, help=f"of the model, a multiple of {HEAD_WIDTH}"),
    flag("--layers", type=int, default=NUM_LAYERS, help="of the model"),
    flag("--weights-from", type=Path, metavar="FOLDER", help="an earlier base of the same width and layers"),
)
def main(arguments: argparse.Namespace) -> None:
    """Writes the folder."""
    output, width = arguments.output, arguments.width
    check_counts(arguments, "width", "layers")
    if width % HEAD_WIDTH:
        raise ValueError(f"--width {width}: a multiple of {HEAD_WIDTH}, the width of a head, is needed.")
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(output)
    # transformers 4 and 5 both know this class; 5 alone writes `TokenizersBackend`
    path = output / "tokenizer_config.json"
    config = json.loads(path.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    config.pop("backend", None)
    path.write_text(json.dumps(config, indent=2) + "\n")
    config = make_config(tokenizer, width, arguments.layers)
    config.save_pretrained(output)
    if arguments.weights_from:
        weights = bring_weights(tokenizer, config, arguments.weights_from)
        save_file(weights, output / "model.safetensors", {"format": "pt"})
    print(f"{len(tokenizer)} tokens written to {output}")
