"""Flags of every tool that makes answers: one for each of the sampling settings, and the way the model is asked."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

from lift_ds.data.text.chat_format import read_format
from lift_ds.sampling.settings import FixedSteps, SamplingSettings, checked_settings

from .tool import Flag, flag

if TYPE_CHECKING:
    from lift_ds.evaluation.asking.answering import Answerer

FORMAT_FLAGS = (
    flag("--system", help="system text of every conversation; default: the model's own; '' for none"),
    flag("--chat-template", help="llada, chatml, llama3 or the path of a jinja file; default: the model's own"),
)
FLAGS = {name: field for name, field in SamplingSettings.model_fields.items() if name != "stop_early"}


def sampling_flags(**unset: object) -> Iterator[Flag]:
    """The flags, without defaults, so that a protocol or a task can decide; `unset` is what the help says instead."""
    for name, field in FLAGS.items():
        is_choice = get_origin(field.annotation) is Literal
        default = unset.get(name, field.default)
        yield flag(
            f"--{name.replace('_', '-')}",
            type=str if is_choice else plain_type(field.annotation),
            choices=get_args(field.annotation) if is_choice else None,
            help=f"{field.description}" + ("" if default is None else f"; default: {default}"),
        )
    yield flag("--seed", type=int, default=0, help="of what is drawn")
    yield flag("--batch-size", type=int, default=16, help="answers that are made at a time")


def plain_type(annotation: Any) -> Any:
    """`int` of `Annotated[int, ...] | None`."""
    arguments = get_args(annotation)
    return plain_type(arguments[0]) if arguments else annotation


def given_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """What the flags say, by the settings' names."""
    return {name: getattr(arguments, name) for name in FLAGS if getattr(arguments, name) is not None}


def own_blocks(model: str) -> int | None:
    """The block size of a model that has one of its own, from its config alone; see `read_config` for errors."""
    from lift_ds.models.families import read_config
    from lift_ds.models.weights import resolve_folder
    from lift_ds.sampling.block_rule import own_block_size

    return own_block_size(read_config(resolve_folder(model, with_weights=False)))


def process_of(
    arguments: argparse.Namespace, decoding: FixedSteps, stop_early: bool, block_size: int | None = None
) -> SamplingSettings:
    """How answers are made.

    Args:
        arguments: With the flags above.
        decoding: Lengths where the flags give none; and tokens a step, where neither they nor confidence decide it.
        stop_early: End answers with the block in which their end token stands.
        block_size: In place of the length of blocks, where the model has blocks of its own and no flag names one.

    Raises:
        ValueError: A flag is out of range, or would change nothing.
    """
    given = given_settings(arguments)
    if "top_p" in given and not arguments.temperature and arguments.remasking in (None, "low_confidence", "random"):
        raise ValueError(
            f"--top-p={arguments.top_p} changes nothing at temperature 0; set --temperature, or remove it."
        )
    values = decoding.model_dump(exclude={"steps"}) | {"stop_early": stop_early}
    values |= ({} if block_size is None else {"block_length": block_size}) | given
    if not {"steps", "threshold", "factor"} & given.keys():
        values["steps"] = values["gen_length"] * decoding.steps // decoding.gen_length
    return checked_settings(**values)


def with_flags(
    answerer: Answerer, system: str | None, chat_template: str | None, adapters: str | None = None
) -> tuple[Answerer, list[str]]:
    """The model as the flags ask it, and what is to be said of that.

    Args:
        answerer: The model, which knows what it was taught in.
        system: `--system`.
        chat_template: `--chat-template`.
        adapters: Folder of adapters that were put onto the model.

    Raises:
        ValueError: See `use_template`.
    """
    from lift_ds.sampling.block_rule import own_block_size  # its models are slow to import

    taught, asked = answerer.chat_format, answerer.asked(system, chat_template)
    differ = taught.differences(asked.chat_format)
    lines = [f"{name}={now}, instead of {before} that the model was taught" for name, before, now in differ]
    if not differ and taught.system:
        lines.append(f"data.system={taught.system}, as the model was taught")
    block_size = own_block_size(asked.model.config)
    if block_size is not None:
        lines.append(f"block_length={block_size}, the model's own")
    if adapters is not None and read_format(Path(adapters)) is not None:
        lines.append(f"chat format of the adapters in {adapters}")
    return asked, lines
