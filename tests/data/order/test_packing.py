import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lift_ds.data.order.stream import Packer


def pack(lengths, capacity, max_open=6):
    packer = Packer(capacity, max_open)
    closed = [packer.add(place, length) for place, length in enumerate(lengths)]
    return [each for each in closed if each is not None], packer.open


def test_best_fit_arithmetic():
    """Capacity 10, two open packs: 6 | 6, 5 | 6+4 (fits best), 5 | 3 joins the 5 | 7 closes the full pack."""
    closed, waiting = pack([6, 5, 4, 3, 7], 10, max_open=2)
    assert [(each.items, each.num_tokens) for each in closed] == [([0, 2], 10)]
    assert [(each.items, each.num_tokens) for each in waiting] == [([1, 3], 8), ([4], 7)]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 50), max_size=80), st.integers(50, 90), st.integers(1, 7))
def test_every_document_once_and_none_too_full(lengths, capacity, max_open):
    closed, waiting = pack(lengths, capacity, max_open)
    packs = closed + waiting
    assert sorted(item for each in packs for item in each.items) == list(range(len(lengths)))
    assert all(each.num_tokens == sum(lengths[item] for item in each.items) <= capacity for each in packs)
    assert all(each.items == sorted(each.items) for each in packs)
    assert len(waiting) <= max_open


def test_fill_on_a_log_normal_mix():
    """Median 400, sigma 0.8, in packs of 4,096: at least 0.97 of the tokens of closed packs."""
    lengths = np.random.default_rng(0).lognormal(np.log(400), 0.8, 5000).clip(8, 4096).astype(int)
    closed, _ = pack(lengths.tolist(), 4096)
    assert len(closed) > 500
    assert sum(each.num_tokens for each in closed) / (4096 * len(closed)) >= 0.97


def test_a_document_longer_than_a_pack():
    with pytest.raises(ValueError, match="a document of 11 tokens in packs of 10"):
        Packer(10).add("row", 11)
