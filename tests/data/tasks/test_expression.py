"""Expressions are parsed in any number of threads."""

import ast
import gc
import threading
import time

import pytest

from lift_ds.data.tasks.countdown import parse_expression


class Yields:
    """Garbage that lets other threads in when it is collected."""

    def __init__(self):
        self.me = self

    def __del__(self):
        time.sleep(0)


@pytest.fixture
def eager_collection():
    before = gc.get_threshold()
    gc.set_threshold(5)
    yield
    gc.set_threshold(*before)


def test_threads_do_not_disturb_each_other(eager_collection):
    """`ast.parse` alone ends in "AST constructor recursion depth mismatch" here, on CPython 3.11."""
    errors = []

    def work(depth):
        if depth:
            return work(depth - 1)
        for _ in range(1500):
            Yields()
            try:
                assert isinstance(parse_expression("(88 - 46) * (3 + 4 * (2 - 1))"), ast.BinOp)
            except SystemError as error:
                errors.append(error)
        return None

    threads = [threading.Thread(target=work, args=(7 * number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
