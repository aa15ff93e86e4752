"""A step's cut into micro-batches and ranks: within the limit, even, and all of it."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lift_ds.data.order.dealing import BatchRule


def cut(rule, lengths, num_ranks=1):
    return rule.cut([rule.size([length]) for length in lengths], num_ranks)


def test_padded_rows_are_cut_by_their_longest():
    """At most 64 tokens: 4 rows of 16, or 1 of 40; 10 rows of which one is longer than allowed."""
    rule = BatchRule(max_tokens=64)
    assert cut(rule, [80, 16, 16, 16, 16, 30, 32, 5]) == [[[0], [6, 5], [1, 2, 3, 4], [7]]]
    assert cut(BatchRule(max_tokens=64, is_packed=True), [30, 20, 10, 40]) == [[[3], [0, 1, 2]]]


def test_the_costliest_micro_batch_is_as_cheap_as_can_be():
    """Two ranks, one micro-batch each: 40 | 3 x 20 pads to 40, 60; the other way round 2 x 40, or 4 x 40."""
    assert cut(BatchRule(max_tokens=1000), [20, 40, 20, 20], num_ranks=2) == [[[1]], [[0, 2, 3]]]
    # a pair costs 1/20: a row of 40 costs 120, one of 20 costs 40, so that the three of 20 are as much
    assert BatchRule(max_tokens=1, pair_cost=0.05).size([40, 20]).cost == pytest.approx(160)


def test_given_rows_are_dealt_back_and_forth():
    rule = BatchRule(max_rows=2)
    assert cut(rule, [8, 7, 6, 5, 4, 3, 2, 1], num_ranks=2) == [[[0, 3], [4, 7]], [[1, 2], [5, 6]]]
    assert cut(rule, [8, 7, 6, 5, 4], num_ranks=2) == [[[0, 3], [4]], [[1, 2], []]]


@settings(deadline=None, max_examples=200)
@given(
    lengths=st.lists(st.integers(1, 300), max_size=60),
    num_ranks=st.integers(1, 9),
    limit=st.integers(1, 2000),
    is_packed=st.booleans(),
    pair_cost=st.sampled_from([0.0, 0.01]),
)
def test_all_is_computed_once_within_the_limit(lengths, num_ranks, limit, is_packed, pair_cost):
    rule = BatchRule(max_tokens=limit, is_packed=is_packed, pair_cost=pair_cost)
    dealt = cut(rule, lengths, num_ranks)
    assert len({len(of_rank) for of_rank in dealt}) == 1 and len(dealt) == num_ranks
    parts = [[lengths[place] for place in part] for of_rank in dealt for part in of_rank]
    assert sorted(place for of_rank in dealt for part in of_rank for place in part) == list(range(len(lengths)))
    for part in parts:
        assert len(part) < 2 or (sum(part) if is_packed else len(part) * max(part)) <= limit
    alone = cut(rule, lengths)[0]
    assert len(dealt[0]) == max(1, -(-len(alone) // num_ranks))  # no more than the limit asks for
