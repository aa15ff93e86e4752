"""`generate_until`: requests of tasks as jobs of the reverse process, and its answers as text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from lift_ds.evaluation.asking.answering import Answerer
from lift_ds.sampling.block_rule import check_settings
from lift_ds.sampling.reverse import RowSeeds
from lift_ds.sampling.settings import SamplingSettings

from .batches import Bar, Batches, log
from .likelihood import key_of
from .settings import HarnessSettings
from .texts import Texts

LENGTH_NAMES = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
DEFAULT_MAX_TOKENS = 256  # what the harness's own models take where a task says nothing
KNOWN_NAMES = {*LENGTH_NAMES, "until", "do_sample", "temperature", "top_p"}


@dataclass(frozen=True)
class Job:
    """One request: its answer is cut at `max_tokens` and at the first text of `until`; `seed` names its draws."""

    prompt: tuple[int, ...]
    process: SamplingSettings
    max_tokens: int
    until: tuple[str, ...]
    seed: str


@dataclass(frozen=True)
class Wish:
    """What the keyword arguments of a request ask for; `None` where they do not say."""

    max_tokens: int | None
    temperature: float | None
    top_p: float | None
    until: tuple[str, ...]
    unknown: tuple[str, ...]


def read_wish(arguments: Mapping[str, Any]) -> Wish:
    """Reads a request's keyword arguments; a ValueError where a length or a temperature is no number in range."""
    until = arguments.get("until") or []
    lengths = [arguments[name] for name in LENGTH_NAMES if arguments.get(name) is not None]
    if lengths and not (isinstance(lengths[0], int) and lengths[0] > 0):
        raise ValueError(f"max_gen_toks={lengths[0]!r}: a number of tokens from 1 is needed.")
    temperature = arguments.get("temperature")
    if arguments.get("do_sample") is False:
        temperature = 0.0
    elif arguments.get("do_sample") and temperature is None:
        temperature = 1.0
    top_p = arguments.get("top_p")
    return Wish(
        max_tokens=lengths[0] if lengths else None,
        temperature=None if temperature is None else float(temperature),
        top_p=None if top_p is None else float(top_p),
        until=tuple(text for text in ([until] if isinstance(until, str) else until) if text),
        unknown=tuple(sorted(set(arguments) - KNOWN_NAMES)),
    )


@dataclass(frozen=True)
class Answers:
    """Answers requests; every rank gets the same list, does its part of the work, and has all answers."""

    answerer: Answerer
    texts: Texts
    settings: HarnessSettings
    batches: Batches
    _said: set[str] = field(default_factory=set, init=False)

    def jobs(self, requests: Iterable[tuple[str, Mapping[str, Any]]]) -> list[Job]:
        """What is to be done for (context, keyword arguments); equal requests are different draws.

        See `read_wish`, `checked_settings`, `check_settings` and `Texts.prompt` for its errors.
        """
        seen: Counter[tuple[int, ...]] = Counter()
        jobs = []
        for context, arguments in requests:
            wish = read_wish(arguments)
            max_tokens = wish.max_tokens or self.settings.gen_length or DEFAULT_MAX_TOKENS
            process = self.settings.process(max_tokens, wish.temperature or 0.0, wish.top_p or 1.0)
            check_settings(process, self.answerer.model.config)
            self._say_differences(wish, process)
            prompt = self.texts.prompt(context, process.gen_length)
            seed = f"{self.settings.seed}/{key_of(prompt)}/{seen[prompt]}"
            seen[prompt] += 1
            jobs.append(Job(prompt, process, max_tokens, wish.until, seed))
        return jobs

    def _say_differences(self, wish: Wish, process: SamplingSettings) -> None:
        """Warns, once each on the first rank, of what a task asks for and does not get."""
        decided = (
            ("max_gen_toks", wish.max_tokens, min(process.gen_length, wish.max_tokens or process.gen_length)),
            ("temperature", wish.temperature, process.temperature),
            ("top_p", wish.top_p, process.top_p),
        )
        messages = [
            *(
                f"the task asks for {name}={asked}; --model_args decides: {used}."
                for name, asked, used in decided
                if asked not in (None, used)
            ),
            *(f"the task's generation argument {name} means nothing here and is not used." for name in wish.unknown),
        ]
        for message in messages:
            if message not in self._said and self.batches.ranks.rank == 0:
                log.warning(message)
            self._said.add(message)

    def run(self, jobs: Sequence[Job], bar: Bar) -> list[str]:
        """The answers, in the order of the jobs; `bar` shows the batches."""
        size = self.settings.batch_size
        batches: list[list[int]] = []
        for process in dict.fromkeys(job.process for job in jobs):
            indices = [index for index, job in enumerate(jobs) if job.process == process]
            indices.sort(key=lambda index: (-len(jobs[index].prompt), index))
            batches += [indices[start : start + size] for start in range(0, len(indices), size)]
        made = self.batches.run(
            len(batches),
            lambda number: ("answers", [jobs[index] for index in batches[number]]),
            lambda number: self.generate([jobs[index] for index in batches[number]]),
            bar,
        )
        ids_of = dict(zip(chain(*batches), chain(*made), strict=True))
        return [self.text(job, ids_of[index]) for index, job in enumerate(jobs)]

    def generate(self, jobs: Sequence[Job]) -> list[list[int]]:
        """Ids (B, gen_length) of jobs with the same process."""
        seeds = RowSeeds(tuple(job.seed for job in jobs))
        return self.answerer.generate([job.prompt for job in jobs], jobs[0].process, seeds).ids.tolist()

    def text(self, job: Job, ids: list[int]) -> str:
        """Text of an answer before its first special token, the end of its length, and the texts that end it."""
        text = self.texts.encoder.answer_text(ids[: min(job.max_tokens, job.process.gen_length)])
        return text[: min((text.find(stop) for stop in job.until if stop in text), default=len(text))]
