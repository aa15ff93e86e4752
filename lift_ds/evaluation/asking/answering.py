"""A model with its tokenizer, and what it answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lift_ds.data.text.chat import ChatEncoder
from lift_ds.data.text.chat_format import ChatFormat, read_format, template_text
from lift_ds.data.text.templates import use_template
from lift_ds.export.peft_folder import AdapterFolder
from lift_ds.models.families import family_of
from lift_ds.models.head import MaskedDiffusionModel
from lift_ds.models.registry import is_blockwise
from lift_ds.models.weights import load_pretrained, resolve_folder
from lift_ds.sampling.block_rule import longest_answered
from lift_ds.sampling.reverse import Generation, RowSeeds, denoise, pad
from lift_ds.sampling.settings import SamplingSettings


@dataclass(frozen=True)
class Answer:
    """One answer.

    Args:
        text: What is before the first special token, or all of it, special tokens included.
        num_tokens: Tokens before the first special token.
        is_ended: Whether there is one; else the answer was cut at its length.
        num_forwards: Forwards of the model that it took part in.
        num_denoised: Tokens of the blocks that were denoised; after an early stop the rest is filled in for nothing.
    """

    text: str
    num_tokens: int
    is_ended: bool
    num_forwards: int
    num_denoised: int


@dataclass(frozen=True)
class Answerer:
    """What makes answers: a model in eval mode.

    `any_rank` tells whether something is so on any rank, which is needed where forwards are collectives; they compute
    on `device`, if not where the weights are kept. Of a model that does not say its `chat_format`, only the template is
    known.
    """

    model: MaskedDiffusionModel
    encoder: ChatEncoder
    any_rank: Callable[[bool], bool] = bool
    device: torch.device | None = None
    chat_format: ChatFormat = field(default_factory=ChatFormat)

    def prompt_ids(
        self, messages: list[dict[str, str]], answer_prefix: str = "", where: str = "the prompt"
    ) -> list[int]:
        """Token ids of a conversation, with the system text that the model was taught; see `ChatEncoder.prompt_ids`."""
        return self.encoder.prompt_ids(self.chat_format.messages(messages), answer_prefix, where)

    def asked(self, system: str | None = None, chat_template: str | None = None) -> Answerer:
        """The same model, asked otherwise than it was taught; an empty system text is none. See `use_template`."""
        tokenizer, config = self.encoder.tokenizer, self.model.config
        use_template(tokenizer, chat_template)
        chat_format = replace(self.chat_format, template=template_text(tokenizer))
        if system is not None:
            chat_format = replace(chat_format, system=system or None)
        return replace(self, encoder=make_encoder(config, tokenizer, "model", chat_format), chat_format=chat_format)

    def answer(
        self,
        prompts: Sequence[Sequence[int]],
        process: SamplingSettings,
        generator: torch.Generator | RowSeeds | None = None,
        watch: Callable[[Tensor], None] | None = None,
        keeps_special: bool = False,
    ) -> list[Answer]:
        """Answers prompts, token ids from `prompt_ids`, as one batch; see `generate` for `watch`.

        `keeps_special` keeps special tokens, and what follows them, in the text.
        """
        made = self.generate(prompts, process, generator, watch)
        rows = zip(prompts, made.ids.tolist(), made.row_forwards.tolist(), strict=True)
        return [self.read(len(prompt), row, number, process, keeps_special) for prompt, row, number in rows]

    @cached_property
    def stop_ids(self) -> list[int]:
        """Tokens that end an answer: the config's end token, and those that end a turn of the family's."""
        added = self.encoder.tokenizer.added_tokens_decoder.items()
        turn_ends = family_of(self.model.config).turn_ends
        return [self.encoder.end_token_id, *(token_id for token_id, token in added if str(token) in turn_ends)]

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        process: SamplingSettings,
        generator: torch.Generator | RowSeeds | None = None,
        watch: Callable[[Tensor], None] | None = None,
    ) -> Generation:
        """The answers to prompts alone, ids (B, gen_length), with which `watch` is called after every step."""
        ids, attention = pad(prompts, self.encoder.end_token_id)
        start, device = ids.shape[1], self.device or self.model.device
        show = watch and (lambda now: watch(now[:, start:]))
        made = denoise(
            self.model, ids.to(device), process, attention.to(device), generator, self.any_rank, show, self.stop_ids
        )
        return replace(made, ids=made.ids[:, start:])

    def read(
        self, prompt_length: int, ids: list[int], num_forwards: int, process: SamplingSettings, keeps_special: bool
    ) -> Answer:
        """The answer that ids generated after a prompt are."""
        kept = self.encoder.answer_ids(ids)
        text = str(self.encoder.tokenizer.decode(ids if keeps_special else kept))
        num_denoised = len(ids)
        end = next((place for place, token_id in enumerate(ids) if token_id in self.stop_ids), None)
        if process.stop_early and end is not None:  # a model's own blocks are counted from the prompt's first token
            shift = prompt_length % process.block_length if is_blockwise(self.model.config) else 0
            blocks = (shift + end) // process.block_length + 1
            num_denoised = min(len(ids), blocks * process.block_length - shift)
        return Answer(text, len(kept), len(kept) < len(ids), num_forwards, num_denoised)


def make_encoder(config: Any, tokenizer: Any, label: str, chat_format: ChatFormat) -> ChatEncoder:
    """The encoder of prompts, its clock where it stood while the model learned.

    Raises:
        ValueError: There is no tokenizer.
    """
    if tokenizer is None:
        raise ValueError(f"{label}: no tokenizer in the folder; copy the one it was trained with there.")
    return ChatEncoder(
        tokenizer,
        int(config.eos_token_id),
        longest_answered(config),
        clock=datetime.fromisoformat(chat_format.clock) if chat_format.clock else None,
        may_drop=chat_format.dropped_text == "allow",
    )


def taught_format(folder: Path, adapters: str | None, tokenizer: Any) -> ChatFormat:
    """What a model was taught in, its adapters last; their template becomes the tokenizer's. See `read_format`."""
    chat_format = read_format(folder) or ChatFormat()
    of_adapters = None if adapters is None else read_format(Path(adapters))
    if of_adapters is not None and tokenizer is not None:
        tokenizer.chat_template = of_adapters.template or tokenizer.chat_template
    return replace(of_adapters or chat_format, template=None if tokenizer is None else template_text(tokenizer))


def load_answerer(path: str, adapters: str | None = None, device: torch.device | None = None) -> Answerer:
    """A model from a folder, hub name or `builtin:base`, on the GPU, if there is one, as stored, on the CPU in float32.

    `adapters` is a folder of LoRA adapters in PEFT's format, which are put onto the model unmerged.

    Raises:
        ValueError: The model, its tokenizer or the adapters cannot be used.
    """
    chosen = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, tokenizer = load_pretrained(path)
    chat_format = taught_format(resolve_folder(path), adapters, tokenizer)
    encoder = make_encoder(model.config, tokenizer, path, chat_format)
    loaded: Any = model if adapters is None else _with_adapters(model, adapters)
    loaded.to(device=chosen, dtype=torch.float32 if chosen.type == "cpu" else None)
    return Answerer(loaded.eval(), encoder, chat_format=chat_format)


def _with_adapters(model: Any, folder: str) -> Any:
    from peft import PeftModel  # slow to import

    AdapterFolder(Path(folder))  # its errors are clearer, and pickles are refused
    try:
        return PeftModel.from_pretrained(model, folder).get_base_model()
    except (ValueError, RuntimeError, OSError) as error:
        raise ValueError(f"{folder}: its adapters cannot be put onto the model: {error}") from error
