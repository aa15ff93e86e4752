"""Models with blocks of their own behind the door of all samplers: their settings, batches, caches and ranks."""

import pytest
import torch

import lift_ds
from lift_ds import generate_blocks
from lift_ds.sampling import block_decoding
from lift_ds.sampling.block_decoding import FinishedBlocks
from lift_ds.sampling.block_rule import block_rule, longest_answered
from lift_ds.sampling.reverse import check_length, denoise, pad
from lift_ds.sampling.settings import checked_settings
from tests.conftest import launch_job
from tests.models.block_vectors import cases, load

PROMPTS = [[5, 6, 7, 8, 9, 10], [11, 12, 13], [14, 15, 16, 17, 18, 19, 20, 21, 22]]


def settings_of(**changes):
    return checked_settings(**{"gen_length": 16, "block_length": 8, "steps": 4} | changes)


@pytest.mark.parametrize("changes", [{}, {"steps": None, "threshold": 0.3}])
def test_a_batch_gets_each_prompts_own_answer(changes):
    """Prompts of different lengths, padded on the left; what `generate_blocks` gives, as long as was asked."""
    model, settings = load("llada2_tiny"), settings_of(**changes)
    ids, attention_mask = pad(PROMPTS, 247)
    seen = []
    made = denoise(model, ids, settings, attention_mask, watch=lambda now: seen.append(now.clone()))
    steps = 2 if settings.steps else 8
    for row, prompt in enumerate(PROMPTS):
        alone = generate_blocks(model, torch.tensor(prompt), 16, steps, settings.threshold)
        assert made.ids[row, ids.shape[1] :].tolist() == alone[len(prompt) : len(prompt) + 16].tolist()
    assert made.ids[:, : ids.shape[1]].equal(ids)
    assert torch.equal(seen[-1], made.ids) and (seen[0] == 250).sum() > 30
    assert made.num_forwards == made.row_forwards.sum() == len(seen)
    if settings.steps:  # blocks of 2 steps, but 1 where 2 tokens are left
        assert made.row_forwards.tolist() == [1 + 2 * 2, 3 * 2, 3 * 2]


def test_the_public_function_is_the_same_door():
    model, prompt = load("llada2_tiny"), torch.tensor([PROMPTS[0]])
    found = lift_ds.generate(model, prompt, steps=4, gen_length=16, block_length=8)
    assert torch.equal(found[0], generate_blocks(model, prompt[0], 16, 2)[:22])


def test_an_answer_that_ends_takes_no_more_forwards():
    """With the end token where the first block has its last token; and with another token that ends a turn."""
    model, prompt = load("llada2_tiny"), torch.tensor([PROMPTS[0]])
    plain = denoise(model, prompt, settings_of(gen_length=32, steps=8))
    end = int(plain.ids[0, 7])
    stopped = denoise(model, prompt, settings_of(gen_length=32, steps=8, stop_early=True), stop_ids=[end])
    assert stopped.row_forwards.tolist() == [1] and plain.row_forwards.tolist() == [1 + 4 * 2]
    assert stopped.ids[0, :8].tolist() == plain.ids[0, :8].tolist()
    assert stopped.ids[0, 8:].tolist() == [model.config.eos_token_id] * 30
    unstopped = denoise(model, prompt, settings_of(gen_length=32, steps=8), stop_ids=[end])
    assert torch.equal(unstopped.ids, plain.ids)


class Recomputed(FinishedBlocks):
    """Keeps nothing: every forward is the plain one over all that there is."""

    def encode(self, model, canvas):
        return model.encode(canvas)[:, -self.block_size :]


@pytest.mark.parametrize("name", ["sdar_tiny", "llada2_tiny"])
def test_without_the_cache_answers_are_the_same(name, monkeypatch):
    """The vectors' prompts: every margin between the best tokens is above what another order of sums changes."""
    model, size = load(name), {"sdar_tiny": 4, "llada2_tiny": 8}[name]
    prompts = [tensors["prompt"].view(-1).tolist() for _, tensors in cases(name, "decode", "decode")]
    ids, attention_mask = pad(prompts, 247)
    settings = settings_of(gen_length=4 * size, block_length=size, steps=4 * size)
    kept = denoise(model, ids, settings, attention_mask)
    monkeypatch.setattr(block_decoding, "FinishedBlocks", Recomputed)
    assert torch.equal(denoise(model, ids, settings, attention_mask).ids, kept.ids)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block_length": 4}, "block_length=4: set it to 8, the model's own"),
        ({"temperature": 0.5}, "temperature=0.5: answers are greedy; set it to 0.0"),
        ({"top_p": 0.5}, "top_p=0.5: answers are greedy; set it to 1.0"),
        ({"steps": None, "factor": 1.0}, "factor=1.0: the steps or the threshold decide .*; remove it"),
        ({"remasking": "margin"}, "remasking=margin: the surest predictions .* set it to low_confidence"),
        ({"cfg_scale": 1.0}, "cfg_scale=1.0: there is no guidance; set it to 0.0"),
        ({"cache": "dual"}, "cache=dual: keys and values of finished blocks are kept anyway"),
        ({"eos": "last"}, "eos=last: the end token is predicted like every other; set it to allow"),
        ({"steps": 32}, "steps=32: 16 for each block of llada2_moe, which has 8 tokens; at most 16 are"),
    ],
)
def test_settings_that_mean_nothing_are_refused_with_the_reason(changes, message):
    model = load("llada2_tiny")
    for act in (
        lambda: block_rule(settings_of(**changes), model.config),
        lambda: denoise(model, torch.tensor([[5, 6]]), settings_of(**changes)),
    ):
        with pytest.raises(ValueError, match=message):
            act()


def test_all_refused_settings_are_named_at_once():
    with pytest.raises(ValueError, match=r"eval.block_length=4: .*; eval.temperature=0.5: .*; eval.cache=prefix: "):
        block_rule(settings_of(block_length=4, temperature=0.5, cache="prefix"), load("llada2_tiny").config, "eval.")


def test_whole_blocks_must_fit():
    """515 tokens are 64 blocks of 8 and three tokens, which no answer reaches."""
    config = load("llada2_tiny").config
    config.max_position_embeddings = 515
    assert longest_answered(config) == 512
    check_length(settings_of(), 496, config)
    with pytest.raises(ValueError, match="a prompt of 497 tokens and gen_length=16 are longer than the 512"):
        check_length(settings_of(), 497, config)


@pytest.mark.distributed
@pytest.mark.parametrize("name", ["sdar_tiny", "llada2_tiny"])
def test_ranks_with_other_prompts_run_the_same_forwards(name, tmp_path):
    """Under ZeRO-3, all matrices gathered in all forwards: one rank has three prompts, the other one; some stop."""
    result = launch_job("block_answers", tmp_path / "out.json", name)
    assert result["cut"] == result["whole"] and len(result["cut"][0]) == 3 and len(result["cut"][1]) == 1
    assert result["num_forwards"][0] == result["num_forwards"][1] > 0
