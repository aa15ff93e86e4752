"""Autoregressive models made into masked diffusion models: same weights, one token more, never causal again."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from lift_ds import load_pretrained
from lift_ds.cli.make_diffusion_model import main
from lift_ds.data.batch import Document
from lift_ds.evaluation.heldout import LEVELS, heldout_loss
from lift_ds.export.adapt import EMBEDDING, HEAD, make_diffusion_model
from lift_ds.ranks.shares import Alone
from tests.conftest import run, smollm2_file
from tests.small_models import KINDS, NUM_TOKENS, write_adapted, write_causal

YARN = {"rope_type": "yarn", "rope_theta": 100.0, "factor": 2.0}


def causal(length):
    """(1, 1, L, L): a query sees itself and what precedes it."""
    return torch.ones(length, length, dtype=torch.bool).tril()[None, None]


@pytest.mark.parametrize("kind", list(KINDS))
def test_with_causal_attention_the_logits_are_the_originals(kind, tmp_path):
    original = write_causal(tmp_path / "causal", kind)
    mask = make_diffusion_model(str(tmp_path / "causal"), tmp_path / "adapted")
    model, tokenizer = load_pretrained(tmp_path / "adapted")
    ids = torch.randint(0, NUM_TOKENS, (2, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = original(input_ids=ids).logits
        found = model(input_ids=ids, attention_mask=causal(40)).logits
        full = model(input_ids=ids).logits
    known = slice(0, NUM_TOKENS)  # row i of ours predicts token i: the original's row i - 1
    torch.testing.assert_close(found[:, 1:, known], expected[:, :-1, known], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(full[:, 1:, known], expected[:, :-1, known], atol=0.1)
    assert (tokenizer.mask_token, tokenizer.mask_token_id) == ("<|mask|>", mask.token_id) == ("<|mask|>", NUM_TOKENS)
    assert model.config.mask_token_id == mask.token_id and mask.is_new
    # a spare row is used where there is one, and nothing else is added
    rows = original.get_input_embeddings().weight.shape[0]
    assert (mask.rows_before, mask.rows_after) == (rows, max(rows, NUM_TOKENS + 1))
    assert model.get_input_embeddings().weight.shape[0] == model.config.vocab_size == mask.rows_after


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_the_mask_tokens_row_is_the_mean_of_the_tokens_rows(kind, tmp_path):
    before = write_causal(tmp_path / "causal", kind).state_dict()
    make_diffusion_model(str(tmp_path / "causal"), tmp_path / "adapted")
    after = load_file(tmp_path / "adapted" / "model.safetensors")
    assert (HEAD in after) is (kind == "qwen2")
    for name in {EMBEDDING, HEAD} & set(after):
        torch.testing.assert_close(after[name][NUM_TOKENS], before[name][:NUM_TOKENS].mean(0))
        assert torch.equal(after[name][:NUM_TOKENS], before[name][:NUM_TOKENS])


def test_it_can_never_load_as_a_causal_model(tmp_path):
    folder = write_adapted(tmp_path, "llama")
    assert json.loads((folder / "config.json").read_text())["model_type"] == "a2d-llama"
    with pytest.raises(ValueError):
        AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False)


def edit_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_what_old_checkpoints_store_beside_the_weights(tmp_path):
    """Rotary tables are computed, and a tied head that is stored twice is stored once."""
    folder = tmp_path / "causal"
    write_causal(folder, "llama")
    state = load_file(folder / "model.safetensors")
    extra = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4), HEAD: state[EMBEDDING].clone()}
    save_file(state | extra, folder / "model.safetensors")
    make_diffusion_model(str(folder), tmp_path / "adapted", dtype_name="bfloat16")
    written = load_file(tmp_path / "adapted" / "model.safetensors")
    assert set(written) == set(state)
    assert {tensor.dtype for tensor in written.values()} == {torch.bfloat16}
    save_file(state | {HEAD: state[EMBEDDING] + 1}, folder / "model.safetensors")
    with pytest.raises(ValueError, match="tie_word_embeddings=true, but lm_head.weight differs"):
        make_diffusion_model(str(folder), tmp_path / "other")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: edit_json(folder / "config.json", model_type="gpt2"), "'gpt2' cannot be made into"),
        (lambda folder: edit_json(folder / "config.json", hidden_act="gelu"), "hidden_act='gelu' is not implemented"),
        (lambda folder: edit_json(folder / "config.json", rope_parameters=YARN), "rope_type='yarn'"),
        (lambda folder: edit_json(folder / "config.json", quantization_config={"bits": 4}), "weights are quantized"),
        (lambda folder: [path.unlink() for path in folder.glob("tokenizer*")], "no tokenizer"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "the tokenizer cannot be read"),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), "the tokenizer cannot be read"),
        (lambda folder: (folder / "model.safetensors").unlink(), "weights are read from safetensors only"),
        (lambda folder: cut_embedding(folder / "model.safetensors"), "100 tokens for 90 embedding rows"),
        (lambda folder: (folder / "config.json").unlink(), "no config.json"),
        (
            lambda folder: [(folder / name).write_text("") for name in ("a.gguf", "b.gguf")],
            "2 GGUF files; name one of them",
        ),
    ],
)
def test_bad_sources(spoil, message, tmp_path, capsys):
    folder, output = tmp_path / "causal", tmp_path / "adapted"
    write_causal(folder, "llama")
    spoil(folder)
    with pytest.raises(SystemExit) as exit_:
        main([str(folder), str(output)])
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err
    assert not output.exists() and not list(tmp_path.glob(".*"))


def cut_embedding(path):
    state = load_file(path)
    save_file(state | {EMBEDDING: state[EMBEDDING][:90].clone()}, path)


def test_an_adapted_model_is_not_adapted_again_and_nothing_is_overwritten(tmp_path, capsys):
    folder = write_adapted(tmp_path, "qwen3")
    for source, output, message in (
        (folder, tmp_path / "twice", "model_type='a2d-qwen3' cannot be made"),
        (tmp_path / "causal", folder, "exists and is not empty"),
    ):
        with pytest.raises(SystemExit):
            main([str(source), str(output)])
        assert message in capsys.readouterr().err


def test_rows_that_every_machine_has(tmp_path):
    run(["python", "tools/make_docstring_rows.py", str(tmp_path / "rows.jsonl")])
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert len(rows) > 2000
    assert all(set(row) == {"prompt", "response"} and 40 <= len(row["response"]) <= 600 for row in rows)
    (found,) = [row for row in rows if "`json.decoder.JSONDecoder.decode(self, s" in row["prompt"]]
    assert found["response"].startswith("Return the Python representation of ``s``")


@pytest.mark.slow
def test_smollm2(tmp_path):
    """The real model: the same logits under causal attention, and a shift that predicts masked words far better."""
    path = smollm2_file()
    mask = make_diffusion_model(str(path), tmp_path / "adapted")
    assert (mask.token_id, mask.rows_before, mask.rows_after) == (49152, 49152, 49153)
    original = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name)
    model, tokenizer = load_pretrained(tmp_path / "adapted")
    text = "The moon moves around the Earth in about a month, and the Earth moves around the sun in one year."
    ids = torch.tensor([tokenizer(text).input_ids])
    with torch.no_grad():
        expected = original(input_ids=ids).logits
        causal_logits = model(input_ids=ids, attention_mask=causal(ids.shape[1])).logits
    torch.testing.assert_close(causal_logits[:, 1:, :49152], expected[:, :-1], rtol=1e-3, atol=1e-3)
    learned = torch.arange(ids.shape[1]) > 0
    document = Document(ids[0].numpy(), learned.numpy(), learned.numpy() & False, 0, 0, "text")
    by_level = {}
    for model.config.right_shift_logits in (True, False):
        by_level[model.config.right_shift_logits] = heldout_loss(model, [document] * 4, Alone(), 4, 0).by_level
    assert by_level[True][LEVELS.index(0.15)] < by_level[False][LEVELS.index(0.15)] - 0.5
    shutil.rmtree(tmp_path / "adapted")
