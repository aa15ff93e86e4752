"""A Qwen3 made into a model that denoises block after block: an SDAR with its weights, which then learns blocks."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

from lift_ds import generate_blocks, load_pretrained
from lift_ds.cli.make_diffusion_model import main
from lift_ds.data.tasks import MIXTURES
from lift_ds.data.text.chat import ChatEncoder
from lift_ds.data.text.records import Conversation
from lift_ds.export.adapt import make_diffusion_model
from tests.conftest import BASE, SMALL, launch_train
from tests.small_models import NUM_TOKENS, make_tokenizer, write_causal


def test_with_causal_attention_the_logits_are_the_originals(tmp_path, capsys):
    """Row by row, as nothing is shifted; without it a block is seen whole, and all before."""
    original = write_causal(tmp_path / "causal", "qwen3")
    main([str(tmp_path / "causal"), str(tmp_path / "blocks"), "--block", "4"])
    assert "blocks         4 tokens; the output at i is to predict token i" in capsys.readouterr().out
    model, tokenizer = load_pretrained(tmp_path / "blocks")
    ids = torch.randint(0, NUM_TOKENS, (2, 40), generator=torch.Generator().manual_seed(0))
    causal = torch.ones(40, 40, dtype=torch.bool).tril()[None, None]
    with torch.no_grad():
        expected = original(input_ids=ids).logits
        found = model(input_ids=ids, attention_mask=causal).logits[..., :NUM_TOKENS]
        in_blocks = model(input_ids=ids).logits[..., :NUM_TOKENS]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(in_blocks, expected, atol=0.1)
    raw = json.loads((tmp_path / "blocks" / "config.json").read_text())
    assert (raw["model_type"], raw["block_size"], raw["mask_token_id"]) == ("sdar", 4, NUM_TOKENS)
    assert raw["architectures"] == ["SDARForCausalLM"] and tokenizer.mask_token_id == NUM_TOKENS
    assert "right_shift_logits" not in raw
    names = {name for name, _ in original.named_parameters()}
    assert load_file(tmp_path / "blocks" / "model.safetensors").keys() == names


def test_an_end_of_turn_is_not_the_end_of_a_text(tmp_path):
    """Qwen3's chat models name it their end token; SDAR's config has the padding token in its place."""
    write_causal(tmp_path / "causal", "qwen3")
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"eos_token": "<|im_end|>", "pad_token": "</s>"})
    tokenizer.save_pretrained(tmp_path / "causal")
    with pytest.raises(ValueError, match="101 tokens for 100 embedding rows"):
        make_diffusion_model(str(tmp_path / "causal"), tmp_path / "none", block_size=4)
    state = load_file(tmp_path / "causal" / "model.safetensors")
    assert tokenizer.eos_token_id == NUM_TOKENS and len(state)
    model = Qwen3ForCausalLM.from_pretrained(tmp_path / "causal")
    model.resize_token_embeddings(NUM_TOKENS + 1)
    model.save_pretrained(tmp_path / "causal")
    for block_size, end in ((4, tokenizer.pad_token_id), (None, tokenizer.eos_token_id)):
        make_diffusion_model(str(tmp_path / "causal"), tmp_path / str(block_size), block_size=block_size)
        config = load_pretrained(tmp_path / str(block_size))[0].config
        assert (config.eos_token_id, config.pad_token_id) == (end, tokenizer.pad_token_id)


@pytest.mark.parametrize(
    ("kind", "block", "message"),
    [
        (
            "llama",
            "4",
            "'llama' cannot be made into a masked diffusion model that denoises block after block; supported: qwen3",
        ),
        ("qwen3", "0", "--block=0: at least 1"),
        ("qwen3", "100", "block_size=100: the tokens of a block, 1 to 64, are needed"),
    ],
)
def test_what_is_refused(kind, block, message, tmp_path, capsys):
    write_causal(tmp_path / "causal", kind)
    with pytest.raises(SystemExit) as stopped:
        main([str(tmp_path / "causal"), str(tmp_path / "blocks"), "--block", block])
    assert stopped.value.code == 2 and message in capsys.readouterr().err
    assert not (tmp_path / "blocks").exists()


def write_qwen3(folder, num_steps):
    """A small Qwen3 with a chat tokenizer that has learned the built-in tasks from left to right; its losses."""
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    base = json.loads((BASE / "config.json").read_text())
    ids = {"eos_token_id": base["eos_token_id"], "pad_token_id": base["pad_token_id"], "bos_token_id": None}
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=base["embedding_size"], hidden_size=96, intermediate_size=192, num_hidden_layers=3,
            num_attention_heads=4, num_key_value_heads=2, head_dim=24, max_position_embeddings=512,
            tie_word_embeddings=True, **ids,
        )
    )  # fmt: skip
    encoder = ChatEncoder(tokenizer, base["eos_token_id"], 512, pad_targets="one_eos")
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for step in range(num_steps):
        rows = []
        for place in range(8):
            item = MIXTURES["reasoning"].item(7, "train", 8 * step + place)
            turns = ({"role": "user", "content": item.question}, {"role": "assistant", "content": item.response})
            rows.append(torch.from_numpy(encoder.encode(Conversation(turns), "made").ids))
        padded = torch.nn.utils.rnn.pad_sequence(rows, True, -100)
        loss = model(input_ids=padded.clamp(min=0), labels=padded).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return losses


def learn_blocks(folder, output, num_steps, *settings):
    """A run on one process; the held-out losses before, while and after it."""
    launch_train(
        *SMALL, "--model", folder, "--output", output, "model.from_scratch=false", f"optim.steps={num_steps}",
        "objective.method=vanilla", "data.pad_to_multiple=4", "eval.solve_items=0", "checkpoint.save_every=0",
        "eval.rows=16", *settings, num_ranks=1,
    )  # fmt: skip
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [line["mean"] for line in lines if line["kind"] == "heldout"]


@pytest.mark.distributed
def test_it_learns_blocks(tmp_path):
    """Ten steps from a Qwen3 that has learned nothing; the trained folder answers."""
    write_qwen3(tmp_path / "qwen3", 0)
    make_diffusion_model(str(tmp_path / "qwen3"), tmp_path / "blocks", block_size=4)
    before, after = learn_blocks(tmp_path / "blocks", tmp_path / "run", 10)
    assert after < 0.8 * before
    model, _ = load_pretrained(tmp_path / "run" / "export")
    assert len(generate_blocks(model, torch.tensor([5, 6, 7]), 10, 2)) == 16


@pytest.mark.slow
@pytest.mark.distributed
def test_a_qwen3_that_has_learned_becomes_a_model_of_blocks(tmp_path):
    """300 steps from left to right, 300 in blocks: the loss falls, below what the same steps reach from new weights."""
    causal = write_qwen3(tmp_path / "qwen3", 300)
    assert sum(causal[-20:]) < 0.4 * sum(causal[:20])
    make_diffusion_model(str(tmp_path / "qwen3"), tmp_path / "blocks", block_size=4)
    settings = ("eval.every=100", "optim.lr=3e-3", "data.builtin_rows=2400")
    losses = learn_blocks(tmp_path / "blocks", tmp_path / "run", 300, *settings)
    fresh = learn_blocks(tmp_path / "blocks", tmp_path / "fresh", 300, *settings, "model.from_scratch=true")
    print("causal", causal[0], causal[-1], "blocks", losses, "from new weights", fresh)
    assert len(losses) == 4 and losses[3] < losses[2] < losses[1] < losses[0]
    assert losses[3] < 0.5 * losses[0] and losses[3] < fresh[3]
