"""Answers of block diffusion models: the public functions' ids and steps, with a cache that changes nothing."""

import pytest
import torch

from lift_ds import generate_blocks
from lift_ds.sampling.block_decoding import FinishedBlocks
from tests.models.block_vectors import cases, load


@pytest.fixture
def states(monkeypatch):
    """The block as each forward saw it."""
    seen, encode = [], FinishedBlocks.encode

    def watch(cache, model, canvas):
        seen.append(canvas[:, -cache.block_size :].clone())
        return encode(cache, model, canvas)

    monkeypatch.setattr(FinishedBlocks, "encode", watch)
    return seen


def arguments(case):
    """The settings of a public call, SDAR's or LLaDA2's."""
    if "eos_id" in case:
        return {
            "steps_per_block": case["steps"],
            "threshold": case["threshold"],
            "stop_ids": [case["eos_id"]],
            "cut_at_end": True,
        }
    threshold = case["threshold"] if case["strategy"] == "dynamic" else None
    return {"steps_per_block": case["denoising_steps"], "threshold": threshold, "stop_ids": case["stop_ids"]}


@pytest.mark.parametrize(("name", "count"), [("sdar_tiny", 6), ("llada2_tiny", 7)])
def test_answers_and_steps_equal_the_public_code(name, count, states):
    model, found = load(name), cases(name, "decode", "decode")
    assert len(found) == count
    for case, tensors in found:
        states.clear()
        ids = generate_blocks(model, tensors["prompt"], case["gen_length"], **arguments(case))
        assert torch.equal(ids, tensors["output"])
        assert torch.equal(torch.cat(states), tensors["block_states"])
        flat = generate_blocks(model, tensors["prompt"][0], case["gen_length"], **arguments(case))
        assert torch.equal(flat, ids[0])


def test_the_cache_holds_what_a_forward_over_everything_gives():
    """Two blocks of 8 are finished by one forward and a third by a later one; what is not finished leaves no trace."""
    model, ids = load("llada2_tiny"), torch.arange(32)[None] + 3
    cache, other = FinishedBlocks(8), ids.flip(1)[:, :8]
    with torch.no_grad():
        expected = model(input_ids=ids).logits
        for end in (24, 24, 32, 32):
            cache.encode(model, torch.cat([ids[:, : end - 8], other], dim=1))
            found = model.head(cache.encode(model, ids[:, :end]))
            torch.testing.assert_close(found, expected[:, end - 8 : end], atol=1e-5, rtol=1e-5)
            assert [key.shape for key, _ in cache.layers] == [(1, 2, end - 8, 16)] * 2


def test_a_stop_token_in_the_prompt_stops_nothing():
    model, prompt = load("sdar_tiny"), torch.tensor([5, 6, 7, 8, 9, 10])
    plain = generate_blocks(model, prompt, 10, 2)
    assert len(plain) == 16 and 250 not in plain
    generated = set(plain[6:].tolist())
    stop = next(token for token in prompt.tolist() if token not in generated)
    assert torch.equal(generate_blocks(model, prompt, 10, 2, stop_ids=[stop]), plain)


def test_the_mask_token_is_never_revealed():
    """With its row of the head turned up it is the likeliest everywhere; the public loops would stall there."""
    model = load("sdar_tiny")
    with torch.no_grad():
        model.lm_head.weight[250] = 0
        hidden = model.encode(torch.full((1, 4), 250))[0]
        model.lm_head.weight[250] = 1e3 * hidden.mean(0)
        assert model.head(hidden).argmax(-1).eq(250).any()
    assert 250 not in generate_blocks(model, torch.tensor([5, 6, 7, 8]), 12, 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt_ids": torch.zeros(2, 4, dtype=torch.long)}, r"prompt_ids has the shape \(2, 4\); one prompt"),
        ({"prompt_ids": torch.zeros(0, dtype=torch.long)}, r"prompt_ids has the shape \(0,\); one prompt"),
        ({"gen_length": 0}, "gen_length=0: at least 1"),
        ({"gen_length": 508}, "filled up to blocks of 4, are longer than the 512"),
        ({"steps_per_block": 5}, "steps_per_block=5: 1 to 4"),
        ({"steps_per_block": 0}, "steps_per_block=0: 1 to 4"),
        ({"threshold": 0.0}, "threshold=0.0: a probability above 0"),
        ({"editing_threshold": 0.5}, "editing_threshold=0.5: LLaDA2.1's editing of revealed tokens is not implemented"),
    ],
)
def test_what_is_refused(changes, message):
    values = {"prompt_ids": torch.tensor([5, 6, 7, 8, 9]), "gen_length": 8, "steps_per_block": 2} | changes
    with pytest.raises(ValueError, match=message):
        generate_blocks(load("sdar_tiny"), **values)


def test_models_without_blocks_have_another_sampler(llada):
    with pytest.raises(ValueError, match="LLaDAModelLM has no blocks of its own; use lift_ds.generate"):
        generate_blocks(llada, torch.tensor([5]), 8, 2)
