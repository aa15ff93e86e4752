"""Counter-based random numbers: every draw is named by what it is for, never by when it happens.

A draw is a pure function of (seed, epoch, sample, stream). Resuming, another number of ranks, another micro-batch size
or another packing therefore cannot change it, and nothing ever reseeds a global generator.
"""

from __future__ import annotations

import threading
from enum import IntEnum

import numpy as np


class Stream(IntEnum):
    """What a draw is for. Values are part of a run's identity: append, never renumber."""

    NOISE = 0  # a document's level, extra level, component, refresh, mask and ties, in this order
    ORDER = 5
    STEP_TIME = 6
    EVALUATION = 7
    INITIAL_WEIGHTS = 8
    DROPOUT = 9
    SOURCE = 11
    KEPT_COUNT = 12
    BLOCK_NOISE = 13  # of each block of a document: level, extra level, component, rounding of how many are kept


def keyed_generator(seed: int, epoch: int, sample: int, stream: Stream) -> np.random.Generator:
    """A fresh generator at the start of one named sequence.

    Args:
        seed: The run's seed, 0 to 2^64-1.
        epoch: Pass over the data (or any outer counter), from 0.
        sample: Sample id (or any inner counter), from 0.
        stream: What the draws are for.

    Returns:
        A Philox generator with key (seed, epoch) and counter (0, 0, sample, stream): sequences never overlap.
    """
    key = np.array([seed, epoch], dtype=np.uint64)
    counter = np.array([0, 0, sample, int(stream)], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def keyed_uniform(seed: int, epoch: int, sample: int, stream: Stream, count: int) -> np.ndarray:
    """`count` float32 uniforms in [0, 1) of one named sequence; a longer call starts with the shorter one's values."""
    return _pointer.at(seed, epoch, sample, stream).random(count, dtype=np.float32)


class _Pointer(threading.local):
    """A generator of this thread that is set to one sequence after the other: making a new one costs ten times that."""

    def __init__(self) -> None:
        self.generator = np.random.Generator(np.random.Philox(key=0))
        self.state = self.generator.bit_generator.state

    def at(self, seed: int, epoch: int, sample: int, stream: Stream) -> np.random.Generator:
        self.state["state"]["key"][:] = (seed, epoch)
        self.state["state"]["counter"][:] = (0, 0, sample, int(stream))
        self.generator.bit_generator.state = self.state
        return self.generator


_pointer = _Pointer()
