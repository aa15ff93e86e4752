"""The table of families: which row a folder belongs to, what is refused by name, ids, layouts, shifts."""

import json
import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import nn

from lift_ds import generate, load_pretrained
from lift_ds.export.folder import export_folder
from lift_ds.models.families import FAMILIES, family_of, read_config, start_token_of
from lift_ds.models.layers import DecoderLayers
from lift_ds.models.llama import align, read_rope
from lift_ds.models.lora import add_adapters, split_adapters
from lift_ds.models.vocabulary import check_tokenizer, load_tokenizer
from lift_ds.models.weights import NewWeights
from tests.small_models import make_tokenizer, write_adapted

LLAMA_NAMES = {
    "model.transformer.wte": "model.embed_tokens",
    "model.transformer.ln_f": "model.norm",
    "model.transformer.ff_out": "lm_head",
    "model.transformer.blocks": "model.layers",
    "attn_norm": "input_layernorm",
    "ff_norm": "post_attention_layernorm",
    "q_proj": "self_attn.q_proj",
    "k_proj": "self_attn.k_proj",
    "v_proj": "self_attn.v_proj",
    "attn_out": "self_attn.o_proj",
    "ff_proj": "mlp.gate_proj",
    "up_proj": "mlp.up_proj",
    "ff_out": "mlp.down_proj",
}


SIZES = {  # of families whose configs have no defaults
    "llada-moe": {
        "expert_intermediate_size": 8, "num_experts": 4, "num_experts_per_tok": 2, "partial_rotary_factor": 1,
        "qk_layernorm": True, "rms_norm_eps": 1e-5, "rope_theta": 1e4,
    },
    "llada2_moe": {
        "attention_dropout": 0.0, "first_k_dense_replace": 1, "moe_intermediate_size": 8, "n_group": 2,
        "num_experts": 4, "num_experts_per_tok": 2, "num_key_value_heads": 2, "num_shared_experts": 1,
        "partial_rotary_factor": 0.5, "rms_norm_eps": 1e-6, "rope_theta": 1e4, "routed_scaling_factor": 2.5,
        "topk_group": 1,
    },
}  # fmt: skip


def write_config(folder, **fields):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(fields))
    return folder


def test_dreams_logits_equal_the_public_code_after_the_shift(dream, dream_dir):
    vectors = load_file(dream_dir / "forward.safetensors")
    public = vectors["logits_unshifted"]  # row i predicts token i + 1
    aligned = torch.cat((public[:, :1], public[:, :-1]), dim=1)
    with torch.no_grad():
        torch.testing.assert_close(dream(input_ids=vectors["input_ids"]).logits, aligned, atol=1e-5, rtol=1e-5)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=5), st.integers(0, 3))
def test_the_shift_is_per_document(lengths, left_padding):
    """Row i of a document takes the state of row i - 1, its first row its own; positions may begin anywhere."""
    positions = [place + 7 * number for number, length in enumerate(lengths) for place in range(length)]
    ids = torch.arange(sum(lengths) + left_padding)
    hidden = ids[None, :, None].float()
    found = align(hidden, torch.tensor([[0] * left_padding + positions]))[0, left_padding:, 0]
    expected, start = [], left_padding
    for length in lengths:
        expected += [start, *range(start, start + length - 1)]
        start += length
    # a document of one token whose successor counts on from it cannot be told from one document; 7 keeps them apart
    assert found.long().tolist() == expected


@pytest.mark.parametrize("layout", ["LLaDA's fields", "Llama's fields"])
def test_llada_in_llamas_layout(llada, llada_dir, tmp_path, layout):
    """The same weights under the other names give the same logits; the names decide, whatever the config's style."""
    state = {}
    for name, tensor in load_file(llada_dir / "model.safetensors").items():
        for old, new in LLAMA_NAMES.items():
            name = name.replace(old, new) if f"{old}." in name and new not in name else name
        state[name] = tensor
    save_file(state, tmp_path / "model.safetensors")
    raw = json.loads((llada_dir / "config.json").read_text())
    if layout == "Llama's fields":
        names = {"d_model": "hidden_size", "n_layers": "num_hidden_layers", "n_heads": "num_attention_heads"}
        names |= {"n_kv_heads": "num_key_value_heads", "mlp_hidden_size": "intermediate_size"}
        names |= {"embedding_size": "vocab_size", "max_sequence_length": "max_position_embeddings"}
        raw.pop("vocab_size")
        raw = {names.get(name, name): value for name, value in raw.items()}
    write_config(tmp_path, **raw)
    model, _ = load_pretrained(tmp_path)
    ids = torch.tensor([[5, 6, 7, 8]])
    torch.testing.assert_close(model(input_ids=ids).logits, llada(input_ids=ids).logits, atol=1e-6, rtol=1e-6)
    export_folder(state, tmp_path, tmp_path / "out", torch.float32)
    assert torch.equal(load_pretrained(tmp_path / "out")[0](input_ids=ids).logits, model(input_ids=ids).logits)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "lladamoe", "hidden_size": 8}, "LLaDA-MoE under another name: .* 'llada'"),
        ({"model_type": "llada_moe", "hidden_size": 8}, "LLaDA-MoE under another name: .* 'llada'"),
        ({"model_type": "llada2_moe_veomni", "hidden_size": 8}, "LLaDA2 in dFactory's merged layout"),
        ({"model_type": "sdar_moe", "hidden_size": 8}, "SDAR-MoE: .* not implemented"),
        ({"model_type": "llava_llada", "hidden_size": 8}, "LLaDA-V with its vision tower"),
        ({"model_type": "qwen2", "hidden_size": 8}, "Qwen2: it is autoregressive; tools/make_diffusion_model.py"),
        ({"model_type": "gpt2"}, "model_type='gpt2' is not supported; supported: llada, Dream, a2d-llama"),
        ({}, "model_type=None is not supported"),
        ({"model_type": "llada", "n_embd": 8}, "the layout is unknown"),
        ({"model_type": "a2d-qwen3", "hidden_size": 8}, "right_shift_logits=None: true .* or false"),
        ({"model_type": "Dream", "right_shift_logits": False}, "right_shift_logits=False is not implemented"),
        ({"model_type": "Dream", "hidden_act": "gelu"}, "hidden_act='gelu' is not implemented"),
        ({"model_type": "Dream", "use_sliding_window": True}, "use_sliding_window=True is not implemented"),
        ({"model_type": "Dream", "layer_types": ["sliding_attention"]}, "layer_types=.* is not implemented"),
        ({"model_type": "Dream", "vocab_size": 9}, "mask_token_id=None: an id from 0 to 8"),
    ],
)
def test_relatives_and_variants_are_refused_by_name(fields, message, tmp_path):
    with pytest.raises(ValueError, match=message) as error:
        read_config(write_config(tmp_path / "model", **fields))
    assert str(tmp_path / "model") in str(error.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model.transformer.blocks.0.mlp.experts.0.up_proj.weight", "the layout is unknown"),
        ("model.vision_tower.patch.weight", "LLaDA-V with its vision tower"),
        ("transformer.h.0.weight", "the layout is unknown"),
    ],
)
def test_the_names_of_the_weights_give_a_relative_away(name, message, tmp_path):
    folder = write_config(tmp_path / "model", model_type="llada", d_model=8)
    save_file({name: torch.zeros(1)}, folder / "model.safetensors")
    with pytest.raises(ValueError, match=message):
        read_config(folder)


def ids_of(config):
    return config.mask_token_id, config.eos_token_id, config.pad_token_id


def test_ids_come_from_the_config_then_the_tokenizer_then_the_table(tiny_dir, tmp_path):
    illada = {"mask_token_id": 5, "eos_token_id": 2, "pad_token_id": 1, "bos_token_id": 0}
    assert ids_of(read_config(write_config(tmp_path / "a", model_type="llada", d_model=8, **illada))) == (5, 2, 1)
    published = read_config(write_config(tmp_path / "b", model_type="llada", d_model=8, vocab_size=126464))
    assert ids_of(published) == (126336, 126081, 126081)
    dream = read_config(write_config(tmp_path / "c", model_type="Dream", vocab_size=152064))
    assert ids_of(dream) == (151666, 151643, 151643) and start_token_of(dream) == 151665
    shutil.copytree(tiny_dir, tmp_path / "d")
    raw = json.loads((tiny_dir / "config.json").read_text())
    expected = [raw.pop(name) for name in ("mask_token_id", "eos_token_id", "pad_token_id")]
    assert ids_of(read_config(write_config(tmp_path / "d", **raw))) == tuple(expected)


def test_start_tokens(llada, dream, tmp_path):
    assert start_token_of(llada.config) is None
    assert start_token_of(dream.config) == 100
    fields = {"model_type": "a2d-qwen2", "mask_token_id": 5, "eos_token_id": 2, "pad_token_id": 1, "vocab_size": 9}
    shifted = read_config(write_config(tmp_path / "a", **fields, right_shift_logits=True))
    assert start_token_of(shifted) == 2  # Qwen has no start token
    assert start_token_of(read_config(write_config(tmp_path / "b", **fields, right_shift_logits=False))) is None


def test_another_models_tokenizer(dream, tiny_dir):
    with pytest.raises(ValueError, match="tokens for 103 embedding rows"):
        check_tokenizer(dream.config, load_tokenizer(tiny_dir), tiny_dir)


def test_sdars_tokenizer_may_end_with_its_turns():
    """Qwen's tokenizers for chats call `<|im_end|>` their end token; the config's, of texts, is another."""
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"eos_token": "<|im_end|>", "mask_token": "<|MASK|>"})
    ids = {"mask_token_id": tokenizer.mask_token_id, "eos_token_id": 2, "vocab_size": 102}
    config = FAMILIES["sdar"].config_class(**ids)
    assert tokenizer.eos_token_id not in (None, 2)
    check_tokenizer(config, tokenizer, "folder")
    tokenizer.eos_token = "w5"
    with pytest.raises(ValueError, match="eos_token_id=2 in config.json"):
        check_tokenizer(config, tokenizer, "folder")


def test_dreams_tokenizer_needs_no_remote_code(tmp_path, dream_dir):
    """Dream's folder has no tokenizer.json, and names a class of its own, which is Qwen2's; an export names Qwen2's."""
    words = {symbol: place for place, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    added = {str(256 + place): text for place, text in enumerate(["<|endoftext|>", "<|beginoftext|>", "<|mask|>"])}
    (tmp_path / "vocab.json").write_text(json.dumps(words))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    flags = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False) | {"special": True}
    values = {
        "added_tokens_decoder": {place: {"content": text, **flags} for place, text in added.items()},
        "auto_map": {"AutoTokenizer": ["tokenization_dream.DreamTokenizer", None]},
        "tokenizer_class": "DreamTokenizer",
        "bos_token": "<|beginoftext|>",
        "eos_token": "<|endoftext|>",
        "mask_token": "<|mask|>",
        "pad_token": "<|endoftext|>",
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(values))
    shutil.copy(dream_dir / "config.json", tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    plain = Tokenizer(models.BPE(words, []))
    plain.pre_tokenizer, plain.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    assert tokenizer("a b<|mask|>").input_ids == [*plain.encode("a b").ids, 258]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.mask_token_id) == (257, 256, 258)
    export_folder(load_file(dream_dir / "model.safetensors"), tmp_path, tmp_path / "out", torch.float32)
    exported = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert exported == {key: value for key, value in values.items() if key != "auto_map"} | {
        "tokenizer_class": "Qwen2Tokenizer"
    }


@pytest.fixture(params=["llada", "dream", "llama3", "qwen3"])
def family_model(request, tmp_path):
    """A model of each arithmetic: no shift, biases, scaled frequencies, norms of queries and keys with a tied head."""
    if request.param in ("llada", "dream"):
        return request.getfixturevalue(request.param)
    return load_pretrained(write_adapted(tmp_path, request.param))[0]


def test_nothing_but_weights_is_loaded_and_rotary_tables_are_the_formula(family_model):
    """No buffer that a loader could leave as garbage; what the first layer gets is cos and sin of the formula."""
    assert not list(family_model.buffers())
    layer_class = family_of(family_model.config).layer_class
    layer = next(module for module in family_model.modules() if isinstance(module, layer_class))
    seen = []
    layer.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[1:3]))
    family_model(input_ids=torch.tensor([[5, 6, 7, 8]]))
    ((cos, sin),) = seen
    config = family_model.config
    head_dim = cos.shape[-1]
    rope = getattr(config, "rope_parameters", None) or {"rope_theta": config.rope_theta, "rope_type": "default"}
    frequencies = [rope["rope_theta"] ** (-2 * place / head_dim) for place in range(head_dim // 2)]
    if rope["rope_type"] == "llama3":  # factor 8 below 1 turn in 16 positions, none above 4
        turns = [16 * each / 6.283185307179586 for each in frequencies]
        kept = [min(max((each - 1) / 3, 0), 1) for each in turns]
        assert 0 < sum(kept) < len(kept)
        frequencies = [each * (share + (1 - share) / 8) for each, share in zip(frequencies, kept, strict=True)]
    angles = torch.arange(4.0, dtype=torch.float64)[:, None] * torch.tensor(frequencies * 2, dtype=torch.float64)
    torch.testing.assert_close(cos[0, 0], angles.cos().float(), atol=1e-6, rtol=0)
    torch.testing.assert_close(sin[0, 0], angles.sin().float(), atol=1e-6, rtol=0)


def test_rotary_fields_of_transformers_4_and_5_mean_the_same():
    scaling = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}
    old = read_rope("x", 5.0, scaling | {"type": "llama3"})
    new = read_rope("x", 1.0, scaling | {"rope_type": "llama3", "rope_theta": 5.0})
    assert {name: old[name] for name in new} == new
    assert read_rope("x", 5.0, {}) == {"rope_theta": 5.0, "rope_type": "default"}


def test_adapters_on_matrices_with_biases(dream):
    """Every matrix of a layer takes adapters, the head does not; merged, names and logits are the model's again."""
    ids = torch.tensor([[5, 6, 7, 8]])
    expected = dream(input_ids=ids).logits
    names = {name for name, _ in dream.named_parameters()}
    with pytest.raises(ValueError, match="lm_head not in the model; it has down_proj, gate_proj"):
        add_adapters(dream, 2, 4.0, 0.0, ["lm_head"], 0)
    add_adapters(dream, 2, 4.0, 0.0, ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "down_proj"], 0)
    torch.testing.assert_close(dream(input_ids=ids).logits, expected)
    merged, _ = split_adapters(dict(dream.named_parameters()))
    assert set(merged) == names


def test_new_weights(dream_dir):
    source = NewWeights(read_config(dream_dir), 0)
    assert source.tensor("model.layers.0.self_attn.q_proj.bias").eq(0).all()
    assert source.tensor("model.norm.weight").eq(1).all()


def loss_and_saved_bytes(model, ids):
    sizes = []

    def pack(tensor):
        sizes.append(tensor.nbytes)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        return model(input_ids=ids).logits.square().sum(), sum(sizes)


def test_checkpointed_layers_change_no_gradient_and_save_memory(family_model):
    """None, half, all: what autograd keeps falls with each, and every gradient stays to the last bit."""
    ids = torch.tensor([[5, 6, 7, 8]])
    num_layers = family_model.config.num_hidden_layers
    assert num_layers > 1
    found, kept = [], []
    for count in (0, num_layers // 2, num_layers):
        family_model.checkpoint_layers(count)
        family_model.train().zero_grad()
        loss, saved = loss_and_saved_bytes(family_model, ids)
        kept.append(saved)
        loss.backward()
        found.append([loss.detach(), *(parameter.grad for parameter in family_model.parameters())])
    assert kept[0] > kept[1] > kept[2]
    for others in found[1:]:
        assert all(torch.equal(one, other) for one, other in zip(found[0], others, strict=True))


def test_checkpointed_layers_are_spread_and_the_last_is_stored():
    layers = DecoderLayers([nn.Identity() for _ in range(8)])

    def chosen(count):
        layers.num_checkpointed = count
        return [index for index in range(8) if layers.is_checkpointed(index)]

    assert [chosen(0), chosen(2), chosen(4)] == [[], [0, 4], [0, 2, 4, 6]]
    assert chosen(7) == list(range(7)) and chosen(8) == list(range(8))
    assert all(len(chosen(count)) == count for count in range(9))


def test_left_padding_does_not_change_an_answer(family_model):
    short, lengths = torch.tensor([[5, 6, 7]]), {"steps": 4, "gen_length": 4, "block_length": 4}
    padded = torch.cat([torch.full((1, 3), 9), short], dim=1)
    attention = torch.tensor([[False] * 3 + [True] * 3])
    together = generate(family_model, padded, attention_mask=attention, **lengths)[:, 6:]
    assert torch.equal(together, generate(family_model, short, **lengths)[:, 3:])


def test_every_row_of_the_table_names_its_classes():
    for name, family in FAMILIES.items():
        fields = {"right_shift_logits": True} if name.startswith("a2d") else SIZES.get(name, {})
        assert family.model_class.config_class is family.config_class
        assert family_of(family.config_class(**fields)) is family
