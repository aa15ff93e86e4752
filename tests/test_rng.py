import numpy as np
import pytest

from lift_ds.rng import Stream, keyed_generator, keyed_uniform

KNOWN = [0.35891008377075195, 0.17180806398391724, 0.5651854872703552]


def test_a_draw_is_named_by_its_key():
    draw = keyed_uniform(1, 2, 3, Stream.NOISE, 50)
    assert np.array_equal(draw, keyed_uniform(1, 2, 3, Stream.NOISE, 50))
    assert np.array_equal(draw[:10], keyed_uniform(1, 2, 3, Stream.NOISE, 10))
    for other in ((2, 2, 3, Stream.NOISE), (1, 3, 3, Stream.NOISE), (1, 2, 4, Stream.NOISE), (1, 2, 3, Stream.ORDER)):
        assert not np.array_equal(draw, keyed_uniform(*other, 50))


def test_uniforms_are_those_of_a_fresh_generator():
    """Whatever was drawn before, also an odd number of them."""
    for sample, count in ((3, 5), (2**40, 1), (3, 7)):
        fresh = keyed_generator(2**64 - 1, 2, sample, Stream.ORDER).random(count, dtype=np.float32)
        assert np.array_equal(keyed_uniform(2**64 - 1, 2, sample, Stream.ORDER, count), fresh)


def test_known_values():
    """Values may never change: they are part of every run's identity."""
    assert keyed_uniform(42, 0, 7, Stream.NOISE, 3).tolist() == pytest.approx(KNOWN, abs=0)


def test_uniforms_are_uniform():
    draws = np.concatenate([keyed_uniform(0, 0, sample, Stream.NOISE, 1) for sample in range(20_000)])
    assert draws.dtype == np.float32
    assert draws.min() >= 0 and draws.max() < 1
    assert np.histogram(draws, bins=10, range=(0, 1))[0].min() > 1800


def test_the_global_generator_is_left_alone():
    np.random.seed(5)
    expected = np.random.random(3)
    np.random.seed(5)
    keyed_generator(1, 1, 1, Stream.ORDER).permutation(10)
    assert np.array_equal(np.random.random(3), expected)
