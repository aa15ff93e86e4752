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
from typing import TYPE_CHECKING, Any, get_args

from rich.console import Console
from rich.live import Live
from rich.text import Text

from lift_ds.sampling.choose import EosPolicy, Remasking, Rule
from lift_ds.sampling.predict import Cache
from lift_ds.sampling.reverse import ReverseProcess, pad_left

if TYPE_CHECKING:
    from torch import Tensor

    from lift_ds.data.chat import ChatEncoder

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
    parser.add_argument("--json", type=Path, help="jsonl to write: question, generation, num_forwards of its batch")
    parser.add_argument("--gen-length", type=int, default=128, help="most tokens of an answer")
    parser.add_argument("--block-length", type=int, default=32, help="tokens of a block")
    parser.add_argument("--steps", type=int, help="denoising steps in all; default: a step a token")
    parser.add_argument("--threshold", type=float, help="reveal all predictions that are at least so sure")
    parser.add_argument("--factor", type=float, help="reveal the n surest while (n + 1) (1 - confidence) is below")
    parser.add_argument("--remasking", choices=get_args(Remasking), default="low_confidence", help="what ranks them")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy")
    parser.add_argument("--top-p", type=float, default=1.0, help="draw from the fewest tokens of this probability")
    parser.add_argument("--cfg-scale", type=float, default=0.0, help="classifier-free guidance; 0 is off")
    parser.add_argument("--cache", choices=get_args(Cache), default="none", help="keys and values kept within a block")
    parser.add_argument("--eos", choices=get_args(EosPolicy), default="allow", help="whether answers may end early")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn")
    parser.add_argument("--batch-size", type=int, default=16, help="prompts of one forward")
    return parser


@dataclass(frozen=True)
class Answerer:
    """A model with its tokenizer and the way answers are made."""

    model: Any
    encoder: ChatEncoder
    process: ReverseProcess
    generator: Any

    def answer(
        self, conversations: list[Messages], watch: Callable[[Tensor], None] | None = None
    ) -> tuple[list[str], int]:
        """The next turns of conversations, and the forwards that they took.

        Args:
            conversations: Each ends with the user's turn.
            watch: Called with the ids (B, gen_length) of the answers after every step.
        """
        prompts = [self.encoder.prompt_ids(messages) for messages in conversations]
        ids, attention = pad_left(prompts, self.encoder.end_token_id)
        start, device = ids.shape[1], self.model.device
        made = self.process.run(
            self.model,
            ids.to(device),
            attention.to(device),
            self.generator,
            watch=watch and (lambda now: watch(now[:, start:])),
        )
        return [self.encoder.answer_text(row) for row in made.ids[:, start:].tolist()], made.num_forwards


def make_process(arguments: argparse.Namespace) -> ReverseProcess:
    """How answers are made: a step a token, where neither steps nor confidence are given.

    Raises:
        ValueError: A flag is out of range.
    """
    steps = arguments.steps
    if steps is None and arguments.threshold is None and arguments.factor is None:
        steps = arguments.gen_length
    rule = Rule(
        arguments.remasking,
        arguments.temperature,
        arguments.top_p,
        arguments.threshold,
        arguments.factor,
        arguments.eos,
    )
    return ReverseProcess(
        arguments.gen_length, arguments.block_length, steps, rule, arguments.cfg_scale, True, arguments.cache
    )


def load(arguments: argparse.Namespace) -> Answerer:
    """Everything that the flags ask for.

    Raises:
        ValueError: A flag is out of range, or the model or its tokenizer cannot be used.
    """
    import torch

    from lift_ds.data.chat import ChatEncoder
    from lift_ds.models.families import max_length_of
    from lift_ds.models.weights import load_pretrained

    process = make_process(arguments)  # what is wrong with the flags is said before the model is read
    model, tokenizer = load_pretrained(arguments.model)
    if tokenizer is None:
        raise ValueError(f"{arguments.model}: no tokenizer in the folder; copy the one it was trained with there.")
    on_gpu = torch.cuda.is_available()
    torch.nn.Module.to(model, "cuda" if on_gpu else "cpu", None if on_gpu else torch.float32)
    encoder = ChatEncoder(tokenizer, int(model.config.eos_token_id), max_length_of(model.config))
    return Answerer(model, encoder, process, torch.Generator(model.device).manual_seed(arguments.seed))


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


def answer_all(answerer: Answerer, prompts: list[str], arguments: argparse.Namespace, console: Console) -> None:
    """Answers prompts in batches; prints them, or writes a line for each."""
    records = []
    for start in range(0, len(prompts), arguments.batch_size):
        batch = prompts[start : start + arguments.batch_size]
        conversations = [as_messages(arguments.system, prompt) for prompt in batch]
        with shown(answerer, console, len(batch) == 1) as watch:
            texts, num_forwards = answerer.answer(conversations, watch)
        for prompt, text in zip(batch, texts, strict=True):
            records.append({"question": prompt, "generation": text, "num_forwards": num_forwards})
            if not arguments.json:
                console.print(text, markup=False, highlight=False)
    if arguments.json:
        arguments.json.write_text("".join(json.dumps(each) + "\n" for each in records), encoding="utf-8")
        console.print(f"{len(records)} answers in {arguments.json}")


def chat(answerer: Answerer, arguments: argparse.Namespace, console: Console) -> None:
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
        with shown(answerer, console, True) as watch:
            (answer,), num_forwards = answerer.answer([messages], watch)
        console.print(answer, markup=False, highlight=False)
        console.print(f"{num_forwards} forwards, {time.perf_counter() - began:.1f} s", style="dim")
        messages = [*messages, {"role": "assistant", "content": answer}]


@contextmanager
def shown(answerer: Answerer, console: Console, is_single: bool) -> Iterator[Callable[[Tensor], None] | None]:
    """What shows an answer while it is made, where there is one answer and a terminal; it vanishes at the end."""
    if not (is_single and console.is_terminal):
        yield None
        return
    with Live(console=console, transient=True, refresh_per_second=12) as live:
        yield lambda ids: live.update(partly_masked(ids[0].tolist(), answerer))


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
        answerer = load(arguments)
        if prompts:
            answer_all(answerer, prompts, arguments, console)
        else:
            chat(answerer, arguments, console)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
