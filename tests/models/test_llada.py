import pytest
import torch

from lift_ds.models.layers import rotary_frequencies, rotary_tables
from lift_ds.models.llada import LLaDAConfig, LLaDAModelLM


def test_logits_equal_the_public_code(llada, vectors):
    logits = llada(input_ids=vectors["forward.input_ids"]).logits
    torch.testing.assert_close(logits, vectors["forward.logits"], atol=1e-5, rtol=1e-5)


def test_8b_has_the_published_size():
    with torch.device("meta"):
        model = LLaDAModelLM(LLaDAConfig())
    parameters = list(model.parameters())
    assert len(parameters) == 291
    assert sum(parameter.numel() for parameter in parameters) == 8_015_581_184


def test_gradient_checkpointing_changes_no_gradient(llada, vectors):
    ids = vectors["forward.input_ids"]
    llada.train()

    def gradients():
        llada.zero_grad()
        llada(input_ids=ids).logits.square().sum().backward()
        return [parameter.grad.clone() for parameter in llada.parameters()]

    plain = gradients()
    calls = []
    hooks = [block.register_forward_pre_hook(lambda *_: calls.append(1)) for block in llada.model.blocks]
    llada.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    checkpointed = gradients()
    for hook in hooks:
        hook.remove()
    assert len(calls) == 4  # two blocks, each run again in backward
    for one, other in zip(plain, checkpointed, strict=True):
        torch.testing.assert_close(one, other)


def test_padding_is_not_attended_to(llada):
    ids = torch.tensor([[5, 6, 7, 8]])
    padded = torch.tensor([[5, 6, 7, 8, 99, 99]])
    attention = torch.tensor([[True] * 4 + [False] * 2])
    alone = llada(input_ids=ids).logits
    torch.testing.assert_close(llada(input_ids=padded, attention_mask=attention).logits[:, :4], alone)
    assert not torch.allclose(llada(input_ids=padded).logits[:, :4], alone)


def test_every_position_sees_every_other(llada):
    ids = torch.tensor([[5, 6, 7, 8]])
    changed = torch.tensor([[5, 6, 7, 9]])
    assert not torch.allclose(llada(input_ids=ids).logits[:, 0], llada(input_ids=changed).logits[:, 0])


def test_rotary_tables_are_the_formula():
    cos, sin = rotary_tables(torch.tensor([[0, 3]]), rotary_frequencies(4, 100.0))
    # frequencies 100^0 and 100^(-1/2) = 0.1, so the angles of position 3 are 3 and 0.3
    angles = torch.tensor([3.0, 0.3, 3.0, 0.3])
    torch.testing.assert_close(cos[0, 0, 1], angles.cos())
    torch.testing.assert_close(sin[0, 0, 1], angles.sin())
    assert cos[0, 0, 0].tolist() == [1.0] * 4


def test_grouped_key_value_heads_and_tied_weights():
    config = LLaDAConfig(
        d_model=16, n_layers=1, n_heads=4, n_kv_heads=2, mlp_hidden_size=8, vocab_size=11, weight_tying=True
    )
    model = LLaDAModelLM(config)
    assert "model.transformer.ff_out.weight" not in dict(model.named_parameters())
    assert model(input_ids=torch.tensor([[1, 2, 3]])).logits.shape == (1, 3, 11)


def test_variants_that_are_not_computed_are_refused():
    with pytest.raises(ValueError, match="include_bias=True is not implemented"):
        LLaDAConfig(include_bias=True)


def test_labels_are_refused(llada):
    with pytest.raises(ValueError, match="sft_loss"):
        llada(input_ids=torch.tensor([[1]]), labels=torch.tensor([[1]]))
