"""Two kills of the campaign: one while the ranks train, one while they save."""

import pytest

from tests.faults.campaign import campaign


@pytest.mark.slow
@pytest.mark.distributed
def test_two_kills():
    figures = campaign(2, seed=3, phases=("training", "saving"))
    assert (figures["kills"], figures["lost"], figures["not_bit_equal"]) == (2, 0, 0)
    assert 0 < figures["worst_on_one_rank"] < 1e-6
    assert figures["in_training"] == figures["in_saving"] == 1
    assert figures["worst_seconds_to_stop"] < 60
