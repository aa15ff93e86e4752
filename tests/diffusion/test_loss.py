import math

import pytest
import torch

from lift_ds.diffusion.loss import gold_logprob, weighted_nll


def test_gold_logprob_arithmetic():
    # two classes with logits 0 and ln 3: p = 1/4 and 3/4
    logits = torch.tensor([[0.0, math.log(3.0)], [0.0, math.log(3.0)]])
    expected = [math.log(0.75), math.log(0.25)]
    assert gold_logprob(logits, torch.tensor([1, 0])).tolist() == pytest.approx(expected)


def test_gold_logprob_is_float32_for_bf16_logits():
    logits = torch.randn(4, 9).bfloat16()
    result = gold_logprob(logits, torch.tensor([0, 1, 2, 3]))
    assert result.dtype == torch.float32
    expected = torch.log_softmax(logits.float(), -1)[range(4), range(4)]
    torch.testing.assert_close(result, expected)


def test_weighted_nll_arithmetic():
    # (2 * 1 + 4 * 0.5) / 8
    assert weighted_nll(torch.tensor([2.0, 4.0]), torch.tensor([1.0, 0.5]), 8).item() == 0.5


def test_no_rows_give_zero_attached_to_the_graph():
    weight = torch.ones(3, 5, requires_grad=True)
    rows = torch.zeros(0, 5) @ weight.T
    loss = weighted_nll(-gold_logprob(rows, torch.zeros(0, dtype=torch.long)), torch.zeros(0), 4)
    loss.backward()
    assert loss.item() == 0
    assert weight.grad.abs().sum() == 0
