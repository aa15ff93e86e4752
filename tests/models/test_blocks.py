"""Block attention apart from any model: packs, padding, memory, and what is refused."""

import json
import sys
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file

from lift_ds import block_sft_loss, gift_loss, lift_loss, load_pretrained, sft_loss
from lift_ds.models.blocks import BlockAttention, check_block_size
from lift_ds.models.families import read_config
from tests.conftest import VECTORS, run
from tests.models.block_vectors import GIVEN, load

IDS = torch.arange(12)[None] + 5


def raw_config(name, **changes):
    return json.loads((VECTORS / name / "config.json").read_text()) | changes


def write(folder, raw, weights=None):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(raw))
    if weights is not None:
        save_file(weights, folder / "model.safetensors")
    return folder


def test_the_rule_of_two_blocks_of_two():
    """Tokens 0 to 3, noised then clean: x sees its block's x and earlier c, c sees c of its block and before."""
    seen = BlockAttention.training(torch.arange(4)[None], 2).mask(0, 8)[0, 0].int().tolist()
    assert seen == [
        [1, 1, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0, 0],
        [0, 0, 1, 1, 1, 1, 0, 0],
        [0, 0, 1, 1, 1, 1, 0, 0],
        [0, 0, 0, 0, 1, 1, 0, 0],
        [0, 0, 0, 0, 1, 1, 0, 0],
        [0, 0, 0, 0, 1, 1, 1, 1],
        [0, 0, 0, 0, 1, 1, 1, 1],
    ]


@pytest.mark.parametrize("name", ["sdar_tiny", "llada2_tiny"])
def test_a_pack_is_its_documents_alone(name):
    """Documents of 13, 8 and 3 tokens in one row: its loss is the sum of theirs, each with blocks from its start."""
    model, generator = load(name), torch.Generator().manual_seed(1)
    lengths = (13, 8, 3)
    documents = [torch.randint(0, 200, (1, length), generator=generator) for length in lengths]
    masks = [torch.rand(1, length, generator=generator) < 0.6 for length in lengths]
    weights = [torch.rand(1, length, generator=generator) for length in lengths]
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    alone = [block_sft_loss(model, *each, 7) for each in zip(documents, masks, weights, strict=True)]
    together = block_sft_loss(model, *(torch.cat(each, 1) for each in (documents, masks, weights)), 7, positions)
    torch.testing.assert_close(together, sum(alone), rtol=1e-5, atol=0)


@pytest.mark.parametrize("kept_pairs", [0, 2 * 30 * 30])
def test_chunks_change_nothing(monkeypatch, kept_pairs):
    """Queries three at a time, their masks made again in backward or kept: outputs and gradients to rounding."""
    positions = torch.cat([torch.arange(9), torch.arange(6)])[None].repeat(2, 1)
    heads = [torch.randn(2, count, 30, 8, requires_grad=True) for count in (4, 2, 2)]

    def results():
        out = BlockAttention.training(positions, 4)(*heads, 0.0)
        return [out, *torch.autograd.grad(out.square().sum(), heads)]

    whole = results()
    monkeypatch.setattr("lift_ds.models.blocks.CHUNK_PAIRS", 3 * 2 * 30)
    monkeypatch.setattr("lift_ds.models.blocks.KEPT_PAIRS", kept_pairs)
    for one, other in zip(whole, results(), strict=True):
        torch.testing.assert_close(one, other)


def test_masks_are_made_once_for_all_layers(monkeypatch):
    """Of a training forward and backward: five queries of 24 at a time, in two layers."""
    made, plain = [], BlockAttention.mask
    monkeypatch.setattr(BlockAttention, "mask", lambda self, *span: made.append(span) or plain(self, *span))
    monkeypatch.setattr("lift_ds.models.blocks.CHUNK_QUERIES", 5)
    masked = torch.ones(1, 12, dtype=torch.bool)
    block_sft_loss(load("sdar_tiny").train(), IDS, masked, torch.ones(1, 12), 12).backward()
    assert made == [(0, 5), (5, 10), (10, 15), (15, 20), (20, 24)]


def test_chunks_inside_layers_that_are_computed_again(monkeypatch):
    """A layer's recomputation has its chunks computed again inside it."""
    model, masked = load("sdar_tiny").train(), torch.ones(1, 12, dtype=torch.bool)

    def gradients():
        model.zero_grad()
        block_sft_loss(model, IDS, masked, torch.ones(1, 12), 12).backward()
        return [parameter.grad.clone() for parameter in model.parameters()]

    plain = gradients()
    monkeypatch.setattr("lift_ds.models.blocks.CHUNK_PAIRS", 5 * 24)
    model.checkpoint_layers(2)
    for one, other in zip(plain, gradients(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_memory_does_not_grow_with_the_square():
    """4,096 tokens, 8,192 with their noised copies: less than half of one float mask of all pairs, 256 MiB."""
    found = json.loads(run([sys.executable, "-m", "tests.models.block_peak"]).stdout)
    assert found["dense_mask_mib"] == 256
    assert found["peak_mib"] < 128, found


def test_padding_on_either_side_changes_nothing():
    model = load("sdar_tiny")
    with torch.no_grad():
        expected = model(input_ids=IDS).logits
        right = torch.cat([IDS, torch.full((1, 5), 9)], 1)
        mask = torch.tensor([[True] * 12 + [False] * 5])
        torch.testing.assert_close(model(input_ids=right, attention_mask=mask).logits[:, :12], expected)
        left, mask = right.flip(1), mask.flip(1)
        left[:, 5:] = IDS
        positions = (mask.long().cumsum(-1) - 1).clamp(min=0)
        found = model(input_ids=left, attention_mask=mask, position_ids=positions).logits
    assert found.isfinite().all()
    torch.testing.assert_close(found[:, 5:], expected)


def test_nothing_masked_is_no_loss():
    model = load("sdar_tiny")
    loss = block_sft_loss(model, IDS, torch.zeros_like(IDS), torch.ones(1, 12), 1)
    loss.backward()
    assert loss == 0
    assert all(parameter.grad.eq(0).all() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("sdar_tiny", {"block_size": 8}, "block_size=8 is given, but the folder's own is 4"),
        ("sdar_tiny", {"mask_token_id": 5}, "mask_token_id=5 is given, but the folder's own is 250"),
        ("llada2_tiny", {}, "mask_token_id=None: an id from 0 to 255 .*mask_token_id="),
        ("llada2_tiny", {"mask_token_id": 256, "block_size": 8}, "mask_token_id=256: an id from 0 to 255"),
        ("llada2_tiny", {"mask_token_id": 250}, "block_size=None: the tokens of a block, 1 to 512.*block_size="),
        ("llada2_tiny", {"mask_token_id": 250, "block_size": 513}, "block_size=513: the tokens of a block, 1 to 512"),
        ("llada_moe_tiny", {}, "mask_token_id=None: an id from 0 to 255"),
        ("llada_moe_tiny", {"mask_token_id": 250, "block_size": 8}, "llada-moe does not denoise block after block"),
    ],
)
def test_what_is_missing_or_contradicts_the_folder(name, given, message):
    with pytest.raises(ValueError, match=message):
        load_pretrained(VECTORS / name, **given)


def test_what_the_folder_says_may_be_given_again():
    model, _ = load_pretrained(VECTORS / "sdar_tiny", mask_token_id=250, block_size=4)
    assert (model.config.block_size, model.config.pad_token_id) == (4, 247)  # the padding token is the end token


def test_published_sizes_say_ids_and_llada2s_block(tmp_path):
    config = read_config(write(tmp_path / "a", raw_config("llada2_tiny", vocab_size=157184, pad_token_id=None)))
    assert (config.mask_token_id, config.eos_token_id, config.pad_token_id) == (156895, 156892, 156892)
    assert config.block_size == 32
    raw = raw_config("sdar_tiny", vocab_size=151936, mask_token_id=None, eos_token_id=None, block_size=None)
    config = read_config(write(tmp_path / "b", raw), block_size=64)
    assert (config.mask_token_id, config.eos_token_id, config.pad_token_id) == (151669, 151643, 151643)
    with pytest.raises(ValueError, match="block_size=None"):  # SDAR's models differ by it
        read_config(tmp_path / "b")


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("llada_moe_tiny", {"rope_theta": None}, "rope_theta: missing"),
        ("llada_moe_tiny", {"rms_norm_eps": None, "qk_layernorm": None}, "qk_layernorm, rms_norm_eps: missing"),
        ("llada_moe_tiny", {"clip_qkv": 8.0}, "clip_qkv=8.0 is not implemented"),
        ("llada_moe_tiny", {"moe_router_enable_expert_bias": True}, "moe_router_enable_expert_bias=True is not"),
        ("llada_moe_tiny", {"shared_expert_intermediate_size": 8}, "shared_expert_intermediate_size=8 is not"),
        ("llada_moe_tiny", {"moe_layer_freq": [1]}, "moe_layer_freq names 1 layers of 2"),
        ("llada_moe_tiny", {"moe_layer_freq": [0, 1], "dense_intermediate_size": None}, "dense_intermediate_size is"),
        ("llada2_tiny", {"attention_dropout": None}, "attention_dropout: missing"),
        ("llada2_tiny", {"n_group": 3}, "num_experts=16, n_group=3, topk_group=2: groups of at least two"),
        ("llada2_tiny", {"num_experts_per_tok": 9}, "num_experts_per_tok=9: 2 groups of 4 have fewer"),
        ("llada2_tiny", {"use_qk_norm": False}, "use_qk_norm=False is not implemented"),
        ("sdar_tiny", {"use_sliding_window": True}, "use_sliding_window=True is not implemented"),
    ],
)
def test_configs_that_are_refused(name, fields, message, tmp_path):
    raw = {field: value for field, value in raw_config(name, **fields).items() if value is not None}
    with pytest.raises(ValueError, match=message):
        read_config(write(tmp_path / "model", raw), **GIVEN[name])


@pytest.mark.parametrize(
    ("name", "fields", "said"),
    [
        ("llada_moe_tiny", {"norm_topk_prob": True}, "norm_topk_prob=True is not read.*computed is False"),
        ("llada_moe_tiny", {"moe_router_score_function": "sigmoid"}, "computed is 'softmax'"),
        ("llada_moe_tiny", {"routed_scaling_factor": 2.5}, "computed is 1"),
        ("llada_moe_tiny", {"router_num_group": 4}, "computed is None"),
        ("llada2_tiny", {"norm_topk_prob": False}, "norm_topk_prob=False is not read.*computed is True"),
        ("llada2_tiny", {"score_function": "softmax"}, "computed is 'sigmoid'"),
        ("llada2_tiny", {"rotary_dim": 16}, "rotary_dim=16 is not read.*computed is 8"),
        ("llada2_tiny", {"moe_router_enable_expert_bias": False}, "computed is True"),
    ],
)
def test_fields_that_nobody_reads_are_said(name, fields, said, tmp_path):
    with pytest.warns(UserWarning, match=said):
        read_config(write(tmp_path / "model", raw_config(name, **fields)), **GIVEN[name])


@pytest.mark.parametrize("name", GIVEN)
def test_the_published_fields_say_nothing_wrong(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_config(VECTORS / name, **GIVEN[name])


@pytest.mark.parametrize(("name", "field"), [("llada_moe_tiny", "num_experts"), ("llada2_tiny", "num_experts")])
def test_more_experts_in_the_config_than_in_the_weights(name, field, tmp_path):
    raw = raw_config(name)
    weights = load_file(VECTORS / name / "model.safetensors")
    folder = write(tmp_path / "model", raw | {field: 2 * raw[field]}, weights)
    with pytest.raises(ValueError, match=rf"num_experts: {2 * raw[field]} by config.json, {raw[field]} in the weights"):
        load_pretrained(folder, **GIVEN[name])


def test_stacked_experts_are_refused_by_name(tmp_path):
    weights = {"model.word_embeddings.weight": torch.zeros(1), "model.layers.1.mlp.experts.gate_proj": torch.zeros(1)}
    folder = write(tmp_path / "model", raw_config("llada2_tiny"), weights)
    with pytest.raises(ValueError, match="dFactory's merged layout.*moe_convertor"):
        load_pretrained(folder, **GIVEN["llada2_tiny"])


def test_losses_of_other_models_are_refused():
    model, masked = load("sdar_tiny"), torch.ones(1, 12, dtype=torch.bool)
    for refused in (
        lambda: sft_loss(model, IDS, masked, torch.ones(1), 12),
        lambda: gift_loss(model, IDS, masked, torch.ones(1)),
        lambda: lift_loss(model, IDS, masked),
    ):
        with pytest.raises(ValueError, match="sdar: it denoises block after block; its loss .*block_sft_loss"):
            refused()
    with pytest.raises(ValueError, match="LLaDAMoEModelLM has no blocks; its loss is lift_ds.sft_loss"):
        block_sft_loss(load("llada_moe_tiny"), IDS, masked, torch.ones(1, 12), 12)
    with pytest.raises(ValueError, match=r"weights has the shape \(12,\); \(1, 12\) is expected"):
        block_sft_loss(model, IDS, masked, torch.ones(12), 12)


def test_a_config_without_a_block_size_cannot_run():
    config = read_config(VECTORS / "sdar_tiny")
    config.block_size = True
    with pytest.raises(ValueError, match="block_size=True: the tokens of a block, 1 to 512"):
        check_block_size(config)
