from itertools import combinations
from math import comb

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lift_ds.evaluation.judging.statistics import mcnemar, paired_bootstrap, pass_at_k, wilson_interval


@given(st.integers(1, 8).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_is_the_share_of_subsets_with_a_right_sample(case):
    num_samples, num_correct, k = case
    subsets = list(combinations([True] * num_correct + [False] * (num_samples - num_correct), k))
    assert pass_at_k(num_samples, num_correct, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


def test_pass_at_k_by_hand():
    # of 4 samples 1 is right: a pair misses it in 3 of 6 cases
    assert pass_at_k(4, 1, 2) == 0.5
    assert pass_at_k(10_000, 1, 10_000) == 1.0
    for arguments in ((4, 1, 5), (4, 5, 1), (4, 1, 0)):
        with pytest.raises(ValueError, match="samples"):
            pass_at_k(*arguments)


def test_wilson_interval_by_hand():
    # n = 10, p = 1/2, z = 2: (0.5 + 0.2 -+ 2 sqrt(0.025 + 0.01)) / 1.4 = (0.7 -+ 0.374166) / 1.4
    assert wilson_interval(5, 10, z=2.0) == pytest.approx((0.2327388, 0.7672612))
    assert wilson_interval(0, 256) == (0.0, pytest.approx(3.841459 / (256 + 3.841459)))  # z^2 / (n + z^2)
    assert wilson_interval(256, 256)[1] == 1.0
    for arguments in ((0, 0), (3, 2), (-1, 2)):
        with pytest.raises(ValueError, match="an interval needs items"):
            wilson_interval(*arguments)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_interval_holds_the_share(case):
    low, high = wilson_interval(*case)
    assert 0 <= low <= case[0] / case[1] <= high <= 1


def test_mcnemar_by_hand():
    # 1 and 5: 2 (C(6,0) + C(6,1)) / 2^6 = 14 / 64
    assert mcnemar(1, 5) == mcnemar(5, 1) == 14 / 64
    assert mcnemar(0, 0) == mcnemar(3, 3) == 1.0
    assert mcnemar(0, 2000) == 2 / 2**2000
    with pytest.raises(ValueError, match="negative"):
        mcnemar(-1, 2)


@given(st.integers(0, 30), st.integers(0, 30))
def test_mcnemar_adds_the_outcomes_that_are_no_likelier(first, second):
    total = first + second
    at_least_as_far = sum(comb(total, i) for i in range(total + 1) if abs(2 * i - total) >= abs(first - second))
    assert mcnemar(first, second) == pytest.approx(at_least_as_far / 2**total)


def test_paired_bootstrap():
    first, second = [0, 1] * 100, [1, 1] * 100  # every second item gains 1: 0.5 on average, standard error 0.0354
    found = paired_bootstrap(first, second, seed=3)
    assert found.mean == 0.5
    assert found.low == pytest.approx(0.5 - 1.96 * 0.0354, abs=0.015)
    assert found.high == pytest.approx(0.5 + 1.96 * 0.0354, abs=0.015)
    assert found == paired_bootstrap(first, second, seed=3)
    assert found != paired_bootstrap(first, second, seed=4)


def test_pairing_removes_what_makes_items_hard():
    hard = [0.0, 5.0] * 50
    found = paired_bootstrap(hard, [score + 1 for score in hard], seed=0, num_resamples=200)
    assert (found.mean, found.low, found.high) == (1.0, 1.0, 1.0)


@pytest.mark.parametrize("arguments", [([], []), ([1.0], [1.0, 2.0])])
def test_paired_bootstrap_needs_the_same_items(arguments):
    with pytest.raises(ValueError, match="the same items"):
        paired_bootstrap(*arguments, seed=0)
    with pytest.raises(ValueError, match="num_resamples=0"):
        paired_bootstrap([1.0], [1.0], seed=0, num_resamples=0)
