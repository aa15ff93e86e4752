from itertools import combinations
from math import comb, hypot

import numpy as np
import pytest
import torch

from lift_ds.evaluation.asking.answering import Answerer
from lift_ds.evaluation.harness.batches import Batches
from lift_ds.evaluation.harness.likelihood import Likelihood, Pair, estimate, greedy_batches, make_masks, num_masks
from lift_ds.ranks.shares import Alone
from lift_ds.sampling.reverse import denoise
from lift_ds.sampling.settings import SamplingSettings

PAIR = Pair((5, 6, 7, 8), (11, 12, 13))


def no_bar(rounds):
    return rounds


def scorer(model, batch_size=64, limit=128, seed=0):
    return Likelihood(Answerer(model, None), Batches(Alone()), batch_size, limit, seed)


@pytest.fixture(params=["llada", "dream"])
def model(request):
    return request.getfixturevalue(request.param)


def gold_logprob(model, pair, masked):
    """Log p of the masked places of a continuation, from the model's own logits."""
    ids = torch.tensor([pair.ids])
    places = [len(pair.context) + place for place in masked]
    noised = ids.clone()
    noised[0, places] = model.config.mask_token_id
    with torch.no_grad():
        logprob = model(input_ids=noised).logits.log_softmax(-1)
    return [float(logprob[0, place, ids[0, place]]) for place in places]


def brute_force(model, pair):
    """The bound by its formula: mean over l of the mean over masks of (L / l) times their sum."""
    length = len(pair.target)
    levels = []
    for size in range(1, length + 1):
        sums = [sum(gold_logprob(model, pair, masked)) for masked in combinations(range(length), size)]
        levels.append(length / size * sum(sums) / comb(length, size))
    return sum(levels) / length


def test_weights_of_all_masks_by_hand():
    """L = 3: three masks of one token weigh 1 / (1 * 3), three of two 1 / (2 * 3), the whole one 1 / 3."""
    masks = make_masks(3, 128, seed=0, key=0)
    assert masks.is_exact
    found = {tuple(places): weight for places, weight in zip(masks.masked.tolist(), masks.weights, strict=True)}
    assert len(found) == 7 == num_masks(3, 128)
    assert found[True, False, False] == found[False, False, True] == pytest.approx(1 / 3)
    assert found[True, False, True] == pytest.approx(1 / 6)
    assert found[True, True, True] == pytest.approx(1 / 3)
    assert masks.weights @ masks.masked.sum(1) == pytest.approx(3)  # a model with log p = -1 everywhere gives -3


def test_drawn_masks_cover_all_levels_evenly():
    """16 masks of 8 tokens: two of each level, each weighted 8 / (16 l)."""
    masks = make_masks(8, 16, seed=3, key=9)
    assert not masks.is_exact
    assert sorted(masks.masked.sum(1)) == sorted([*range(1, 9)] * 2)
    assert masks.weights == pytest.approx(8 / (16 * masks.masked.sum(1)))
    again, other = make_masks(8, 16, seed=3, key=9), make_masks(8, 16, seed=3, key=10)
    assert (again.masked == masks.masked).all()
    assert (other.masked != masks.masked).any()
    counts = sum(make_masks(8, 16, seed, 0).masked.sum(0) for seed in range(300))  # 300 * 72 tokens over 8 places
    assert counts == pytest.approx(np.full(8, 2700), rel=0.06)


@pytest.mark.parametrize(("terms", "error"), [([1, 2, 5, 5], 1.0), ([1, 2, 5, 8, 4], hypot(1, 3, 4 / 2**0.5))])
def test_the_standard_error_by_hand(terms, error):
    """Neighbours are compared: (2 - 1)^2 + (5 - 5)^2; with an odd one left, half of (4 - 8)^2 more."""
    masks = make_masks(20, len(terms), seed=0, key=0)
    found = estimate(masks, np.array(terms) / masks.weights)
    assert found.loglikelihood == pytest.approx(sum(terms))
    assert found.standard_error == pytest.approx(error)


def test_one_token_is_log_p_itself(model):
    (found,) = scorer(model).estimates([Pair((5, 6, 7), (11,))], no_bar)
    assert found.loglikelihood == pytest.approx(gold_logprob(model, Pair((5, 6, 7), (11,)), [0])[0], abs=1e-5)
    assert (found.standard_error, found.num_masks) == (0.0, 1)


def test_short_continuations_are_exact(model):
    (found,) = scorer(model).estimates([PAIR], no_bar)
    assert found.loglikelihood == pytest.approx(brute_force(model, PAIR), abs=1e-4)
    assert (found.standard_error, found.num_masks) == (0.0, 7)


def test_drawn_masks_agree_with_all_masks(model):
    """The mean over seeds is within four of its standard errors; the stated error is no smaller than the real one."""
    exact = scorer(model).estimates([PAIR], no_bar)[0].loglikelihood
    found = [scorer(model, limit=6, seed=seed).estimates([PAIR], no_bar)[0] for seed in range(200)]
    values = np.array([each.loglikelihood for each in found])
    stated = np.array([each.standard_error for each in found])
    real = values.std(ddof=1)
    assert real > 0
    assert abs(values.mean() - exact) < 4 * real / 200**0.5
    assert real < np.sqrt((stated**2).mean()) * 1.15
    assert np.sqrt((stated**2).mean()) < 3 * real


def test_a_longer_continuation_is_within_its_stated_error(llada):
    """All 255 masks of 8 tokens against 32 drawn ones, for 40 seeds."""
    pair = Pair((5, 6, 7, 8), (11, 12, 13, 14, 15, 16, 17, 18))
    exact = scorer(llada, limit=255).estimates([pair], no_bar)[0]
    assert (exact.standard_error, exact.num_masks) == (0.0, 255)
    found = [scorer(llada, limit=32, seed=seed).estimates([pair], no_bar)[0] for seed in range(40)]
    errors = [(each.loglikelihood - exact.loglikelihood) / each.standard_error for each in found]
    assert sum(abs(error) < 2 for error in errors) >= 36
    assert abs(np.mean(errors)) < 0.5


def test_results_do_not_depend_on_batches_or_order(model):
    generator = torch.Generator().manual_seed(1)
    pairs = []
    for context, length in ((4, 1), (9, 12), (2, 3), (0, 5), (9, 12), (6, 20)):
        ids = torch.randint(3, 90, (context + length,), generator=generator).tolist()
        pairs.append(Pair(tuple(ids[:context]), tuple(ids[context:])))
    alone = scorer(model, batch_size=1, limit=10).estimates(pairs, no_bar)
    together = scorer(model, batch_size=7, limit=10).estimates(pairs[::-1], no_bar)[::-1]
    for one, other in zip(alone, together, strict=True):
        assert one.loglikelihood == pytest.approx(other.loglikelihood, abs=1e-4)
        assert one.standard_error == pytest.approx(other.standard_error, abs=1e-4)
        assert one.num_masks == other.num_masks


def test_answers_to_one_question_get_the_same_masks():
    first, second = Pair((5, 6), tuple(range(20, 30))), Pair((5, 6), tuple(range(30, 40)))
    assert (first.masks(16, 0).masked == second.masks(16, 0).masked).all()
    other = Pair((5, 7), first.target)
    assert (first.masks(16, 0).masked != other.masks(16, 0).masked).any()


def test_greedy_continuations_are_found(model):
    """What the sampler decodes, one token a step in one block, is greedy; with its last or first token changed not."""
    pairs, expected = [], []
    for context, length in (((5, 6, 7), 6), ((9, 8, 7, 6, 5), 3), ((1, 2), 1), ((4, 4, 4, 4), 9)):
        settings = SamplingSettings(gen_length=length, block_length=length, steps=length)
        made = denoise(model, torch.tensor([context]), settings).ids[0].tolist()
        target = tuple(made[len(context) :])
        changed = [(target[0] + 1) % 90, *target[1:]], [*target[:-1], (target[-1] + 1) % 90]
        pairs += [Pair(context, target), *(Pair(context, tuple(each)) for each in changed)]
        expected += [True, False, False]
    for batch_size in (1, 5, 64):
        assert scorer(model, batch_size).are_greedy(pairs, no_bar) == expected


def test_greedy_batches_are_bounded():
    """At most three rows and 1,024 masked tokens; one that is longer is alone."""
    lengths = [600, 500, 2000, 3, 2, 1, 1]
    pairs = [Pair((), tuple(range(length))) for length in lengths]
    assert greedy_batches(pairs, 3) == [[2], [0], [1, 3, 4], [5, 6]]
