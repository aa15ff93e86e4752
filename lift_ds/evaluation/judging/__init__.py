"""How answers are judged: `reference` counts as the published evaluation does, `strict` counts what is right."""

from .checks import Checks
from .scorer import AnsweredProblem, Problem, Score, Scorer, whole_answer

SCORER_VERSIONS = {"reference": 1, "strict": 1}
"""Raised whenever a scorer's counts may change."""

__all__ = ["SCORER_VERSIONS", "AnsweredProblem", "Checks", "Problem", "Score", "Scorer", "whole_answer"]
