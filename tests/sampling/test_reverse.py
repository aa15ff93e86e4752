import json

import pytest
import torch
from safetensors.torch import load_file

from lift_ds import generate
from lift_ds.sampling.reverse import tokens_per_step


def test_ids_equal_the_public_sampler(llada, llada_dir):
    arrays = load_file(llada_dir / "decode.safetensors")
    cases = json.loads((llada_dir / "decode.json").read_text())
    assert len(cases) == 12
    for case in cases:
        name = case.pop("case")
        ids = generate(llada, arrays[f"{name}.prompt_ids"], **case)
        assert torch.equal(ids, arrays[f"{name}.output_ids"]), name


def test_quotas_share_the_remainder_among_the_first_steps():
    assert tokens_per_step(torch.tensor([8, 5]), 3).tolist() == [[3, 3, 2], [2, 2, 1]]


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


@pytest.mark.parametrize(("steps", "gen_length", "block_length"), [(8, 10, 4), (7, 8, 4)])
def test_lengths_that_do_not_divide_are_refused(llada, steps, gen_length, block_length):
    with pytest.raises(ValueError, match="must be a multiple"):
        generate(llada, torch.tensor([[1]]), steps, gen_length, block_length)
