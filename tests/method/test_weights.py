import math

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from lift_ds import cart_weights, sft_loss
from lift_ds.method.loss import chunked_weighted_nll
from lift_ds.method.weights import mgdm_curve, papl_weights


def test_cart_arithmetic():
    # token 0 masked, 1 and 2 visible, p = 1/2: 1/2 (1/2 + 1/4) = 3/8; token 3 masked: 1/2 (1/4 + 1/2) = 3/8
    masked = torch.tensor([[True, False, False, True]])
    torch.testing.assert_close(cart_weights(masked, 0.5), torch.tensor([[0.375, 0.0, 0.0, 0.375]]))


@pytest.mark.parametrize("p", [0.05, 0.1, 0.9, 1.0])
def test_cart_equals_the_double_sum(p):
    masked = torch.rand(3, 40, generator=torch.Generator().manual_seed(1)) < 0.6
    visible = torch.arange(40)[None] < torch.tensor([[40], [30], [5]])
    place = torch.arange(40)
    distance = (place[:, None] - place[None]).abs()
    kernel = torch.where(distance > 0, 0.5 * p * (1 - p) ** (distance - 1).clamp(min=0).double(), 0.0)
    for context, given in ((~masked, None), (~masked & visible, visible)):
        expected = (context.double() @ kernel.T) * masked
        torch.testing.assert_close(cart_weights(masked, p, given).double(), expected, rtol=1e-5, atol=1e-7)


def test_cart_of_long_sequences_has_no_matrix():
    """The kernel is as long as it is above rounding, not as the sequence."""
    masked = torch.ones(1, 100_000, dtype=torch.bool)
    masked[0, 50_000] = False
    weights = cart_weights(masked, 0.1)
    assert weights[0, 50_001].item() == pytest.approx(0.05)
    assert weights[0, 0].item() == 0


@pytest.mark.parametrize("p", [0.0, -1.0, 1.5])
def test_cart_refuses_other_p(p):
    with pytest.raises(ValueError, match="0 < p <= 1"):
        cart_weights(torch.ones(1, 2, dtype=torch.bool), p)


def test_cart_conformance(llada, vectors, cases):
    for case in cases:
        arrays = {name: vectors[f"{case['case']}.{name}"] for name in ("clean_ids", "masked", "t", "prompt_lengths")}
        masked = arrays["masked"].bool()
        num_targets = masked.numel() - int(arrays["prompt_lengths"].sum())
        weights = cart_weights(masked, 0.1)
        loss = sft_loss(llada, arrays["clean_ids"], masked, arrays["t"], num_targets, weights=weights)
        assert loss.item() == pytest.approx(case["cart.loss_times_inverse_t"], rel=1e-5)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_mgdm_equals_autograd(gamma):
    nll = torch.tensor([0.01, 0.5, 2.0, 20.0], dtype=torch.float64, requires_grad=True)
    expected = 0.25 * (1 - torch.exp(-nll)) ** gamma * nll
    (slope,) = torch.autograd.grad(expected.sum(), nll)
    loss, derivative = mgdm_curve(0.25, gamma)(nll.detach())
    torch.testing.assert_close(loss, expected.detach())
    torch.testing.assert_close(derivative, slope)


def test_mgdm_is_finite_where_the_loss_is_0():
    loss, derivative = mgdm_curve(0.25, 0.5)(torch.zeros(2))
    assert loss.tolist() == [0, 0] and derivative.isfinite().all()


def test_papl_is_a_softmax_over_what_is_learned():
    gold_logprob = torch.tensor([[-1.0, -2.0, -3.0, -0.5], [-4.0, -4.0, -4.0, -4.0]])
    learned = torch.tensor([[True, False, True, True], [False] * 4])
    found = papl_weights(gold_logprob, learned, 2.0, 0.5)
    parts = [math.exp(-1 / 0.5), math.exp(-3 / 0.5), math.exp(-0.5 / 0.5)]
    expected = [1 + 2 * part / sum(parts) for part in parts]
    assert found[0].tolist() == pytest.approx([expected[0], 1, *expected[1:]])
    assert found[1].tolist() == [1] * 4
    assert found[0].sum().item() == pytest.approx(4 + 2)


def test_curves_go_through_the_chunks():
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(9, 4, generator=generator, requires_grad=True)
    matrix = torch.randn(20, 4, generator=generator, requires_grad=True)
    gold_ids, weights = torch.arange(9), torch.rand(9, generator=generator)
    nll = F.cross_entropy(hidden @ matrix.T, gold_ids, reduction="none")
    expected = (weights * 0.25 * (1 - torch.exp(-nll)) ** 2 * nll).sum()
    loss, _ = chunked_weighted_nll(hidden, matrix, gold_ids, weights, mgdm_curve(0.25, 2.0))
    torch.testing.assert_close(loss, expected)
    for ours, reference in zip(
        torch.autograd.grad(loss, (hidden, matrix)), torch.autograd.grad(expected, (hidden, matrix)), strict=True
    ):
        torch.testing.assert_close(ours, reference, rtol=1e-5, atol=1e-6)
