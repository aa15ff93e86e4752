"""HumanEval and MBPP: programs that must pass tests.

They run in child processes of their own (`sandbox.child`), which can read files but change nothing: no writing, no
network, no other process. A right program that writes files is wrong here. A program could search its process for the
token that proves that the tests came to their end; the scorers do not defend against that.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from lift_ds.evaluation.judging import Checks, Problem, Score, whole_answer
from lift_ds.evaluation.judging.extraction import final_answer, own_turn
from lift_ds.evaluation.judging.published import between

from .task import EvalTask, Values

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


def read_humaneval(values: Values, where: str) -> Problem:
    """`prompt` is code."""
    return Problem(values["prompt"], values["test"], where, values["entry_point"])


def read_mbpp(values: Values, where: str) -> Problem:
    """`prompt` (`text` in the full set) with `test_list`, and imports that the tests need."""
    question = values["prompt"] if "prompt" in values else values["text"]
    lines: list[str] = []
    for name in ("test_imports", "test_list"):
        texts = values.get(name) or []
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"{name} is {texts!r:.60}; a list of texts is needed.")
        lines += texts
    return Problem(question, lines, where)


def humaneval_reference(problem: Problem, generation: str, checks: Checks) -> Score:
    """As published: the first closed python block, its first function, and the tests; exit status 0 is right.

    Source: LIFT's `parse_humaneval_answers`, with its 10 seconds and 1 GB. Known faults, kept: a helper that stands
    first is tested instead of the answer; `sys.exit()` before the tests passes; the imports of the prompt are missing.
    """
    program = first_block(generation)
    function = FIRST_FUNCTION.search(program or "")
    if function is None:
        return whole_answer(None, False)
    tests = problem.ground_truth[problem.ground_truth.index("def") :]
    return run(program, f"{program}\n\n{tests}\n\ncheck({function[1]})", checks, may_exit=True)


def mbpp_reference(problem: Problem, generation: str, checks: Checks) -> Score:
    """As published: the first closed python block and the tests; exit status 0 is right, also before the tests."""
    program = first_block(generation)
    return run(program, f"{program}\n\n{problem.test_text}", checks, may_exit=True)


def humaneval_strict(problem: Problem, generation: str, checks: Checks) -> Score:
    """The last closed block with a function; the tests must come to their end.

    They call the problem's `entry_point`, else the last function of the question's code; where the question has no
    code, as under the published prompt, any function of the program. A block without that function continues the
    question's code.
    """
    program = last_block(generation)
    asked = TOP_FUNCTION.findall(problem.question)
    entry_point = problem.entry_point or (asked[-1] if asked else None)
    defined = TOP_FUNCTION.findall(program or "")
    names = [entry_point] if entry_point else defined[::-1][:MOST_FUNCTIONS]
    if not names:
        return whole_answer(None, False)
    before = "\n".join(IMPORT.findall(problem.question)) if entry_point in defined or not asked else problem.question
    source = f"{before}\n{program}\n\n{problem.test_text}\n{TRY_EACH.format(names=names)}"
    return run(program, source, checks, may_exit=False)


def mbpp_strict(problem: Problem, generation: str, checks: Checks) -> Score:
    """The last closed block with a function; the tests must come to their end."""
    program = last_block(generation)
    return run(program, f"{program}\n\n{problem.test_text}", checks, may_exit=False)


def run(program: str | None, source: str, checks: Checks, may_exit: bool) -> Score:
    """The score of a program, whose source with its tests is run; one above 100,000 characters is not, and wrong."""
    if program is None or len(program) > LONGEST:
        return whole_answer(program, False)
    return whole_answer(program, *checks.run_program(source, may_exit))


def first_block(text: str) -> str | None:
    """The first closed block that begins with a line of three backticks and `python`."""
    return next(between(text, "```python\n", "```"), None)


def last_block(text: str) -> str | None:
    """The last closed Python block with a function, else the last one; without blocks what an answer tag holds."""
    blocks = list(_closed_blocks(own_turn(text)))
    if not blocks:
        answer = final_answer(text)
        return answer if answer is not None and "```" not in answer else None
    return next((block for block in reversed(blocks) if TOP_FUNCTION.search(block)), blocks[-1])


def _closed_blocks(text: str) -> Iterator[str]:
    pieces = text.split("```")
    for piece in pieces[1:-1:2]:
        language, newline, content = piece.partition("\n")
        if newline and language.strip().lower() in LANGUAGES:
            yield content


def _check_humaneval(problem: Problem) -> None:
    if not isinstance(problem.ground_truth, str) or "def check" not in problem.ground_truth:
        raise ValueError(
            f"ground_truth={problem.ground_truth!r:.80}: humaneval needs the tests, with `def check(candidate)`."
        )


def _check_mbpp(problem: Problem) -> None:
    truth = problem.ground_truth
    lines = truth if isinstance(truth, list) and truth else [truth]
    if not all(isinstance(line, str) and line.strip() for line in lines):
        raise ValueError(f"ground_truth={truth!r:.80}: mbpp needs its tests, as text or a list of `assert` lines.")


HUMANEVAL = EvalTask(
    name="humaneval",
    source="hub:openai/openai_humaneval@test",
    read={("prompt", "test", "entry_point"): read_humaneval},
    reference=humaneval_reference,
    strict=humaneval_strict,
    check=_check_humaneval,
    shows_tests=True,
)
MBPP = EvalTask(
    name="mbpp",
    source="hub:google-research-datasets/mbpp:sanitized@test",
    read={("prompt", "test_list"): read_mbpp, ("text", "test_list"): read_mbpp},
    reference=mbpp_reference,
    strict=mbpp_strict,
    check=_check_mbpp,
    shows_tests=True,
)
TASKS = (HUMANEVAL, MBPP)
