import copy
import json
import math

import pytest
import torch
from safetensors.torch import load_file

from lift_ds import generate
from lift_ds.sampling.choose import uniforms
from lift_ds.sampling.reverse import RowSeeds, denoise
from lift_ds.sampling.settings import SamplingSettings, checked_settings


def test_ids_equal_the_public_sampler(llada, llada_dir):
    arrays = load_file(llada_dir / "decode.safetensors")
    cases = json.loads((llada_dir / "decode.json").read_text())
    assert len(cases) == 12
    for case in cases:
        name = case.pop("case")
        ids = generate(llada, arrays[f"{name}.prompt_ids"], **case)
        assert torch.equal(ids, arrays[f"{name}.output_ids"]), name


def test_left_padding_does_not_change_an_answer(llada):
    short, long = torch.tensor([[5, 6, 7]]), torch.tensor([[9, 8, 7, 6, 5, 4]])
    lengths = {"steps": 8, "gen_length": 8, "block_length": 8}
    alone = generate(llada, short, **lengths)[:, 3:]
    padded = torch.cat([torch.full((1, 3), 99), short], dim=1)
    attention = torch.tensor([[False] * 3 + [True] * 3, [True] * 6])
    together = generate(llada, torch.cat([padded, long]), attention_mask=attention, **lengths)[:, 6:]
    assert torch.equal(together[:1], alone)
    assert torch.equal(together[1:], generate(llada, long, **lengths)[:, 6:])


def test_temperature_follows_the_generator(llada):
    prompt = torch.tensor([[5, 6, 7]])

    def draw(seed):
        generator = torch.Generator().manual_seed(seed)
        return generate(llada, prompt, 8, 8, 8, temperature=1.0, remasking="random", generator=generator)

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))


@pytest.mark.parametrize(
    "options", [{"remasking": "entropy"}, {"threshold": 0.02}, {"factor": 1.0}, {"stop_early": True}]
)
def test_an_answer_does_not_depend_on_its_batch(llada, options):
    prompts = torch.tensor([[5, 6, 7], [9, 8, 4], [1, 2, 3]])
    steps = None if {"threshold", "factor"} & options.keys() else 8
    together = generate(llada, prompts, steps, 8, 4, **options)
    for row, prompt in enumerate(prompts):
        assert torch.equal(generate(llada, prompt[None], steps, 8, 4, **options), together[row : row + 1])


def test_a_threshold_of_one_is_one_token_a_step(llada):
    """No prediction is certain, so that each step reveals the surest one: as many steps as tokens do the same."""
    prompt = torch.tensor([[5, 6, 7]])
    found = denoise(llada, prompt, SamplingSettings(gen_length=8, block_length=4, threshold=1.0))
    assert found.num_forwards == 8
    assert torch.equal(found.ids, generate(llada, prompt, 8, 8, 4))
    at_once = denoise(llada, prompt, SamplingSettings(gen_length=8, block_length=4, threshold=0.0))
    assert at_once.num_forwards == 2  # one for each block


def test_the_loop_goes_on_while_another_rank_needs_it(llada):
    calls = []

    def any_rank(mine):
        calls.append(mine)
        return len(calls) < 6  # the other rank's block takes five steps

    settings = SamplingSettings(gen_length=4, block_length=4, threshold=0.0)
    found = denoise(llada, torch.tensor([[5, 6]]), settings, any_rank=any_rank)
    assert calls == [True] + [False] * 5
    assert found.num_forwards == 5
    assert found.row_forwards.tolist() == [1]
    assert torch.equal(found.ids, generate(llada, torch.tensor([[5, 6]]), None, 4, 4, threshold=0.0))


@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
@pytest.mark.parametrize("is_padded", [False, True])
def test_a_row_takes_what_it_would_take_alone(llada, monkeypatch, cache, is_padded):
    """In a batch the loop waits for the slowest row; rows that are done sit it out, whatever is kept of them."""
    prompts = torch.tensor([[5, 6, 7], [9, 3, 12], [4, 4, 8], [99, 4, 8]])
    attention = torch.tensor([[True] * 3] * 3 + [[not is_padded, True, True]])
    settings = SamplingSettings(gen_length=8, block_length=8, threshold=0.06, cache=cache)
    alone = [denoise(llada, prompts[[row]], settings, attention[[row]]) for row in range(4)]
    seen, encode = [], llada.encode
    monkeypatch.setattr(llada, "encode", lambda ids, *rest: (seen.append(len(ids)), encode(ids, *rest))[1])
    together = denoise(llada, prompts, settings, attention)
    assert torch.equal(together.ids, torch.cat([each.ids for each in alone]))
    counts = [each.num_forwards for each in alone]
    assert together.row_forwards.tolist() == counts
    assert together.num_forwards == max(counts) > min(counts)
    assert seen == [sum(count > step for count in counts) for step in range(max(counts))]


def test_what_a_row_draws_does_not_depend_on_rows_that_are_done(llada):
    prompts = torch.tensor([[5, 6, 7], [9, 3, 12], [4, 4, 8]])
    settings = SamplingSettings(gen_length=12, block_length=4, temperature=0.4, threshold=0.06)
    together = denoise(llada, prompts, settings, generator=RowSeeds(("a", "b", "c")))
    alone = [denoise(llada, prompts[[row]], settings, generator=RowSeeds(("abc"[row],))) for row in range(3)]
    assert torch.equal(together.ids, torch.cat([each.ids for each in alone]))
    assert len(set(together.row_forwards.tolist())) > 1


def test_end_tokens_can_be_kept_out_or_to_the_last(llada):
    """The head is changed so that the end token is the likeliest everywhere."""
    end = llada.config.eos_token_id
    always_end = copy.deepcopy(llada)
    head = always_end.head
    always_end.head = lambda hidden: head(hidden).index_fill(-1, torch.tensor([end]), 50.0)
    prompt = torch.tensor([[5, 6, 7]])
    assert (generate(always_end, prompt, 8, 8, 4)[:, 3:] == end).all()
    assert (generate(always_end, prompt, 8, 8, 4, eos="never")[:, 3:] != end).all()
    settings = SamplingSettings(gen_length=8, block_length=4, steps=8, stop_early=True)
    stopped = denoise(always_end, prompt, settings)
    assert stopped.num_forwards == 4  # the second block is filled without a forward
    assert (stopped.ids[:, 3:] == end).all()


def test_lengths_beyond_the_model_are_refused(llada):
    longest = llada.config.max_sequence_length
    with pytest.raises(ValueError, match=f"a prompt of 3 tokens and gen_length={longest} are longer"):
        generate(llada, torch.tensor([[5, 6, 7]]), longest, longest, longest)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gen_length": -16}, "gen_length=-16: at least 1"),
        ({"block_length": 0}, "block_length=0: at least 1"),
        ({"steps": 0}, "steps=0: at least 1"),
        ({"steps": -4}, "steps=-4: at least 1"),
        ({"cfg_scale": -1.0}, "cfg_scale=-1.0: 0"),
        ({"cfg_scale": math.nan}, "cfg_scale=nan: 0"),
    ],
)
def test_values_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        checked_settings(**({"gen_length": 16, "block_length": 8, "steps": 4} | options))


@pytest.mark.parametrize(("steps", "gen_length", "block_length"), [(8, 10, 4), (7, 8, 4)])
def test_lengths_that_do_not_divide_are_refused(llada, steps, gen_length, block_length):
    with pytest.raises(ValueError, match="must be a multiple"):
        generate(llada, torch.tensor([[1]]), steps, gen_length, block_length)


def test_row_seeds_name_draws():
    """A row's draws are those of its seed and block alone, whatever stands beside it."""
    alone, beside = RowSeeds(("b",)), RowSeeds(("a", "b"))
    like = torch.zeros(1, 3, 5)
    device = torch.device("cpu")
    first = uniforms(like, alone.generators(0, device))
    assert torch.equal(first[0], uniforms(like.expand(2, 3, 5), beside.generators(0, device))[1])
    assert not torch.equal(first, uniforms(like, alone.generators(1, device)))
    assert not torch.equal(first, uniforms(like, RowSeeds(("a",)).generators(0, device)))
