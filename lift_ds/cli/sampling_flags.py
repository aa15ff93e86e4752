"""Flags that say how answers are sampled, for every tool that makes some: one for each of the sampling settings."""

from __future__ import annotations

import argparse
from typing import Any, Literal, get_args, get_origin

from lift_ds.sampling.settings import FixedSteps, SamplingSettings, checked_settings

FLAGS = {name: field for name, field in SamplingSettings.model_fields.items() if name != "stop_early"}


def add_sampling_flags(parser: argparse.ArgumentParser, **unset: object) -> None:
    """Adds them; none has a default, so that what is not given can be left to a protocol or a task.

    Args:
        parser: Where they go.
        unset: What holds where a flag is not given, for the help, if not the setting's default.
    """
    for name, field in FLAGS.items():
        is_choice = get_origin(field.annotation) is Literal
        default = unset.get(name, field.default)
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            type=str if is_choice else plain_type(field.annotation),
            choices=get_args(field.annotation) if is_choice else None,
            help=f"{field.description}" + ("" if default is None else f"; default: {default}"),
        )
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn")
    parser.add_argument("--batch-size", type=int, default=16, help="answers that are made at a time")


def plain_type(annotation: Any) -> Any:
    """`int` of `Annotated[int, ...] | None`."""
    arguments = get_args(annotation)
    return plain_type(arguments[0]) if arguments else annotation


def given_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """What the flags say, by the settings' names."""
    return {name: getattr(arguments, name) for name in FLAGS if getattr(arguments, name) is not None}


def process_of(arguments: argparse.Namespace, decoding: FixedSteps, stop_early: bool) -> SamplingSettings:
    """How answers are made.

    Args:
        arguments: With the flags above.
        decoding: Lengths where the flags give none; and tokens a step, where neither they nor confidence decide it.
        stop_early: End answers with the block in which their end token stands.

    Raises:
        ValueError: A flag is out of range, or would change nothing.
    """
    given = given_settings(arguments)
    if "top_p" in given and not arguments.temperature and arguments.remasking in (None, "low_confidence", "random"):
        raise ValueError(
            f"--top-p={arguments.top_p} changes nothing at temperature 0; set --temperature, or remove it."
        )
    values = decoding.model_dump(exclude={"steps"}) | {"stop_early": stop_early} | given
    if not {"steps", "threshold", "factor"} & given.keys():
        values["steps"] = values["gen_length"] * decoding.steps // decoding.gen_length
    return checked_settings(**values)
