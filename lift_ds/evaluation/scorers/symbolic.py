r"""Whether two LaTeX answers are the same mathematical object: expressions, equations, sets, intervals, tuples, matrices.

The reading and comparing is math-verify's, from its LaTeX grammar alone; its other reader, which evaluates Python text, is
not used. It runs in a worker (`isolation`), because it may compute for minutes.
"""

from __future__ import annotations

import logging

from math_verify import LatexExtractionConfig, parse, verify

logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its own time limit is off; the worker has one


def is_equivalent(answer: str, truth: str) -> bool:
    """Whether the answer equals the truth; `False` where either cannot be read."""
    given, wanted = (read(each) for each in (answer, truth))
    return bool(given and wanted and verify(wanted, given, timeout_seconds=None))


def read(text: str) -> list[object]:
    """What math-verify reads in one formula; empty where it is none."""
    formula = text.replace("\\$", "").replace("$", "")
    found: list[object] = parse(
        f"${formula}$",
        extraction_config=[LatexExtractionConfig()],
        fallback_mode="no_fallback",
        parsing_timeout=None,
    )
    return found
