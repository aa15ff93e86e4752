import math

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from lift_ds.method import loss as module
from lift_ds.method.loss import chunked_gold_logprob, chunked_weighted_nll

ROWS, WIDTH, VOCABULARY = 23, 8, 50


@pytest.fixture(params=[1, 7, 1000], ids="{} rows a chunk".format)
def chunk(request, monkeypatch):
    monkeypatch.setitem(module.CHUNK_BYTES, "cpu", 4 * request.param * VOCABULARY)


def draw(dtype=torch.float32, num_rows=ROWS):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(num_rows, WIDTH, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(VOCABULARY, WIDTH, generator=generator).to(dtype).requires_grad_()
    gold_ids = torch.randint(VOCABULARY, (num_rows,), generator=generator)
    return hidden, weight, gold_ids, torch.rand(num_rows, generator=generator)


def plain(hidden, weight, gold_ids, row_weights):
    """The same by autograd, with all logits, in float32."""
    nll = F.cross_entropy(hidden.float() @ weight.float().T, gold_ids, reduction="none")
    return (nll * row_weights).sum(), nll


def gradients(function, hidden, weight, *rest, upstream=3.0):
    loss, nll = function(hidden, weight, *rest)
    wanted = [each for each in (hidden, weight) if each.requires_grad]
    return loss.detach(), nll.detach(), *torch.autograd.grad(loss * upstream, wanted)


def test_arithmetic():
    # two classes with logits 0 and ln 3: p = 1/4 and 3/4
    hidden, weight = torch.ones(2, 1), torch.tensor([[0.0], [math.log(3.0)]])
    gold_ids = torch.tensor([1, 0])
    assert chunked_gold_logprob(hidden, weight, gold_ids).tolist() == pytest.approx([math.log(0.75), math.log(0.25)])
    loss, nll = chunked_weighted_nll(hidden, weight, gold_ids, torch.tensor([2.0, 0.5]))
    assert nll.tolist() == pytest.approx([-math.log(0.75), -math.log(0.25)])
    assert loss.item() == pytest.approx(-2 * math.log(0.75) - 0.5 * math.log(0.25))


@pytest.mark.parametrize("frozen", [(), (0,), (1,)], ids=["all trained", "body frozen", "head frozen"])
def test_equals_autograd_in_float32(chunk, frozen):
    inputs = draw()
    for place in frozen:
        inputs[place].requires_grad_(False)
    for ours, expected in zip(gradients(chunked_weighted_nll, *inputs), gradients(plain, *inputs), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-6 * float(expected.abs().max()))


def test_equals_autograd_in_bf16_within_rounding(chunk):
    inputs = draw(torch.bfloat16)
    for ours, expected in zip(gradients(chunked_weighted_nll, *inputs), gradients(plain, *inputs), strict=True):
        assert ours.dtype == expected.dtype
        torch.testing.assert_close(ours, expected, rtol=0, atol=2**-7 * float(expected.abs().max()))


def test_weights_are_per_row(chunk):
    hidden, weight, gold_ids, _ = draw()
    only_third = F.one_hot(torch.tensor(3), ROWS).float()
    _, _, hidden_gradient, _ = gradients(chunked_weighted_nll, hidden, weight, gold_ids, only_third)
    assert hidden_gradient.abs().sum(-1).nonzero().flatten().tolist() == [3]


def test_large_logits_do_not_overflow():
    hidden, weight, gold_ids, row_weights = draw()
    loss, nll, *found = gradients(chunked_weighted_nll, hidden * 1e4, weight, gold_ids, row_weights)
    assert nll.isfinite().all() and all(gradient.isfinite().all() for gradient in (loss, *found))


def test_gold_logprob_is_the_negative_loss(chunk):
    for dtype in (torch.float32, torch.bfloat16):
        hidden, weight, gold_ids, row_weights = draw(dtype)
        found = chunked_gold_logprob(hidden, weight, gold_ids)
        assert found.dtype == torch.float32 and not found.requires_grad
        torch.testing.assert_close(-found, plain(hidden, weight, gold_ids, row_weights)[1].detach())


def test_no_rows_give_zero_attached_to_the_graph():
    hidden, weight, gold_ids, row_weights = draw(num_rows=0)
    loss, nll, hidden_gradient, weight_gradient = gradients(chunked_weighted_nll, hidden, weight, gold_ids, row_weights)
    assert loss == 0 and nll.shape == (0,) and hidden_gradient.shape == (0, WIDTH)
    assert weight_gradient.abs().sum() == 0


def test_tied_matrix_adds_both_gradients():
    """The matrix is both embedding and head."""
    _, weight, gold_ids, row_weights = draw()
    ids = gold_ids.flip(0)
    ours = torch.autograd.grad(chunked_weighted_nll(weight[ids], weight, gold_ids, row_weights)[0], weight)[0]
    expected = torch.autograd.grad(plain(weight[ids], weight, gold_ids, row_weights)[0], weight)[0]
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-6 * float(expected.abs().max()))


def test_a_loss_that_is_not_finite_has_no_finite_gradient():
    """Softmax alone would give a finite one where only the gold logit is -inf, and the step would be applied."""
    hidden = torch.tensor([[1.0], [0.0]], requires_grad=True)
    matrix = torch.tensor([[0.0], [-torch.inf]])
    gold_ids, row_weights = torch.tensor([1, 0]), torch.ones(2)
    loss, nll = chunked_weighted_nll(hidden[:1], matrix, gold_ids[:1], row_weights[:1])
    assert nll[0] == torch.inf
    assert torch.autograd.grad(loss, hidden)[0][0].isnan().all()


def test_a_second_backward_is_refused():
    """The kept gradients are scaled in place and handed on: a second pass would scale them twice."""
    loss, _ = chunked_weighted_nll(*draw())
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="a second backward"):
        loss.backward()


def test_no_gradient_is_made_where_none_is_wanted(monkeypatch):
    """Measuring a loss must not cost a float32 copy of the vocabulary matrix, also where that is a parameter."""
    made = []
    empty_like = torch.empty_like
    monkeypatch.setattr(
        torch, "empty_like", lambda *given, **named: made.append(given[0].shape) or empty_like(*given, **named)
    )
    inputs = draw()
    with torch.no_grad():
        measured, _ = chunked_weighted_nll(*inputs)
    assert (VOCABULARY, WIDTH) not in made and not measured.requires_grad
    trained, _ = chunked_weighted_nll(*inputs)
    assert (VOCABULARY, WIDTH) in made and trained.item() == measured.item()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_chunks_are_as_even_as_can_be_and_never_larger(dtype):
    """23 rows at 10 a chunk: three chunks of 8, 8 and 7; autocast gives float32 sums of bf16 products."""
    hidden, weight = (each.detach() for each in draw(dtype)[:2])
    limit = 4 * 10 * VOCABULARY
    assert [len(logits) for _, logits in module.chunked_logits(hidden, weight, limit)] == [8, 8, 7]
    with torch.autocast("cpu", torch.bfloat16):
        logits = torch.cat([logits for _, logits in module.chunked_logits(hidden, weight, limit)])
    expected = hidden.bfloat16().double() @ weight.bfloat16().double().T
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits.double(), expected, rtol=0, atol=1e-6 * float(expected.abs().max()))


def test_easy_bf16_tokens_do_not_tie():
    """Logits 24, 24.03 and 24.06: in bf16, whose steps are 0.125 there, all three would be 24."""
    hidden = torch.ones(1, 2, dtype=torch.bfloat16)
    weight = torch.tensor([[24.0, 0.0], [24.0, 0.03], [24.0, 0.06]]).bfloat16()
    found = [float(chunked_gold_logprob(hidden, weight, torch.tensor([gold]))) for gold in range(3)]
    expected = (hidden.double() @ weight.double().T).log_softmax(-1)[0].tolist()
    assert found == pytest.approx(expected, abs=1e-5) and found[0] < found[1] < found[2]
