"""A text as the syntax tree of a Python expression, in any number of threads.

CPython 3.11 and 3.12 count the depth of a tree under construction in one place for all threads: where a garbage
collection lets another thread in that parses, too, `ast.parse` ends in a SystemError (its issue 106905).
"""

from __future__ import annotations

import ast
import threading

_one_at_a_time = threading.Lock()


def parse_expression(text: str) -> ast.expr:
    """The tree of an expression.

    Raises:
        SyntaxError: It is none.
        ValueError: It has a null character.
        MemoryError: It is nested too deeply.
        RecursionError: The same.
    """
    with _one_at_a_time:
        return ast.parse(text, mode="eval").body
