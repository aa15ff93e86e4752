"""Scorers of reasoning tasks: `reference` counts as the published evaluation does, `strict` counts what is right."""

from lift_ds.data.tasks import TASKS

from . import builtin, code, countdown, gsm8k, maths, sudoku
from .checks import Checks
from .scorer import Row, Score, Scorer, TaskScorers

SCORER_VERSIONS = {"reference": 1, "strict": 1}
"""Raised whenever a scorer's counts may change."""

LATEX = TaskScorers(maths.reference, maths.strict, maths.check_row, needs_maths=True)
TASK_SCORERS = {
    "gsm8k": TaskScorers(gsm8k.reference, gsm8k.strict, gsm8k.check_row),
    "math500": LATEX,
    "aime24": LATEX,
    "aime25": LATEX,
    "countdown": TaskScorers(countdown.reference, countdown.strict, countdown.check_row),
    "sudoku": TaskScorers(sudoku.reference, sudoku.strict, sudoku.check_row, parts="cells"),
    "humaneval": TaskScorers(code.humaneval_reference, code.humaneval_strict, code.check_humaneval_row),
    "mbpp": TaskScorers(code.mbpp_reference, code.mbpp_strict, code.check_mbpp_row),
    **{f"builtin:{name}": builtin.scorers_of(name) for name in TASKS},
}

__all__ = ["SCORER_VERSIONS", "TASK_SCORERS", "Checks", "Row", "Score", "Scorer", "TaskScorers"]
