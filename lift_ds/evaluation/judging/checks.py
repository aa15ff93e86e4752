"""The checks that run in child processes: equal formulas, and programs; what asks, and below it what answers."""

from __future__ import annotations

import math
import secrets
from dataclasses import replace
from typing import Any, NamedTuple

from lift_ds.evaluation.sandbox import Child, Failure, Handler, Limits

LONGEST_FORMULA = 10_000
SPARE_CPU_SECONDS = 2


class CheckResult(NamedTuple):
    """What a check said: whether it holds, and whether it was stopped at a limit."""

    holds: bool
    timed_out: bool = False


class Checks:
    """Asks child processes; one lives for all formulas until one of them stops it, every program has its own."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.maths: Child | None = None

    def is_same_formula(self, scorer: str, answer: str, truth: str) -> CheckResult:
        """Whether two LaTeX answers are equal by the rules of `scorer`.

        Above 10,000 characters an answer is not compared: it is wrong. One that stops or breaks its process is wrong,
        too.

        Raises:
            RuntimeError: No child process can be started.
        """
        if len(answer) > LONGEST_FORMULA:
            return CheckResult(False)
        if self.maths is None:
            self.maths = Child(f"{__name__}:compare_formulas", self.limits)
        reply = self.maths.ask({"scorer": scorer, "answer": answer, "truth": truth})
        if isinstance(reply, Failure):
            self.maths = None
            return CheckResult(False, timed_out=reply is Failure.TIMEOUT)
        return CheckResult(reply["is_same"])

    def run_program(self, source: str, may_exit: bool) -> CheckResult:
        """Whether a Python program ends without an error, or, if it may, early with status 0: `os._exit(0)`.

        Raises:
            RuntimeError: No child process can be started.
        """
        token = secrets.token_hex()
        cpu_seconds = math.ceil(self.limits.seconds) + SPARE_CPU_SECONDS
        with Child(f"{__name__}:run_program", replace(self.limits, cpu_seconds=cpu_seconds)) as child:
            reply = child.ask({"source": source, "token": token})
            if isinstance(reply, Failure):
                has_left = reply is Failure.ENDED and child.process.returncode == 0
                return CheckResult(may_exit and has_left, timed_out=reply is Failure.TIMEOUT)
        if reply.get("ended") == "exit":
            return CheckResult(may_exit and bool(reply["is_success"]))
        return CheckResult(reply.get("ended") == "finished" and reply.get("token") == token)

    def __enter__(self) -> Checks:
        return self

    def __exit__(self, *failure: object) -> None:
        if self.maths is not None:
            self.maths.close()


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
