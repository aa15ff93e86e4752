"""What child processes do for the scorers; each function makes the handler of one kind of question."""

from __future__ import annotations

from typing import Any

from lift_ds.evaluation.sandbox import Handler


def compare_formulas() -> Handler:
    """Compares two answers in LaTeX by the rules of a scorer."""
    from .published_judge import is_same_value
    from .symbolic import is_equivalent

    comparisons = {"reference": is_same_value, "strict": is_equivalent}

    def compare(question: dict[str, Any]) -> dict[str, Any]:
        try:
            return {"is_same": bool(comparisons[question["scorer"]](question["answer"], question["truth"]))}
        except Exception as error:  # sympy and math-verify raise almost anything on text that is no formula
            return {"is_same": False, "error": type(error).__name__}

    for scorer in comparisons:  # the grammars are built at their first use
        compare({"scorer": scorer, "answer": "\\frac{1}{2}", "truth": "x"})
    return compare


def run_program() -> Handler:
    """Runs a Python program and says how it ended."""

    def run(question: dict[str, Any]) -> dict[str, Any]:
        try:
            code = compile(question["source"], "<answer>", "exec", dont_inherit=True)  # this module's future is not its
            exec(code, {"__name__": "__main__"})
        except SystemExit as error:
            return {"ended": "exit", "is_success": error.code in (None, 0)}
        except BaseException as error:
            return {"ended": "error", "error": type(error).__name__[:100]}
        return {"ended": "finished", "token": question["token"]}

    return run
