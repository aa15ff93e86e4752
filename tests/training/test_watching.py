import io

import pytest
import torch
from rich.console import Console

from lift_ds.data.tasks import Verdict
from lift_ds.evaluation.asking.answering import load_answerer
from lift_ds.evaluation.asking.solve import builtin_questions
from lift_ds.evaluation.asking.unmasking import MASK_SIGN
from lift_ds.ranks.shares import Alone
from lift_ds.sampling.settings import SamplingSettings
from lift_ds.training.progress import LiveProgress, PlainProgress
from lift_ds.training.watching import STATES_PER_SECOND, watch

PROCESS = SamplingSettings(gen_length=24, block_length=24, steps=24)


@pytest.fixture(scope="module")
def watched():
    """An answer of the built-in base, one token after the other."""
    answerer = load_answerer("builtin:base")
    (question,) = builtin_questions(1, 0, "sudoku/4")
    return watch(answerer.model, answerer.encoder, question, PROCESS, Alone(torch.device("cpu")), 40)


def drawn(watched, seconds):
    console = Console(file=io.StringIO(), width=100)
    console.print(watched.shown(seconds))
    return console.file.getvalue()


def test_an_answer_is_unmasked_step_by_step(watched):
    num_masked = [state.count(watched.mask_id) for state in watched.states]
    assert num_masked == list(range(24, -1, -1))
    for before, after in zip(watched.states, watched.states[1:], strict=False):
        assert all(old in (new, watched.mask_id) for old, new in zip(before, after, strict=True))
    assert watched.verdict is watched.question.check(watched.text) is not Verdict.SOLVED
    assert watched.encoder.answer_text(watched.states[-1]) == watched.text


def test_it_is_played_in_time(watched):
    first, middle, last = (drawn(watched, seconds) for seconds in (0.0, 12 / STATES_PER_SECOND, float("inf")))
    assert [shown.count(MASK_SIGN) for shown in (first, middle, last)] == [24, 12, 0]
    for shown in (first, middle, last):
        assert "held-out item of sudoku/4 at step 40" in shown
        assert "Solve this 4x4 Sudoku" in shown
    assert watched.verdict.value in last and watched.verdict.value not in middle
    assert all(line in last for line in watched.text.split("\n"))


def test_displays(watched):
    """A line with the whole of it in a file and in the log, a part of the panel in a terminal."""
    plain, log, terminal = io.StringIO(), io.StringIO(), io.StringIO()
    PlainProgress(Console(file=plain, width=240), 80).show_item(watched)
    progress = LiveProgress(Console(file=terminal, force_terminal=True, width=100), 80, "title", log)
    progress.show_item(watched)
    progress.close()
    (line,) = plain.getvalue().splitlines()
    assert line == watched.line and log.getvalue().endswith(f" {line}\n")
    assert line.startswith("step 40, sudoku/4: Solve this 4x4 Sudoku:") and line.endswith(watched.verdict.value)
    assert "held-out item of sudoku/4" in terminal.getvalue()
    assert watched.verdict.value in terminal.getvalue()  # the last panel has the whole answer
