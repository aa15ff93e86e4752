"""What SGLang's loader asks of a block model's folder, as data, and that exports have it.

Read from sgl-project/sglang, python/sglang/srt: models/sdar.py at 060c48f7, models/llada2.py at 02ceb3b3.
"""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from lift_ds import load_pretrained
from lift_ds.export.adapt import make_diffusion_model
from lift_ds.export.folder import export_folder
from tests.conftest import VECTORS
from tests.models.block_vectors import load
from tests.small_models import write_causal

# Names of weights and their shapes, as texts of what the config says; {layer} and {expert} are every one of them.
LAYER = "model.layers.{layer}."
SDAR = {
    "model.embed_tokens.weight": "vocab_size hidden_size",
    "lm_head.weight": "vocab_size hidden_size",
    "model.norm.weight": "hidden_size",
    LAYER + "input_layernorm.weight": "hidden_size",
    LAYER + "post_attention_layernorm.weight": "hidden_size",
    LAYER + "self_attn.q_proj.weight": "num_attention_heads*head_dim hidden_size",
    LAYER + "self_attn.k_proj.weight": "num_key_value_heads*head_dim hidden_size",
    LAYER + "self_attn.v_proj.weight": "num_key_value_heads*head_dim hidden_size",
    LAYER + "self_attn.o_proj.weight": "hidden_size num_attention_heads*head_dim",
    LAYER + "self_attn.q_norm.weight": "head_dim",
    LAYER + "self_attn.k_norm.weight": "head_dim",
    LAYER + "mlp.gate_proj.weight": "intermediate_size hidden_size",
    LAYER + "mlp.up_proj.weight": "intermediate_size hidden_size",
    LAYER + "mlp.down_proj.weight": "hidden_size intermediate_size",
}
LLADA2 = {
    "model.word_embeddings.weight": "vocab_size hidden_size",
    "lm_head.weight": "vocab_size hidden_size",
    "model.norm.weight": "hidden_size",
    LAYER + "input_layernorm.weight": "hidden_size",
    LAYER + "post_attention_layernorm.weight": "hidden_size",
    LAYER + "attention.query_key_value.weight": "(num_attention_heads+2*num_key_value_heads)*head_dim hidden_size",
    LAYER + "attention.query_layernorm.weight": "head_dim",
    LAYER + "attention.key_layernorm.weight": "head_dim",
    LAYER + "attention.dense.weight": "hidden_size num_attention_heads*head_dim",
}
DENSE = {  # layers before first_k_dense_replace
    LAYER + "mlp.gate_proj.weight": "intermediate_size hidden_size",
    LAYER + "mlp.up_proj.weight": "intermediate_size hidden_size",
    LAYER + "mlp.down_proj.weight": "hidden_size intermediate_size",
}
MIXTURE = {  # the others
    LAYER + "mlp.gate.weight": "num_experts hidden_size",
    LAYER + "mlp.gate.expert_bias": "num_experts",
    LAYER + "mlp.experts.{expert}.gate_proj.weight": "moe_intermediate_size hidden_size",
    LAYER + "mlp.experts.{expert}.up_proj.weight": "moe_intermediate_size hidden_size",
    LAYER + "mlp.experts.{expert}.down_proj.weight": "hidden_size moe_intermediate_size",
    LAYER + "mlp.shared_experts.gate_proj.weight": "moe_intermediate_size*num_shared_experts hidden_size",
    LAYER + "mlp.shared_experts.up_proj.weight": "moe_intermediate_size*num_shared_experts hidden_size",
    LAYER + "mlp.shared_experts.down_proj.weight": "hidden_size moe_intermediate_size*num_shared_experts",
}
# Fields that are read without a default, and those whose default would be another model: None where the folder's own
# value is what counts, else the value without which something is left out.
FIELDS = {
    "sdar_tiny": {
        "architectures": ["SDARForCausalLM"],
        **dict.fromkeys(
            "hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads vocab_size "
            "rms_norm_eps head_dim rope_theta max_position_embeddings".split()
        ),
        "tie_word_embeddings": False,
        "attention_bias": False,
    },
    "llada2_tiny": {
        "architectures": ["LLaDA2MoeModelLM"],
        **dict.fromkeys(
            "hidden_size intermediate_size moe_intermediate_size num_hidden_layers num_attention_heads head_dim "
            "num_key_value_heads vocab_size rms_norm_eps max_position_embeddings num_experts num_experts_per_tok "
            "n_group topk_group num_shared_experts first_k_dense_replace routed_scaling_factor "
            "partial_rotary_factor".split()
        ),
        "hidden_act": "silu",
        "use_bias": False,
        "use_qkv_bias": False,
        "embedding_dropout": 0.0,
        "tie_word_embeddings": False,
        "norm_topk_prob": True,
        "moe_router_enable_expert_bias": True,  # without it expert_bias is not loaded
        "score_function": "sigmoid",
        "router_dtype": "fp32",
    },
}


def expected_shapes(raw, name):
    """Every name with its shape."""

    def filled(table, layers, experts=1):
        return {
            pattern.format(layer=layer, expert=expert): [eval(size, {}, raw) for size in text.split()]
            for pattern, text in table.items()
            for layer in layers
            for expert in range(experts)
        }

    layers = range(raw["num_hidden_layers"])
    if name == "sdar_tiny":
        return filled(SDAR, layers)
    dense = raw["first_k_dense_replace"]
    mixture = filled(MIXTURE, layers[dense:], raw["num_experts"])
    return filled(LLADA2, layers) | filled(DENSE, layers[:dense]) | mixture


@pytest.mark.parametrize("name", list(FIELDS))
def test_exports_have_what_sglang_loads(name, tmp_path):
    """Weights, config.json, and the config that the folder's own class makes of it, which is what the loader sees."""
    export_folder(load(name).state_dict(), VECTORS / name, tmp_path / "export", torch.bfloat16)
    folder = tmp_path / "export"
    raw, state = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
    assert {key: list(each.shape) for key, each in state.items()} == expected_shapes(raw, name)
    assert {each.dtype for key, each in state.items() if "expert_bias" not in key} == {torch.bfloat16}
    assert all(each.dtype == torch.float32 for key, each in state.items() if "expert_bias" in key)
    config = get_class_from_dynamic_module(raw["auto_map"]["AutoConfig"], folder).from_pretrained(folder)
    for field, value in FIELDS[name].items():
        assert raw[field] == getattr(config, field) == (raw[field] if value is None else value), field
    rope = config.rope_parameters
    assert rope["rope_theta"] == raw["rope_theta"] and rope["rope_type"] == "default"


def test_a_qwen3_in_blocks_has_it_too(tmp_path):
    """Tied as it was; the base of the rotary embedding stands where SDAR's loader looks, else it takes 10,000."""
    original = write_causal(tmp_path / "causal", "qwen3")
    make_diffusion_model(str(tmp_path / "causal"), tmp_path / "blocks", block_size=4)
    raw = json.loads((tmp_path / "blocks" / "config.json").read_text())
    state = load_file(tmp_path / "blocks" / "model.safetensors")
    expected = expected_shapes(raw, "sdar_tiny")
    del expected["lm_head.weight"]
    assert raw["tie_word_embeddings"] and {key: list(each.shape) for key, each in state.items()} == expected
    assert raw["rope_theta"] == original.config.rope_parameters["rope_theta"] and raw["rope_scaling"] is None
    assert FIELDS["sdar_tiny"].keys() <= raw.keys()
    assert load_pretrained(tmp_path / "blocks")[0].config.rope_theta == raw["rope_theta"]
