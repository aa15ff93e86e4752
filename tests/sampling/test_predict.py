import pytest
import torch

from lift_ds import generate
from lift_ds.sampling.predict import Predictor
from lift_ds.sampling.settings import SamplingSettings

BLOCK = slice(6, 10)
BOTH = torch.arange(2)


@pytest.fixture(params=["llada", "dream"])
def either(request):
    """A model whose outputs are in place, and one whose outputs are shifted."""
    return request.getfixturevalue(request.param)


def settings(gen_length, cache):
    return SamplingSettings(gen_length=gen_length, block_length=gen_length, steps=gen_length, cache=cache)


def make(model, cache, attention=None):
    prompts = torch.tensor([[5, 6, 7], [9, 8, 4]])
    ids = torch.cat([prompts, torch.full((2, 10), model.config.mask_token_id)], dim=1)
    return Predictor(model, prompts, attention, settings(10, cache)), ids


@pytest.mark.parametrize("cache", ["prefix", "dual"])
@pytest.mark.parametrize("is_padded", [False, True])
def test_nothing_changed_gives_the_same_logits(either, cache, is_padded):
    attention = torch.tensor([[False, True, True], [True] * 3]) if is_padded else None
    predictor, ids = make(either, cache, attention)
    with torch.no_grad():
        first = predictor(ids, BLOCK, BOTH, is_first=True)
        torch.testing.assert_close(first, make(either, "none", attention)[0](ids, BLOCK, BOTH, is_first=True))
        torch.testing.assert_close(predictor(ids, BLOCK, BOTH, is_first=False), first, rtol=1e-4, atol=1e-5)


def test_the_rows_that_are_computed(llada, monkeypatch):
    """The whole input first; then the block alone (4 rows), or to the end (7 of 13)."""
    seen = []
    encode = llada.encode
    monkeypatch.setattr(llada, "encode", lambda ids, *rest: (seen.append(ids.shape[1]), encode(ids, *rest))[1])
    for cache, expected in (("none", [13, 13]), ("prefix", [13, 7]), ("dual", [13, 4])):
        predictor, ids = make(llada, cache)
        with torch.no_grad():
            predictor(ids, BLOCK, BOTH, is_first=True)
            predictor(ids, BLOCK, BOTH, is_first=False)
        assert seen == expected
        seen.clear()


def test_a_change_in_the_block_is_seen_by_the_block(llada):
    """With everything before the block unchanged, a prefix cache of nothing is exact: the block starts the text."""
    mask_id = llada.config.mask_token_id
    empty = torch.empty((1, 0), dtype=torch.int64)
    predictor = Predictor(llada, empty, None, settings(8, "prefix"))
    exact = Predictor(llada, empty, None, settings(8, "none"))
    ids, block = torch.full((1, 8), mask_id), slice(0, 4)
    with torch.no_grad():
        predictor(ids, block, BOTH[:1], is_first=True)
        for place, token in ((2, 7), (0, 9)):
            ids[0, place] = token
            expected = exact(ids, block, BOTH[:1], is_first=False)
            torch.testing.assert_close(predictor(ids, block, BOTH[:1], is_first=False), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(
        generate(llada, empty, 8, 8, 8, cache="prefix"), generate(llada, empty, 8, 8, 8)
    )  # one block, nothing before it


@pytest.mark.parametrize("cache", ["prefix", "dual"])
def test_an_answer_with_a_cache_does_not_depend_on_its_batch(llada, cache):
    prompts = torch.tensor([[5, 6, 7], [9, 8, 4]])
    together = generate(llada, prompts, 8, 8, 4, cache=cache)
    alone = torch.cat([generate(llada, prompt[None], 8, 8, 4, cache=cache) for prompt in prompts])
    assert torch.equal(together, alone)


def test_bad_caches(llada):
    with pytest.raises(ValueError, match="cache='all': allowed are none, prefix, dual"):
        generate(llada, torch.tensor([[1]]), 8, 8, 8, cache="all")
    with pytest.raises(ValueError, match="guidance keeps none"):
        generate(llada, torch.tensor([[1]]), 8, 8, 8, cache="dual", cfg_scale=1.0)
