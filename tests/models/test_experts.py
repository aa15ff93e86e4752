"""Mixtures of experts: against a loop over tokens, on the grouped product, without waits of the host, with adapters."""

import pytest
import torch
from peft import PeftModel
from torch import nn

from lift_ds import block_sft_loss, load_pretrained, sft_loss
from lift_ds.export.merge import plan_merge, write_merged
from lift_ds.models import experts as experts_file
from lift_ds.models.elementwise import EAGER
from lift_ds.models.experts import Experts
from lift_ds.models.families import read_config
from lift_ds.models.layer_sizes import decoder_layers, used_elements
from lift_ds.models.lora import add_adapters, peft_config, save_adapters, split_adapters
from lift_ds.models.settings import LoraConfig
from lift_ds.planning.flops import Arithmetic
from lift_ds.planning.live_memory import measure_passes
from lift_ds.planning.sizes import Sizes
from tests.conftest import VECTORS
from tests.models.block_vectors import GIVEN, complete_folder, load
from tests.training.test_no_waits import Copies

NUM_TOKENS, NUM_CHOSEN, NUM_EXPERTS, WIDTH, INNER = 11, 3, 5, 16, 24


def is_bfloat16(rows):
    return rows.dtype == torch.bfloat16


@pytest.fixture
def bank():
    torch.manual_seed(0)
    experts = Experts(NUM_EXPERTS, WIDTH, INNER)
    for parameter in experts.parameters():
        parameter.data.normal_()
    return experts


def inputs(dtype=torch.float32):
    """Tokens, three different experts each of the first four of five, and weights."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randn(NUM_TOKENS, WIDTH, generator=generator).to(dtype).requires_grad_()
    chosen = torch.stack([torch.randperm(4, generator=generator)[:NUM_CHOSEN] for _ in range(NUM_TOKENS)])
    weights = torch.rand(NUM_TOKENS, NUM_CHOSEN, generator=generator).to(dtype).requires_grad_()
    return tokens, chosen, weights


def results(bank, tokens, chosen, weights, mix):
    """Output, and gradients of tokens, weights and every expert's matrices."""
    out = mix(tokens, chosen, weights)
    named = dict(bank.named_parameters())
    gradients = torch.autograd.grad(out.float().square().sum(), [tokens, weights, *named.values()], allow_unused=True)
    return [out, *(torch.zeros_like(each) if g is None else g
                   for g, each in zip(gradients, (tokens, weights, *named.values()), strict=True))]  # fmt: skip


def mixed(bank):
    return lambda tokens, chosen, weights: bank(tokens, chosen, weights, EAGER.gate)


def one_by_one(bank):
    """Each token through its experts, called as modules."""

    def mix(tokens, chosen, weights):
        rows = [
            sum(weight * bank[int(expert)](token) for expert, weight in zip(experts, row, strict=True))
            for token, experts, row in zip(tokens, chosen, weights, strict=True)
        ]
        return torch.stack(rows)

    return mix


def test_it_is_the_sum_over_each_tokens_experts(bank):
    bank.double()
    found, expected = (results(bank, *inputs(torch.float64), mix(bank)) for mix in (mixed, one_by_one))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)  # outputs are summed up as float32


def test_an_expert_without_tokens_has_a_gradient_of_zeros(bank):
    """As every expert has one on every rank: under ZeRO-3 gradients are reduced together."""
    tokens, chosen, weights = inputs()
    mixed(bank)(tokens, chosen, weights).sum().backward()
    assert all(parameter.grad.eq(0).all() for parameter in bank[4].parameters())
    assert all(parameter.grad.ne(0).any() for parameter in bank[0].parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_grouped_product_gives_the_same(bank, monkeypatch, dtype):
    """`grouped_mm`, which a GPU has as one kernel for bf16; torch computes it on the CPU, too."""
    bank.to(dtype)
    expected = results(bank, *inputs(dtype), mixed(bank))
    monkeypatch.setattr(experts_file, "has_grouped_kernel", lambda rows: True)
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
    for one, other in zip(results(bank, *inputs(dtype), mixed(bank)), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance * other.detach().abs().max().item())


def test_nothing_stacked_is_kept_for_backward(bank):
    """Parameters themselves are saved, which ZeRO-3 lets go of and gathers again; beside them rows of tokens only."""
    saved = []

    def pack(tensor):
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        mixed(bank)(*inputs())
    own = {parameter.data_ptr() for parameter in bank.parameters()}
    others = [tensor for tensor in saved if tensor.data_ptr() not in own]
    assert len(saved) - len(others) == 3 * NUM_EXPERTS
    assert max(tensor.numel() for tensor in others) <= NUM_TOKENS * NUM_CHOSEN * INNER


@pytest.mark.parametrize("name", ["llada_moe_tiny", "llada2_tiny"])
def test_the_host_waits_for_nothing(name, monkeypatch):
    """Forward and backward on the meta device, in bf16: what asks a device for a number raises there."""
    monkeypatch.setattr(experts_file, "has_grouped_kernel", is_bfloat16)
    model = load(name).to(torch.device("meta"), torch.bfloat16).train()
    clean_ids = torch.zeros(2, 24, dtype=torch.long, device="meta")
    with Copies() as copies:
        hidden = model.encode(clean_ids)
        hidden.sum().backward()
    assert not copies.waiting
    assert all(each.grad is not None for key, each in model.named_parameters() if key.startswith("model.layers"))


@pytest.mark.parametrize("name", ["llada_moe_tiny", "llada2_tiny"])
def test_checkpointed_layers_change_no_gradient(name):
    model = load(name).train()
    ids, masked = torch.arange(24)[None] + 5, torch.ones(1, 24, dtype=torch.bool)

    def gradients():
        model.zero_grad()
        if "block_size" in GIVEN[name]:
            block_sft_loss(model, ids, masked, torch.ones(1, 24), 24).backward()
        else:
            sft_loss(model, ids, masked, torch.ones(1), 24).backward()
        return [parameter.grad.clone() for parameter in model.parameters()]

    plain = gradients()
    model.checkpoint_layers(2)
    assert all(torch.equal(one, other) for one, other in zip(plain, gradients(), strict=True))


def test_the_bias_of_the_choice_stays_in_float32():
    model = load("llada2_tiny", dtype=torch.bfloat16)
    assert model.dtype == torch.bfloat16
    bias = load("llada2_tiny").model.layers[1].mlp.gate.expert_bias
    assert bias.dtype == torch.float32 and bias.ne(0).all()
    for changed in (model, model.to(torch.bfloat16), model.half(), model.double()):
        assert torch.equal(changed.model.layers[1].mlp.gate.expert_bias, bias)


def test_experts_take_no_adapters():
    model = load("llada_moe_tiny")
    with pytest.raises(
        ValueError, match="lora.targets: down_proj, gate_proj are matrices of experts.*: k_proj, o_proj"
    ):
        add_adapters(model, 2, 4.0, 0.0, ["q_proj", "gate_proj", "down_proj"], 0)
    with pytest.raises(
        ValueError, match="lora.targets: 0.up_proj, mlp.up_proj not in the model; it has k_proj, o_proj"
    ):
        add_adapters(model, 2, 4.0, 0.0, ["0.up_proj", "mlp.up_proj"], 0)
    add_adapters(model, 2, 4.0, 0.0, ["q_proj", "v_proj"], 0)
    assert sum(parameter.requires_grad for parameter in model.parameters()) == 2 * 2 * 2
    with pytest.raises(ValueError, match="matrices of experts.*allowed: dense, mlp.down_proj.*, query_key_value."):
        add_adapters(load("llada2_tiny"), 2, 4.0, 0.0, ["gate_proj"], 0)


ALL_TARGETS = ["query_key_value", "dense", "mlp.gate_proj", "mlp.down_proj", "shared_experts.gate_proj"]
ADAPTED = [
    *("0.attention.query_key_value", "0.attention.dense", "0.mlp.gate_proj", "0.mlp.down_proj"),
    *("1.attention.query_key_value", "1.attention.dense", "1.mlp.shared_experts.gate_proj"),
]


def adapted_llada2():
    """With adapters that change what it gives, on matrices of attention, the dense layer and the shared expert."""
    model = load("llada2_tiny")
    add_adapters(model, 4, 8.0, 0.0, ALL_TARGETS, seed=3)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.uniform_(-0.1, 0.1)
    return model


def test_adapters_beside_experts():
    """The dense layer is layer 0, and layer 1 the mixture; the plan counts what the run has."""
    model = adapted_llada2()
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    found = {name.removeprefix("model.layers.").partition(".lora_")[0] for name in trained}
    assert found == set(ADAPTED) and len(trained) == 2 * len(ADAPTED)
    config = read_config(VECTORS / "llada2_tiny", **GIVEN["llada2_tiny"])
    lora = LoraConfig(rank=4, dropout=0.0, targets=ALL_TARGETS)
    num_trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert Sizes.of(config, lora).trained == num_trained
    assert 2 * num_trained == Arithmetic.of(config, 4, tuple(ALL_TARGETS)).adapters  # of both copies
    only_shared = LoraConfig(rank=4, dropout=0.0, targets=["shared_experts.up_proj"])  # which layer 0 does not have
    assert measure_passes(config, only_shared, torch.float32, 0, 2, 24, 10, "cpu").backward > 0


def test_adapters_beside_experts_go_through_pefts_format(tmp_path):
    """Written, put onto the base by peft, and merged: the same logits, and base weights but for the adapted ones."""
    base, model = complete_folder(tmp_path, "llada2_tiny"), adapted_llada2()
    save_adapters(split_adapters(model.state_dict())[1], tmp_path / "adapters", peft_config(4, 8.0, 0.0, ALL_TARGETS))
    ids = torch.arange(20)[None] + 5
    expected, before = model.eval()(input_ids=ids).logits, load("llada2_tiny")(input_ids=ids).logits
    assert (expected - before).abs().max() > 1e-2 * before.abs().max()
    adapted = PeftModel.from_pretrained(load("llada2_tiny"), tmp_path / "adapters").eval()
    assert torch.equal(adapted(input_ids=ids).logits, expected)
    write_merged(plan_merge(base, tmp_path / "adapters", None), tmp_path / "merged", None, lambda count: None)
    merged = load_pretrained(tmp_path / "merged")[0]
    torch.testing.assert_close(merged(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-4)
    ours, theirs = merged.state_dict(), load("llada2_tiny").state_dict()
    changed = {name for name, tensor in ours.items() if not torch.equal(tensor, theirs[name])}
    assert changed == {f"model.layers.{name}.weight" for name in ADAPTED}


def test_the_plan_of_a_mixture():
    """All experts are held, and 2 of 8 are computed with: 3 x 64 x 32 elements each, and 4 x 64 x 64 of attention."""
    config = read_config(VECTORS / "llada_moe_tiny", **GIVEN["llada_moe_tiny"])
    layers = decoder_layers(config)
    assert [used_elements(layer, config) for layer in layers] == [4 * 64 * 64 + 2 * 3 * 64 * 32] * 2
    sizes = Sizes.of(config, LoraConfig())
    stored = sum(parameter.numel() for parameter in load("llada_moe_tiny").parameters())
    assert (sizes.total, sizes.trained, sizes.num_layers) == (stored, stored, 2)
    assert sizes.layer == sum(parameter.numel() for parameter in layers[0].parameters())
    held = measure_passes(config, LoraConfig(), torch.float32, 0, 2, 24, 10, "cpu")
    assert held.saved > 0 and held.backward > 0


def test_a_dense_layer_among_mixtures(tmp_path):
    config = read_config(VECTORS / "llada_moe_tiny", **GIVEN["llada_moe_tiny"])
    config.moe_layer_freq = [0, 1]
    dense, mixture = decoder_layers(config)
    assert dense.mlp.gate_proj.weight.shape == (96, 64) and isinstance(mixture.mlp.experts, nn.ModuleList)
    assert used_elements(dense, config) == 4 * 64 * 64 + 3 * 64 * 96
    sizes = Sizes.of(config, LoraConfig())
    assert sizes.layer == sum(parameter.numel() for parameter in mixture.parameters())
