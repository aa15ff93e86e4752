"""Answers prompts with a masked diffusion model.

Without --prompt or --file it is a chat; on a terminal the answer is shown while it is un-masked.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.live import Live

from lift_ds.data.settings import ColumnsConfig
from lift_ds.data.text.objects import as_list, holds_something
from lift_ds.data.text.turns import CHAT_KEYS, Message, RowRules, keys_of_messages, read_turn
from lift_ds.evaluation.asking.answering import Answer, Answerer, load_answerer
from lift_ds.evaluation.asking.unmasking import partly_masked
from lift_ds.evaluation.score_file import json_objects
from lift_ds.sampling.block_rule import check_settings
from lift_ds.sampling.reverse import RowSeeds, check_length
from lift_ds.sampling.settings import FixedSteps, SamplingSettings

from .answer_flags import FORMAT_FLAGS, own_blocks, process_of, sampling_flags, with_flags
from .tool import check_counts, check_writable, flag, tool

LENGTHS = FixedSteps(gen_length=128, block_length=32, steps=128)
Watch = Callable[[torch.Tensor], None] | None  # sees an answer while it is made
NAMES = ("prompt", "question", "messages")
Messages = list[Message]


@dataclass(frozen=True)
class Prompt:
    """A user's turn, what was said before it, and where it was given."""

    text: str
    where: str
    before: tuple[Message, ...] = ()

    def messages(self) -> Messages:
        """The turn with what was said before it, as a conversation or the next part of one."""
        return [*self.before, {"role": "user", "content": self.text}]


def read_prompts(path: Path) -> list[Prompt]:
    """The prompts of a JSON Lines file but for empty lines; a ValueError names file and line of what has none."""
    return [read_prompt(row, where) for where, row in json_objects(path, NAMES)]


def read_prompt(row: Mapping[str, Any], where: str) -> Prompt:
    """The prompt of a row: a text, or messages that end with the user's; with the row's own system text, if any.

    Raises:
        ValueError: It has none, or holds something that would not be said.
    """
    for key in sorted(CHAT_KEYS & row.keys() - {"system"}):
        if holds_something(row[key]):
            raise ValueError(f"{where}: {key!r} would not be said; write it into the prompt, or remove it.")
    value = next((row[name] for name in NAMES if name in row), None)
    system = row.get("system")
    before: tuple[Message, ...] = ({"role": "system", "content": system},) if isinstance(system, str) and system else ()
    if isinstance(value, str) and "messages" not in row:
        return Prompt(value, where, before)
    listed = as_list(value)
    if not isinstance(listed, list) or not listed:
        raise ValueError(f"{where}: a JSON object with the text of a prompt or question, or messages, is needed.")
    columns = ColumnsConfig(**keys_of_messages(listed))
    turns = [read_turn(turn, columns, RowRules(), where)[0] for turn in listed]
    if turns[-1]["role"] != "user":
        raise ValueError(f"{where}: the last message is from {turns[-1]['role']!r}; the model answers a user's.")
    return Prompt(turns[-1]["content"], where, (*before, *turns[:-1]))


@dataclass(frozen=True)
class Session:
    """A model, the way its answers are made, and the seed of what is drawn."""

    answerer: Answerer
    process: SamplingSettings
    seed: int

    def encode(self, messages: Messages, where: str) -> list[int]:
        """Token ids of a conversation that ends with the user's turn; a ValueError if it is too long or no Unicode."""
        ids = self.answerer.prompt_ids(messages, where=where)
        try:
            check_length(self.process, len(ids), self.answerer.model.config)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        return ids

    def answer(self, prompts: list[list[int]], first: int, watch: Watch) -> list[Answer]:
        """Answers encoded prompts as one batch; `first` is the number of the first one, which names its draws."""
        seeds = RowSeeds(tuple(f"{self.seed}/{first + index}" for index in range(len(prompts))))
        return self.answerer.answer(prompts, self.process, seeds, watch)


def load(arguments: argparse.Namespace) -> Session:
    """Everything that the flags ask for; a ValueError where one is wrong, or the model cannot be used."""
    check_counts(arguments, "batch_size")
    # errors of flags come before the weights are read
    process = process_of(arguments, LENGTHS, stop_early=True, block_size=own_blocks(arguments.model))
    answerer, lines = with_flags(load_answerer(arguments.model), arguments.system, arguments.chat_template)
    check_settings(process, answerer.model.config)
    for line in lines:
        print(line, file=sys.stderr)
    return Session(answerer, process, arguments.seed)


def answer_all(session: Session, prompts: list[Prompt], arguments: argparse.Namespace, console: Console) -> None:
    """Answers prompts in batches; prints or writes answers as they come; a ValueError comes before all of them."""
    encoded = [session.encode(prompt.messages(), prompt.where) for prompt in prompts]
    with arguments.json.open("w", encoding="utf-8", buffering=1) if arguments.json else nullcontext() as file:
        for start in range(0, len(prompts), arguments.batch_size):
            part = slice(start, start + arguments.batch_size)
            with shown(session, console, len(prompts[part]) == 1) as watch:
                answers = session.answer(encoded[part], start, watch)
            for prompt, answer in zip(prompts[part], answers, strict=True):
                if file is not None:
                    record = {"question": prompt.text, "generation": answer.text, "num_forwards": answer.num_forwards}
                    file.write(json.dumps(record) + "\n")
                    continue
                if len(prompts) > 1:
                    console.print(f"> {prompt.text}", style="bold", markup=False, highlight=False)
                console.print(answer.text, markup=False, highlight=False)
    if arguments.json:
        console.print(f"{len(prompts)} answers in {arguments.json}")


def chat(session: Session, console: Console) -> None:
    """Turns of a user at the terminal until the input ends; an empty line begins anew.

    A turn that cannot be answered, or whose answer was stopped, is left out of the conversation.
    """
    console.print("An empty line begins a new chat; Ctrl-C stops an answer, Ctrl-D ends.")
    messages: Messages = []
    turn = 0
    while True:
        try:
            text = console.input("[bold]> [/bold]")
        except EOFError:
            return
        if not text.strip():
            messages = []
            continue
        said = [*messages, *Prompt(text, "this turn").messages()]
        began = time.perf_counter()
        try:
            prompt = session.encode(said, "this chat")
            with shown(session, console, True) as watch:
                (answer,) = session.answer([prompt], turn, watch)
        except ValueError as error:
            console.print(f"{error} An empty line begins a new chat.", style="red", markup=False, highlight=False)
            continue
        except KeyboardInterrupt:
            console.print("stopped", style="dim")
            continue
        console.print(answer.text, markup=False, highlight=False)
        console.print(f"{answer.num_forwards} forwards, {time.perf_counter() - began:.1f} s", style="dim")
        messages = [*said, {"role": "assistant", "content": answer.text}]
        turn += 1


@contextmanager
def shown(session: Session, console: Console, is_single: bool) -> Iterator[Watch]:
    """What shows an answer while it is made, where there is one answer and a terminal; it vanishes at the end."""
    if not (is_single and console.is_terminal):
        yield None
        return
    with Live(console=console, transient=True, refresh_per_second=12) as live:
        encoder, mask_id = session.answerer.encoder, session.answerer.model.config.mask_token_id
        yield lambda ids: live.update(partly_masked(ids[0].tolist(), encoder, mask_id))


@tool(
    __doc__,
    flag("model", help="model folder, hub name or builtin:base"),
    flag("--prompt", action="append", help="the user's turn; more than once for several"),
    flag(
        "--file",
        type=Path,
        help="jsonl whose rows have a prompt, question or messages (and system), answered in batches",
    ),
    *FORMAT_FLAGS,
    flag("--json", type=Path, help="jsonl to write: question, generation, num_forwards"),
    *sampling_flags(**LENGTHS.model_dump() | {"steps": "a step a token"}),
)
def main(arguments: argparse.Namespace) -> None:
    """Answers the prompts of the flags, or chats."""
    console = Console()
    prompts = [Prompt(text, f"--prompt {number}") for number, text in enumerate(arguments.prompt or [], start=1)]
    if arguments.file is not None:
        prompts += read_prompts(arguments.file)
    if arguments.json is not None:
        if not prompts:
            raise ValueError("--json: a chat writes no file; give --prompt or --file, or remove it.")
        check_writable(arguments.json, "--json")
    session = load(arguments)
    if prompts:
        answer_all(session, prompts, arguments, console)
    else:
        chat(session, console)
