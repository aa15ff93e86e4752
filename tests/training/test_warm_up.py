"""The warm-up's micro-batch, by arithmetic; two-rank runs are in `tests/distributed/test_warm_up.py`."""

import pytest

from lift_ds.objectives import make_objective, objective_settings
from lift_ds.training.warm_up import document_lengths, worst_case


@pytest.mark.parametrize(
    ("length", "max_length", "lengths"),
    [
        (812, 4096, [812, 812]),  # rows that are shorter than what is allowed
        (100, 100, [100, 100]),
        (250, 100, [100, 100, 50, 100, 100, 50]),  # packs of 250 tokens, of documents of up to 100
    ],
)
def test_packs_are_of_documents_that_may_come(length, max_length, lengths):
    assert document_lengths(2, length, max_length) == lengths


@pytest.mark.parametrize("method", ["vanilla", "lift3", "gift", "random"])
def test_nothing_is_left_out_of_the_worst_case(method):
    """All tokens are masked, all documents scored where any is, and all tokens learned."""
    objective = make_objective(objective_settings(method=method))
    batch = worst_case([7, 7], objective)
    candidates = objective.noise(batch)
    assert candidates.masked.equal(batch.attention_mask)
    assert candidates.scored.tolist() == ([] if objective.scoring_pass == "none" else [0, 1])
    scores = -batch.mask_uniform - 1.0  # as log p(gold); GIFT's are clamped
    assert objective.choose(batch, candidates, scores.abs() if method == "gift" else scores).targets.equal(
        batch.attention_mask
    )
    assert batch.is_padded and not worst_case([7], objective).is_padded
