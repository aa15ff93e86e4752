import math

import pytest
import torch

from lift_ds.sampling.choose import TIME_END, choose, keep_top_p, predict, quota
from lift_ds.sampling.settings import checked_settings

P = torch.tensor([[[0.5, 0.3, 0.2], [0.9, 0.06, 0.04], [0.4, 0.4, 0.2]]])  # three positions, three tokens
ALL = torch.ones(1, 3, dtype=torch.bool)


def rule(num_tokens=3, **options):
    """Settings of one block, of a token a step unless confidence decides."""
    steps = None if {"threshold", "factor"} & options.keys() else num_tokens
    return checked_settings(**{"gen_length": num_tokens, "block_length": num_tokens, "steps": steps} | options)


def with_specials(logits):
    """With a mask token (3) as likely as all others together, and an end token (4) that is impossible."""
    specials = torch.tensor([0.0, -torch.inf]).expand(*logits.shape[:-1], 2)
    return torch.cat([logits, specials], dim=-1)


def confidence(remasking, **options):
    return predict(with_specials(P.log()), rule(remasking=remasking, **options), 3, 4)[1][0].tolist()


def test_confidence():
    """The mask token has half of the probability: the others' are half of P, and each margin is to the mask's 0.5."""
    assert confidence("low_confidence") == pytest.approx([0.25, 0.45, 0.2])
    assert confidence("maskgit_plus") == pytest.approx([0.25, 0.45, 0.2])
    assert confidence("margin") == pytest.approx([0.25 - 0.5, 0.45 - 0.5, 0.2 - 0.5])
    assert confidence("entropy")[0] == pytest.approx(sum(p * math.log(p) for p in (0.25, 0.15, 0.1, 0.5)))


def test_dreams_confidence_is_of_what_is_drawn_from():
    """At temperature 0.5 probabilities are squared: .25 .09 .04 and the mask token's 1; top-p .7 keeps .5 and .25."""
    assert confidence("margin", temperature=0.5)[0] == pytest.approx((0.25 - 1) / 1.38)
    assert confidence("margin", top_p=0.7)[0] == pytest.approx((0.25 - 0.5) / 0.75)
    assert confidence("low_confidence", top_p=0.7)[0] == pytest.approx(0.25)


@pytest.mark.parametrize("remasking", ["low_confidence", "maskgit_plus", "margin", "entropy"])
def test_the_mask_tokens_probability_counts(remasking):
    """Position 0: .5 .3 and .2 of the mask token; position 1: .61 .39 and none.

    Position 1 is surer: p .61 to .50, margin .22 to .20, entropy .67 to 1.03. Without the mask token position 0 is .625
    .375, and would be surer: p .625 to .61, margin .25 to .22, entropy .66 to .67.
    """
    p = torch.tensor([[[0.5, 0.3, 0.2], [0.61, 0.39, 0.0]]])
    predicted, sure = predict(p.log(), rule(remasking=remasking), mask_id=2, end_id=1)
    assert predicted.tolist() == [[0, 0]]
    expected = {"margin": [0.2, 0.22], "entropy": [-1.0297, -0.6687]}.get(remasking, [0.5, 0.61])
    assert sure[0].tolist() == pytest.approx(expected, abs=1e-4)
    assert choose(sure, torch.ones(1, 2, dtype=torch.bool), rule(2), step=0).tolist() == [[False, True]]
    _, without = predict(
        p.log().index_fill(-1, torch.tensor([2]), -torch.inf), rule(remasking=remasking), mask_id=2, end_id=1
    )
    assert without[0, 0] > without[0, 1]


def test_the_likeliest_token_is_drawn_where_top_p_keeps_the_mask_token_alone():
    """Of .5 (mask) .25 .15 .1, top-p .4 keeps the mask token alone, and .6 the first of the others."""
    generator = torch.Generator().manual_seed(0)
    logits = with_specials(P[:, :1].log().expand(1, 1000, 3))
    for top_p in (0.4, 0.6):
        predicted, _ = predict(logits, rule(temperature=1.0, top_p=top_p), 3, 4, generator)
        assert (predicted == 0).all()
    drawn, _ = predict(logits, rule(temperature=1.0, top_p=0.8), 3, 4, generator)
    assert set(drawn[0].tolist()) == {0, 1}


def test_an_end_token_that_is_never_predicted_has_no_probability():
    """As LLaDA's `logits_eos_inf`: of .4 .2 .3 (mask) .1 (end), .4 / .9 is left."""
    logits = torch.tensor([[[0.4, 0.2, 0.3, 0.1]]]).log()
    assert float(predict(logits, rule(eos="never"), 2, 3)[1]) == pytest.approx(0.4 / 0.9)
    assert float(predict(logits, rule(), 2, 3)[1]) == pytest.approx(0.4)


def test_top_p_keeps_the_fewest_tokens():
    """Of .5 .3 .2: .5 suffices for .5, .5 + .3 for .6; of .4 .4 .2, two for .6."""
    kept = {p: torch.isfinite(keep_top_p(P.log(), p, 0.0)).sum(-1)[0].tolist() for p in (0.49, 0.6, 1e-9)}
    assert kept == {0.49: [1, 1, 2], 0.6: [2, 1, 2], 1e-9: [1, 1, 1]}


def test_gumbel_noise_draws_from_the_tempered_distribution():
    logits = P[:, :1].log().expand(1, 20_000, 3)
    drawn, _ = predict(with_specials(logits), rule(temperature=0.5), 3, 4, torch.Generator().manual_seed(0))
    shares = torch.bincount(drawn[0], minlength=3) / 20_000
    assert shares.tolist() == pytest.approx([0.25 / 0.38, 0.09 / 0.38, 0.04 / 0.38], abs=0.015)


def chosen(sure, **options):
    values = torch.tensor([sure], dtype=torch.float64)
    return choose(values, torch.ones_like(values, dtype=torch.bool), rule(**options), step=0)[0].tolist()


def test_threshold_reveals_all_sure_ones_and_at_least_one():
    assert chosen([0.5, 0.95, 0.9], threshold=0.9) == [False, True, True]
    assert chosen([0.5, 0.6, 0.7], threshold=0.9) == [False, False, True]


def test_factor():
    """Sorted .95 .9 .5: 2 x .05 = .1, 3 x .1 = .3 and 4 x .5 = 2, against 1; against .05 the first alone, as always."""
    assert chosen([0.5, 0.95, 0.9], factor=1.0) == [False, True, True]
    assert chosen([0.5, 0.95, 0.9], factor=0.05) == [False, True, False]


def test_only_masked_positions_are_revealed():
    masked = torch.tensor([[True, False, True]])
    fixed = choose(torch.tensor([[0.1, 0.9, 0.2]]), masked, rule(2), step=0)
    assert fixed[0].tolist() == [False, False, True]
    nothing = choose(torch.tensor([[0.1, 0.9, 0.2]]), masked & False, rule(threshold=0.0), step=0)
    assert not nothing.any()


def walk(num_masked, steps, remasking):
    taken = []
    for step in range(steps):
        taken.append(int(quota(torch.tensor([num_masked]), step, steps, remasking)))
        num_masked -= taken[-1]
    return taken


def test_quotas():
    """8 in 3 steps: the remainder first. Dream, 10 in 4: floor(10 / 4), then floor(8 / 3) with t a little above."""
    assert walk(8, 3, "low_confidence") == [3, 3, 2]
    assert walk(5, 3, "random") == [2, 2, 1]
    times = [1 - (1 - TIME_END) * step / 4 for step in range(5)]
    expected, left = [], 10
    for step in range(4):
        expected.append(left if step == 3 else int(left * (1 - times[step + 1] / times[step])))
        left -= expected[-1]
    assert walk(10, 4, "entropy") == expected == [2, 2, 2, 4]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"remasking": "best"}, "remasking='best': allowed are low_confidence"),
        ({"eos": "no"}, "eos='no': allowed are allow, last, never"),
        ({"temperature": -1.0}, "temperature=-1.0"),
        ({"temperature": math.nan}, "temperature=nan"),
        ({"top_p": 0.0}, "top_p=0.0"),
        ({"threshold": math.nan}, "threshold=nan: a probability, 0 to 1"),
        ({"threshold": 90.0}, "threshold=90.0: a probability, 0 to 1"),
        ({"factor": -1.0}, "factor=-1.0: above 0"),
        ({"threshold": 0.9, "factor": 1.0}, "only one of them decides"),
        ({"threshold": 0.9, "remasking": "random"}, "gives no probabilities"),
    ],
)
def test_bad_rules(options, message):
    with pytest.raises(ValueError, match=message):
        rule(**options)
