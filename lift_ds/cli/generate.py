"""`tools/generate.py`: answers to prompts, or a chat in the terminal in which the text appears as it is un-masked."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.live import Live
from rich.text import Text

from lift_ds.evaluation.answering import Answer, Answerer, load_answerer
from lift_ds.sampling.reverse import ReverseProcess

from .sampling_flags import add_sampling_flags, process_of

MASK_SIGN = "\u2591"
Messages = list[dict[str, str]]


def make_parser() -> argparse.ArgumentParser:
    """The flags."""
    parser = argparse.ArgumentParser(
        prog="generate.py",
        description="Answers prompts with a masked diffusion model. Without --prompt or --file it is a chat; on a "
        "terminal the answer is shown while it is un-masked.",
    )
    parser.add_argument("model", help="model folder, hub name or builtin:base")
    parser.add_argument("--prompt", action="append", help="the user's turn; more than once for several")
    parser.add_argument("--file", type=Path, help="jsonl whose rows have a prompt or question, answered in batches")
    parser.add_argument("--system", help="system text of every conversation")
    parser.add_argument("--json", type=Path, help="jsonl to write: question, generation, num_forwards")
    add_sampling_flags(parser, 128, 32, "a step a token")
    return parser


@dataclass(frozen=True)
class Session:
    """A model, and the way its answers are made.

    Args:
        answerer: The model.
        process: How.
        generator: Source of randomness.
    """

    answerer: Answerer
    process: ReverseProcess
    generator: torch.Generator

    def answer(
        self, conversations: list[Messages], watch: Callable[[torch.Tensor], None] | None = None
    ) -> list[Answer]:
        """The next turns of conversations, each of which ends with the user's turn."""
        prompts = [self.answerer.encoder.prompt_ids(messages) for messages in conversations]
        return self.answerer.answer(prompts, self.process, self.generator, watch)


def load(arguments: argparse.Namespace) -> Session:
    """Everything that the flags ask for.

    Raises:
        ValueError: A flag is out of range, or the model or its tokenizer cannot be used.
    """
    gen_length = arguments.gen_length  # what is wrong with the flags is said before the model is read
    process = process_of(arguments, gen_length, arguments.block_length, gen_length, stop_early=True)
    answerer = load_answerer(arguments.model)
    return Session(answerer, process, torch.Generator(answerer.model.device).manual_seed(arguments.seed))


def read_prompts(arguments: argparse.Namespace) -> list[str]:
    """The prompts of the flags.

    Raises:
        ValueError: A row of the file has none; the message names file and line.
    """
    prompts = list(arguments.prompt or [])
    if arguments.file is None:
        return prompts
    for number, line in enumerate(arguments.file.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
            prompts.append(str(row["prompt"] if "prompt" in row else row["question"]))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{arguments.file}:{number}: a JSON object with prompt or question is needed, not {line[:60]!r}."
            ) from error
    return prompts


def as_messages(system: str | None, text: str) -> Messages:
    """The start of a conversation."""
    before = [{"role": "system", "content": system}] if system else []
    return [*before, {"role": "user", "content": text}]


def answer_all(session: Session, prompts: list[str], arguments: argparse.Namespace, console: Console) -> None:
    """Answers prompts in batches; prints them, or writes a line for each."""
    records = []
    for start in range(0, len(prompts), arguments.batch_size):
        batch = prompts[start : start + arguments.batch_size]
        conversations = [as_messages(arguments.system, prompt) for prompt in batch]
        with shown(session, console, len(batch) == 1) as watch:
            answers = session.answer(conversations, watch)
        for prompt, answer in zip(batch, answers, strict=True):
            records.append({"question": prompt, "generation": answer.text, "num_forwards": answer.num_forwards})
            if not arguments.json:
                console.print(answer.text, markup=False, highlight=False)
    if arguments.json:
        arguments.json.write_text("".join(json.dumps(each) + "\n" for each in records), encoding="utf-8")
        console.print(f"{len(records)} answers in {arguments.json}")


def chat(session: Session, arguments: argparse.Namespace, console: Console) -> None:
    """Turns of a user at the terminal until the input ends; an empty line begins anew."""
    console.print("An empty line begins a new chat; Ctrl-D ends.")
    messages: Messages = []
    while True:
        try:
            text = console.input("[bold]> [/bold]")
        except EOFError:
            return
        if not text.strip():
            messages = []
            continue
        messages = [*messages, {"role": "user", "content": text}] if messages else as_messages(arguments.system, text)
        began = time.perf_counter()
        with shown(session, console, True) as watch:
            (answer,) = session.answer([messages], watch)
        console.print(answer.text, markup=False, highlight=False)
        console.print(f"{answer.num_forwards} forwards, {time.perf_counter() - began:.1f} s", style="dim")
        messages = [*messages, {"role": "assistant", "content": answer.text}]


@contextmanager
def shown(session: Session, console: Console, is_single: bool) -> Iterator[Callable[[torch.Tensor], None] | None]:
    """What shows an answer while it is made, where there is one answer and a terminal; it vanishes at the end."""
    if not (is_single and console.is_terminal):
        yield None
        return
    with Live(console=console, transient=True, refresh_per_second=12) as live:
        yield lambda ids: live.update(partly_masked(ids[0].tolist(), session.answerer))


def partly_masked(ids: list[int], answerer: Answerer) -> Text:
    """An answer with a sign for every token that is still masked."""
    mask_id, end_id = answerer.model.config.mask_token_id, answerer.encoder.end_token_id
    found, run = Text(), list[int]()
    for token_id in [*ids, mask_id]:
        if token_id != mask_id:
            run.append(token_id)
            continue
        known = run[: run.index(end_id)] if end_id in run else run
        found.append(str(answerer.encoder.tokenizer.decode(known)))
        found.append(MASK_SIGN, style="dim")
        run = []
    found.right_crop(1)
    return found


def main(argv: list[str] | None = None) -> None:
    """Entry point; exits with 2 where something is missing or wrong."""
    arguments = make_parser().parse_args(argv)
    console = Console()
    try:
        prompts = read_prompts(arguments)
        session = load(arguments)
        if prompts:
            answer_all(session, prompts, arguments, console)
        else:
            chat(session, arguments, console)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
