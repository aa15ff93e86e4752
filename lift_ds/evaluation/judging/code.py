"""HumanEval and MBPP: programs that must pass tests.

They run in child processes of their own (`sandbox.child`), which can read files but change nothing: no writing, no
network, no other process. A right program that writes files is wrong here. A program could search its process for the
token that proves that the tests came to their end; the scorers do not defend against that.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from .checks import Checks
from .extraction import final_answer, own_turn
from .published import between
from .scorer import Row, Score, whole_answer

FIRST_FUNCTION = re.compile(r"def\s+([A-Za-z_][A-Za-z0-9_]*)\s*\(")
TOP_FUNCTION = re.compile(r"^(?:async\s+)?def\s+([A-Za-z_]\w*)", re.MULTILINE)
IMPORT = re.compile(r"^(?:from\s+\S+\s+)?import\s.*$", re.MULTILINE)
LANGUAGES = ("", "python", "python3", "py")
LONGEST = 100_000
MOST_FUNCTIONS = 8
TRY_EACH = """
for _name in {names!r}:
    try:
        check(globals()[_name])
        break
    except Exception as _error:
        _failure = _error
else:
    raise _failure
"""


def humaneval_reference(row: Row, generation: str, checks: Checks) -> Score:
    """As published: the first closed python block, its first function, and the tests; exit status 0 is right.

    Source: LIFT's `parse_humaneval_answers`, with its 10 seconds and 1 GB. Known faults, kept: a helper that stands
    first is tested instead of the answer; `sys.exit()` before the tests passes; the imports of the prompt are missing.
    """
    program = first_block(generation)
    function = FIRST_FUNCTION.search(program) if program is not None else None
    if program is None or function is None:
        return whole_answer(None, False)
    tests = row.ground_truth[row.ground_truth.index("def") :]
    return run(f"{program}\n\n{tests}\n\ncheck({function[1]})", program, checks, may_exit=True)


def mbpp_reference(row: Row, generation: str, checks: Checks) -> Score:
    """As published: the first closed python block and the tests; exit status 0 is right, also before the tests."""
    program = first_block(generation)
    if program is None:
        return whole_answer(None, False)
    return run(f"{program}\n\n{test_text(row.ground_truth)}", program, checks, may_exit=True)


def humaneval_strict(row: Row, generation: str, checks: Checks) -> Score:
    """The last closed block with a function; the tests must come to their end.

    They call the row's `entry_point`, else the last function of the question's code; where the question has no code, as
    under the published prompt, any function of the program. A block without that function continues the question's
    code.
    """
    program = last_block(generation)
    if program is None:
        return whole_answer(None, False)
    asked = TOP_FUNCTION.findall(row.question)
    entry_point = row.entry_point or (asked[-1] if asked else None)
    defined = TOP_FUNCTION.findall(program)
    names = [entry_point] if entry_point else defined[::-1][:MOST_FUNCTIONS]
    if not names:
        return whole_answer(None, False)
    before = "\n".join(IMPORT.findall(row.question)) if entry_point in defined or not asked else row.question
    source = f"{before}\n{program}\n\n{test_text(row.ground_truth)}\n{TRY_EACH.format(names=names)}"
    return run(source, program, checks, may_exit=False)


def mbpp_strict(row: Row, generation: str, checks: Checks) -> Score:
    """The last closed block with a function; the tests must come to their end."""
    program = last_block(generation)
    if program is None:
        return whole_answer(None, False)
    return run(f"{program}\n\n{test_text(row.ground_truth)}", program, checks, may_exit=False)


def run(source: str, program: str, checks: Checks, may_exit: bool) -> Score:
    """The score of a program with its tests; one above 100,000 characters is not run, and wrong."""
    if len(program) > LONGEST:
        return whole_answer(program, False)
    verdict = checks.run_program(source, may_exit)
    return whole_answer(program, verdict.holds, verdict.timed_out)


def first_block(text: str) -> str | None:
    """The first closed block that begins with a line of three backticks and `python`."""
    return next(between(text, "```python\n", "```"), None)


def last_block(text: str) -> str | None:
    """The last closed Python block with a function, else the last one; without blocks what an answer tag holds."""
    blocks = list(closed_blocks(own_turn(text)))
    if not blocks:
        answer = final_answer(text)
        return answer if answer is not None and "```" not in answer else None
    return next((block for block in reversed(blocks) if TOP_FUNCTION.search(block)), blocks[-1])


def closed_blocks(text: str) -> Iterator[str]:
    """The contents of closed blocks in Python or without a language."""
    pieces = text.split("```")
    for piece in pieces[1:-1:2]:
        language, newline, content = piece.partition("\n")
        if newline and language.strip().lower() in LANGUAGES:
            yield content


def test_text(truth: Any) -> str:
    """The tests of a ground truth as one text; MBPP's may be a list."""
    return "\n".join(truth) if isinstance(truth, list) else str(truth)


def check_humaneval_row(row: Row) -> None:
    """The ground truth defines `check(candidate)`.

    Raises:
        ValueError: It does not.
    """
    if not isinstance(row.ground_truth, str) or "def check" not in row.ground_truth:
        raise ValueError(
            f"ground_truth={row.ground_truth!r:.80}: humaneval needs the tests, with `def check(candidate)`."
        )


def check_mbpp_row(row: Row) -> None:
    """The ground truth is Python text with tests, or a list of them.

    Raises:
        ValueError: It is not.
    """
    truth = row.ground_truth
    lines = truth if isinstance(truth, list) and truth else [truth]
    if not all(isinstance(line, str) and line.strip() for line in lines):
        raise ValueError(f"ground_truth={truth!r:.80}: mbpp needs its tests, as text or a list of `assert` lines.")
