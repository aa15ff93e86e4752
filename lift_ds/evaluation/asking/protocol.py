"""Protocols: how problems are put to a model and how it answers, as YAML files.

`lift` is the published evaluation, `clean` this project's own; any other file of the same form is one, too.
"""

from __future__ import annotations

import hashlib
import re
from importlib.resources import files
from pathlib import Path
from string import Formatter
from typing import Literal

import yaml
from pydantic import Field, field_validator, model_validator

from lift_ds.evaluation.judging import Problem
from lift_ds.evaluation.tasks import EVAL_TASKS
from lift_ds.sampling.settings import FixedSteps
from lift_ds.section import Section
from lift_ds.text_files import load_yaml, read_text

FOLDER = Path(str(files("lift_ds") / "assets" / "protocols"))
DOCSTRING = re.compile(r'("""|\'\'\')(.*?)\1', re.DOTALL)
FIELDS = {"question", "tests"}


class TaskProtocol(Section):
    """How one task's problems are put.

    Args:
        prompt: The user's turn, with {question} and {tests} where they go.
        question: The problem's question as it is, or of a function only its docstring.
        decoding: In place of the protocol's.
        items: Problems, where a task makes as many as are asked for; of others the first so many.
    """

    prompt: str
    question: Literal["docstring"] | None = None
    decoding: FixedSteps | None = None
    items: int | None = Field(None, ge=1)

    @field_validator("prompt")
    @classmethod
    def _check_prompt(cls, prompt: str) -> str:
        named = fields_of(prompt)
        if "question" not in named or named - FIELDS:
            raise ValueError(f"names {sorted(named)}; {{question}} is needed, {{tests}} allowed ({{{{ is a brace)")
        return prompt

    def pose(self, problem: Problem) -> Problem:
        """The problem as it is put: with only a docstring nobody knows the function's name, and none is asked for."""
        if self.question != "docstring":
            return problem
        docstrings = DOCSTRING.findall(problem.question)
        question = docstrings[-1][1].strip() if docstrings else problem.question
        return Problem(question, problem.ground_truth, problem.where)

    def turn(self, problem: Problem) -> str:
        """The user's turn about a problem from `pose`."""
        tests = problem.test_text if "tests" in fields_of(self.prompt) else ""
        return self.prompt.format(question=problem.question, tests=tests)


class Protocol(Section):
    """A protocol.

    Args:
        stop_early: End an answer with the block in which its end token stands, and keep only what is before it.
        answer_prefix: What the answer is made to begin with.
        scorers: Which judge the answers.
        decoding: Of tasks that have none of their own.
        tasks: By name.
    """

    stop_early: bool
    answer_prefix: str
    scorers: list[Literal["reference", "strict"]] = Field(min_length=1)
    decoding: FixedSteps
    tasks: dict[str, TaskProtocol]

    @model_validator(mode="after")
    def _check_tasks(self) -> Protocol:
        unknown = sorted(set(self.tasks) - set(EVAL_TASKS))
        if unknown:
            raise ValueError(f"tasks: {', '.join(unknown)} unknown; allowed are {', '.join(EVAL_TASKS)}")
        for name, task in self.tasks.items():
            if "tests" in fields_of(task.prompt) and not EVAL_TASKS[name].shows_tests:
                raise ValueError(f"tasks.{name}.prompt: {{tests}} would show the right answer; remove it")
        return self

    def fingerprint(self, task: str) -> str:
        """SHA-256 of all that the protocol says of a task."""
        said = self.model_dump_json(include={"stop_early", "answer_prefix", "decoding"})
        return hashlib.sha256(f"{said}{self.tasks[task].model_dump_json()}".encode()).hexdigest()


def fields_of(prompt: str) -> set[str]:
    """What a prompt has braces for; a field's format, as in {question:>9}, counts as part of its name."""
    parsed = Formatter().parse(prompt)
    return {
        f"{name}{'!' if conversion else ''}{conversion or ''}{':' if form else ''}{form or ''}"
        for _, name, form, conversion in parsed
        if name is not None
    }


def load_protocol(name: str) -> Protocol:
    """A built-in protocol by its name, or a YAML file; a ValueError where it is none says what is wrong with it."""
    known = sorted(path.stem for path in FOLDER.glob("*.yaml"))
    path = FOLDER / f"{name}.yaml" if name in known else Path(name)
    if not path.is_file():
        raise ValueError(f"protocol {name!r}: allowed are {', '.join(known)}, or a YAML file.")
    try:
        return Protocol.model_validate(load_yaml(read_text(path)))
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: is no protocol: {error}") from error
