"""A document's logits, loss and gradients are the same alone, in a padded batch and packed with others."""

from dataclasses import replace

import pytest
import torch

from lift_ds import load_pretrained
from lift_ds.method.positions import positions
from lift_ds.models.attention import Segments
from lift_ds.models.head import encode_rows
from lift_ds.objectives import OBJECTIVES
from tests.small_models import write_adapted
from tests.training.test_step import make_batch, make_root

LENGTHS = [5, 17, 9]


@pytest.fixture
def batch():
    """Three documents of different lengths, the first two tokens of each are prompt."""
    attention = torch.arange(max(LENGTHS))[None] < torch.tensor(LENGTHS)[:, None]
    made = make_batch([0.3, 0.5, 0.8], [0.3, 0.2, 0.1], [2, 1, 0], attention & (torch.arange(max(LENGTHS)) >= 2))
    return replace(made, attention_mask=attention, lengths=LENGTHS)


@pytest.fixture(params=["llada", "dream", "a2d-qwen3"])
def model(request, tmp_path):
    """One that predicts in place, and two whose outputs are shifted inside `encode`: a document at a time."""
    if request.param == "a2d-qwen3":
        return load_pretrained(write_adapted(tmp_path, "qwen3"))[0]
    return request.getfixturevalue(request.param)


def test_logits_are_those_of_the_document_alone(model, batch):
    rows = batch.attention_mask
    packed = model.head(encode_rows(model, batch.clean_ids, batch.clean_ids, positions(rows, None), rows, LENGTHS))
    alone = [model.head(model.encode(batch.clean_ids[row : row + 1, :length])[0]) for row, length in enumerate(LENGTHS)]
    torch.testing.assert_close(packed, torch.cat(alone), rtol=1e-5, atol=1e-5)


def test_a_change_in_one_document_leaves_the_others_bit_for_bit(model, batch):
    rows = batch.attention_mask
    before = encode_rows(model, batch.clean_ids, batch.clean_ids, positions(rows, None), rows, LENGTHS)
    changed = batch.clean_ids.clone()
    changed[1] = (changed[1] + 1) % 99
    after = encode_rows(model, changed, changed, positions(rows, None), rows, LENGTHS)
    first, second, third = before.split(LENGTHS)
    assert torch.equal(first, after.split(LENGTHS)[0]) and torch.equal(third, after.split(LENGTHS)[2])
    assert not torch.equal(second, after.split(LENGTHS)[1])


@pytest.mark.parametrize("method", list(OBJECTIVES))
@pytest.mark.parametrize("num_checkpointed", [0, 1, 2])
def test_loss_and_gradients(model, batch, method, num_checkpointed):
    model.checkpoint_layers(num_checkpointed)
    found = []
    for is_packed in (False, True):
        root = make_root(model, method).train()
        root.is_packed = is_packed
        model.zero_grad()
        loss, stats = root(batch, torch.full((3,), 1 / 20))
        loss.backward()
        found.append((loss.detach(), stats.num_kept, [each.grad.clone() for each in model.parameters()]))
    (padded, padded_kept, padded_gradients), (packed, packed_kept, packed_gradients) = found
    assert torch.equal(padded_kept, packed_kept)
    torch.testing.assert_close(packed, padded, rtol=1e-5, atol=1e-6)
    for one, other in zip(packed_gradients, padded_gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * float(other.abs().max()))


def test_grouped_heads(llada, batch):
    query, key, value = torch.randn(1, 4, 31, 8), torch.randn(1, 2, 31, 8), torch.randn(1, 2, 31, 8)
    found = Segments.of(LENGTHS, torch.device("cpu"))(query, key, value, 0.0)
    wide = [each.repeat_interleave(2, dim=1) for each in (key, value)]
    place = torch.arange(3).repeat_interleave(torch.tensor(LENGTHS))
    mask = place[:, None] == place[None]
    expected = torch.nn.functional.scaled_dot_product_attention(query, *wide, attn_mask=mask)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
