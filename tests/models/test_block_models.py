"""SDAR, LLaDA-MoE and LLaDA2 against their public code: logits, routing, losses and every gradient's norm."""

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from lift_ds import block_sft_loss, sft_loss
from lift_ds.models.blocks import BlockAttention
from lift_ds.models.llada2 import LLaDA2MoeConfig
from lift_ds.models.llada_moe import LLaDAMoEConfig
from lift_ds.models.sdar import SDARConfig, SDARForCausalLM
from lift_ds.models.weights import parameter_shapes
from tests.conftest import VECTORS
from tests.models.block_vectors import GIVEN, cases, check_gradients, document_positions, forwards, load


def routed(model):
    """What each router gives from now on, by the number of its layer."""
    seen = {}

    def watch(layer, router):
        router.register_forward_hook(lambda _, given, found: seen.update({layer: found}))

    for name, module in model.named_modules():
        if name.endswith("mlp.gate"):
            watch(name.split(".")[2], module)
    return seen


def check_routes(seen, tensors):
    """The same experts of each token, in any order, and their weights; where they are stored, the logits."""
    for layer, (logits, chosen, weights) in seen.items():
        experts = tensors[f"router{layer}.experts"]
        ours, theirs = chosen.view(experts.shape).sort(-1), experts.sort(-1)
        assert torch.equal(ours.values, theirs.values)
        found = weights.view(experts.shape).gather(-1, ours.indices)
        expected = tensors[f"router{layer}.weights"].gather(-1, theirs.indices)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
        if f"router{layer}.logits" in tensors:
            expected = tensors[f"router{layer}.logits"]
            torch.testing.assert_close(logits.view(expected.shape), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("name", "prefix"), [("sdar_tiny", "plain"), ("llada_moe_tiny", "forward"), ("llada2_tiny", "plain")]
)
@torch.no_grad()
def test_plain_forwards_equal_the_public_code(name, prefix):
    model = load(name)
    seen = routed(model)
    found = forwards(name, prefix)
    assert len(found) == 3
    for tensors in found:
        logits = model(input_ids=tensors["input_ids"], attention_mask=tensors.get("attention_mask")).logits
        torch.testing.assert_close(logits, tensors["logits"], atol=1e-4, rtol=0)
        check_routes(seen, tensors)
    assert len(seen) == {"sdar_tiny": 0, "llada_moe_tiny": 2, "llada2_tiny": 1}[name]


@pytest.mark.parametrize(("name", "count"), [("sdar_tiny", 6), ("llada2_tiny", 4)])
@torch.no_grad()
def test_training_forwards_equal_the_public_code(name, count):
    """Both halves, in the documents' order; SDAR's are packed, some filled up with a tail."""
    model = load(name)
    seen = routed(model)
    found = forwards(name, "train")
    assert len(found) == count
    for tensors in found:
        length = tensors["input_ids"].shape[1]
        given = tensors.get("position_ids", torch.arange(length).expand_as(tensors["input_ids"]))
        positions = document_positions(given)
        ids = torch.cat([tensors["noisy_ids"], tensors["input_ids"]], dim=1)
        visible = BlockAttention.training(positions, model.config.block_size)
        logits = model.head(model.encode(ids, visible, positions.repeat(1, 2)))
        torch.testing.assert_close(logits[:, :length], tensors["logits_noised"], atol=1e-4, rtol=0)
        torch.testing.assert_close(logits[:, length:], tensors["logits_clean"], atol=1e-4, rtol=0)
        check_routes(seen, tensors)


def test_the_mask_is_the_public_one():
    """SDAR's, whose packs lie document by document, noised and clean: the same rule on the same tokens."""
    for tensors in forwards("sdar_tiny", "train"):
        positions, is_noised = tensors["concat_positions"], tensors["noised_part"]
        begins = torch.zeros_like(is_noised)
        begins[:, 0] = True
        begins[:, 1:] = is_noised[:, 1:] & (positions[:, 1:] == 0)
        rule = BlockAttention(begins.long().cumsum(-1), positions // 4, is_noised)
        assert torch.equal(rule.mask(0, positions.shape[1])[:, 0], tensors["attention_mask"])


def test_sdars_losses_and_gradients():
    model = load("sdar_tiny")
    found = cases("sdar_tiny", "loss", "cases")
    assert len(found) == 24
    for case, tensors in found:
        masked = tensors["masked"]
        weights = torch.zeros(masked.shape).masked_scatter(masked, 1 / tensors["p_mask"])
        num_targets = (tensors["labels"] != -100).sum()
        positions = document_positions(tensors["position_ids"])
        model.zero_grad()
        loss = block_sft_loss(model, tensors["input_ids"], masked, weights, num_targets, positions)
        loss.backward()
        torch.testing.assert_close(loss.item(), case["loss"], rtol=1e-5, atol=0)
        check_gradients(model, case["grad_norm"])


def test_llada_moes_losses_and_gradients():
    """The mean cross-entropy of the masked tokens; an expert without a token has a gradient of zeros."""
    model = load("llada_moe_tiny")
    found = cases("llada_moe_tiny", "loss", "cases")
    assert len(found) == 5
    for case, tensors in found:
        masked = tensors["masked"]
        model.zero_grad()
        levels = torch.ones(len(masked))
        loss = sft_loss(model, tensors["input_ids"], masked, levels, masked.sum(), time_scaling=False)
        loss.backward()
        torch.testing.assert_close(loss.item(), case["loss"], rtol=1e-5, atol=0)
        check_gradients(model, case["grad_norm"])
    assert 0.0 in found[0][0]["grad_norm"].values()


def test_llada2s_losses_and_gradients():
    """The mean over micro-batches of their masked tokens' means; every row of the embedding learns."""
    model = load("llada2_tiny")
    found = cases("llada2_tiny", "loss", "cases")
    assert len(found) == 22
    for case, tensors in found:
        model.zero_grad()
        total = 0.0
        for clean_ids, noisy_ids in zip(tensors["input_ids"], tensors["noisy_ids"], strict=True):
            masked = noisy_ids == 250
            num_targets = masked.sum() * case["micro_batches"]
            loss = block_sft_loss(model, clean_ids, masked, torch.ones(masked.shape), num_targets)
            loss.backward()
            total += loss.item()
        torch.testing.assert_close(total, case["loss"], rtol=1e-5, atol=0)
        all_rows = {"model.word_embeddings.weight": case["embedding_grad_norm_all_rows"]}
        check_gradients(model, case["grad_norm"] | all_rows)


@pytest.mark.parametrize("name", ["sdar_tiny", "llada2_tiny"])
def test_the_flex_kernels_mask_function_gives_the_same_attention(name):
    """FlexAttention itself, uncompiled on the CPU, with the function that its kernel gets on a GPU."""
    tensors = forwards(name, "train")[-1]
    length = tensors["input_ids"].shape[1]
    given = tensors.get("position_ids", torch.arange(length).expand_as(tensors["input_ids"]))
    attention = BlockAttention.training(document_positions(given), 4)
    rows, pairs = len(given), 2 * length
    query, key, value = (torch.randn(rows, heads, pairs, 16) for heads in (4, 2, 2))
    mask = create_block_mask(attention.rule(), rows, None, pairs, pairs, device="cpu")
    expected = flex_attention(query, key, value, block_mask=mask, enable_gqa=True)
    torch.testing.assert_close(attention(query, key, value, 0.0), expected, atol=1e-5, rtol=1e-5)


def test_a_masked_token_cannot_see_its_answer():
    """Changing a clean token changes what later blocks predict, and nothing of its own block or before."""
    model = load("sdar_tiny")
    clean_ids = torch.arange(24)[None] + 5
    masked = torch.ones(1, 24, dtype=torch.bool)
    changed = clean_ids.clone()
    changed[0, 9] = 77  # in the third block of 4

    def logprobs(ids):
        visible = BlockAttention.training(torch.arange(24)[None], 4)
        both = torch.cat([ids.masked_fill(masked, 250), ids], dim=1)
        return model.encode(both, visible, torch.arange(24).repeat(2)[None])[:, :24]

    differs = (logprobs(clean_ids) != logprobs(changed)).any(-1)[0]
    assert differs.tolist() == [False] * 12 + [True] * 12


def test_sizes_are_the_published_ones():
    """8,190,735,360 and 4,411,424,256 parameters in 399 tensors: half the bytes of the hub's index files."""
    common = {"num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128}
    common |= {"vocab_size": 151936, "rope_theta": 1e6, "max_position_embeddings": 32768}
    for sizes, expected in (((4096, 12288), 8_190_735_360), ((2560, 9728), 4_411_424_256)):
        with torch.device("meta"):
            model = SDARForCausalLM(SDARConfig(hidden_size=sizes[0], intermediate_size=sizes[1], **common))
        assert sum(parameter.numel() for parameter in model.parameters()) == expected
        assert len(list(model.parameters())) == 399


MINI = {
    "hidden_size": 2048, "num_hidden_layers": 20, "num_attention_heads": 16, "intermediate_size": 5120,
    "moe_intermediate_size": 512,
}  # fmt: skip
FLASH = {
    "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "intermediate_size": 9216,
    "moe_intermediate_size": 1024,
}  # fmt: skip
LLADA2 = {
    "num_key_value_heads": 4, "head_dim": 128, "num_experts": 256, "num_experts_per_tok": 8, "n_group": 8,
    "topk_group": 4, "vocab_size": 157184, "attention_dropout": 0.0, "first_k_dense_replace": 1,
    "num_shared_experts": 1, "partial_rotary_factor": 0.5, "rms_norm_eps": 1e-6, "rope_theta": 6e5,
    "routed_scaling_factor": 2.5,
}  # fmt: skip
LLADA_MOE = {
    "hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 16, "num_experts": 64,
    "num_experts_per_tok": 8, "expert_intermediate_size": 1024, "vocab_size": 157184, "partial_rotary_factor": 1,
    "qk_layernorm": True, "rms_norm_eps": 1e-5, "rope_theta": 5e4,
}  # fmt: skip


@pytest.mark.parametrize(
    ("config", "num_parameters", "num_tensors"),
    [
        (LLaDA2MoeConfig(**LLADA2, **MINI), 16_255_643_392, 14_813),
        (LLaDA2MoeConfig(**LLADA2, **FLASH), 102_889_705_216, 24_161),
        (LLaDAMoEConfig(**LLADA_MOE), 7_356_880_896, 3_219),
    ],
    ids=["mini", "flash", "moe"],
)
def test_sizes_of_mixtures(config, num_parameters, num_tensors):
    """Computed from the published configs, the experts' biases included."""
    shapes = parameter_shapes(config)
    assert len(shapes) == num_tensors
    assert sum(shape.numel() for shape in shapes.values()) == num_parameters


@pytest.mark.parametrize("name", GIVEN)
def test_parameters_carry_the_public_names(name):
    model = load(name)
    stored = load_file(VECTORS / name / "model.safetensors")
    named = dict(model.named_parameters()) | dict(model.named_buffers())
    assert named.keys() == stored.keys()
    assert all(torch.equal(named[key], stored[key]) for key in stored)
    assert [key for key, _ in model.named_buffers()] == [key for key in stored if key.endswith("expert_bias")]
