"""Flags that say how answers are sampled, for every tool that makes some."""

from __future__ import annotations

import argparse
from typing import get_args

from lift_ds.sampling.choose import EosPolicy, Remasking, Rule
from lift_ds.sampling.predict import Cache
from lift_ds.sampling.reverse import ReverseProcess


def add_sampling_flags(
    parser: argparse.ArgumentParser, gen_length: int | None, block_length: int | None, steps: str
) -> None:
    """Adds them.

    Args:
        parser: Where they go.
        gen_length: Default, `None` where something else decides.
        block_length: Default, as before.
        steps: What happens where no steps are given, for the help.
    """
    parser.add_argument("--gen-length", type=int, default=gen_length, help="most tokens of an answer")
    parser.add_argument("--block-length", type=int, default=block_length, help="tokens of a block")
    parser.add_argument("--steps", type=int, help=f"denoising steps in all; default: {steps}")
    parser.add_argument("--threshold", type=float, help="reveal all predictions that are at least so sure")
    parser.add_argument("--factor", type=float, help="reveal the n surest while (n + 1) (1 - confidence) is below")
    parser.add_argument("--remasking", choices=get_args(Remasking), default="low_confidence", help="what ranks them")
    parser.add_argument("--temperature", type=float, help="0, the default, is greedy")
    parser.add_argument("--top-p", type=float, help="draw from the fewest tokens of this probability")
    parser.add_argument("--cfg-scale", type=float, default=0.0, help="classifier-free guidance; 0 is off")
    parser.add_argument("--cache", choices=get_args(Cache), default="none", help="keys and values kept within a block")
    parser.add_argument("--eos", choices=get_args(EosPolicy), default="allow", help="whether answers may end early")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn")
    parser.add_argument("--batch-size", type=int, default=16, help="answers that are made at a time")


def process_of(
    arguments: argparse.Namespace, gen_length: int, block_length: int, steps: int, stop_early: bool
) -> ReverseProcess:
    """How answers are made.

    Args:
        arguments: With the flags above.
        gen_length: Tokens of an answer.
        block_length: Tokens of a block.
        steps: Denoising steps where neither `--steps` nor a rule that decides them is given.
        stop_early: End answers with the block in which their end token stands.

    Raises:
        ValueError: A flag is out of range, or would change nothing.
    """
    if (
        arguments.top_p is not None
        and not arguments.temperature
        and arguments.remasking in ("low_confidence", "random")
    ):
        raise ValueError(
            f"--top-p={arguments.top_p} changes nothing at temperature 0; set --temperature, or remove it."
        )
    rule = Rule(
        arguments.remasking,
        arguments.temperature or 0.0,
        1.0 if arguments.top_p is None else arguments.top_p,
        arguments.threshold,
        arguments.factor,
        arguments.eos,
    )
    chosen = arguments.steps if arguments.steps is not None or rule.is_adaptive else steps
    return ReverseProcess(gen_length, block_length, chosen, rule, arguments.cfg_scale, stop_early, arguments.cache)
