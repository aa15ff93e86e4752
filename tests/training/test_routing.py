"""Statistics and balance loss of experts: against plain arithmetic, in every layout, however a step is cut."""

import math

import pytest
import torch

from lift_ds.config.run import RunConfig
from lift_ds.data.batch import collate
from lift_ds.models.balance import balance, summary
from lift_ds.models.settings import ModelConfig
from lift_ds.objectives import make_objective, objective_settings
from lift_ds.training.metrics import StepTotals
from lift_ds.training.routing import require_router, response_share
from lift_ds.training.step import DiffusionStep
from tests.distributed.jobs import make_documents
from tests.models.block_vectors import load

MIXTURES = ["llada_moe_tiny", "llada2_tiny"]
FACTOR = 0.3


def test_the_loss_of_a_few_tokens():
    """Three of four tokens count, two experts each of four: 3, 2, 1 and 0 of 6 choices, E sum f P by hand."""
    probabilities = torch.tensor(
        [[0.4, 0.3, 0.2, 0.1], [0.5, 0.2, 0.2, 0.1], [0.3, 0.1, 0.4, 0.2], [0.1, 0.1, 0.1, 0.7]], requires_grad=True
    )
    chosen = torch.tensor([[0, 1], [0, 1], [2, 0], [3, 2]])
    loss, sums = balance(probabilities, chosen, torch.tensor([True, True, True, False]))
    mean = [(0.4 + 0.5 + 0.3) / 3, (0.3 + 0.2 + 0.1) / 3, (0.2 + 0.2 + 0.4) / 3, (0.1 + 0.1 + 0.2) / 3]
    expected = 4 * (3 / 6 * mean[0] + 2 / 6 * mean[1] + 1 / 6 * mean[2])
    assert loss.item() == pytest.approx(expected)
    entropy = -sum(p * math.log(p) for row in probabilities[:3].tolist() for p in row)
    assert sums.tolist() == pytest.approx([3, 2, 1, 0, entropy, 3 * expected, 3])
    loss.backward()  # 4 f_e / 3 for a token that counts
    assert probabilities.grad[0].tolist() == pytest.approx([4 * 3 / 6 / 3, 4 * 2 / 6 / 3, 4 / 6 / 3, 0])
    assert not probabilities.grad[3].any()


def test_evenness_and_its_contrary():
    even = torch.full((8, 4), 0.25)
    chosen = torch.arange(8)[:, None] % 4
    assert balance(even, chosen, torch.ones(8).bool())[0].item() == pytest.approx(1)
    one = torch.zeros(8, 4).index_fill(1, torch.tensor([2]), 1.0)
    assert balance(one, torch.full((8, 1), 2), torch.ones(8).bool())[0].item() == pytest.approx(4)
    loss, sums = balance(even, chosen, torch.zeros(8).bool())
    assert loss == 0 and not sums.any()


def test_what_a_step_says():
    """Two layers of three experts; in the first one expert has 6 of 9 choices, in the second nobody wants the last."""
    sums = torch.tensor([[6.0, 2, 1, 4.5, 10, 5], [3, 3, 0, 1.5, 8, 3]], dtype=torch.float64)
    found = summary(sums)
    assert found["expert_load"] == pytest.approx(6 / 3)  # and 3 / 2 in the second
    assert found["experts_without_tokens"] == pytest.approx(1 / 6)
    assert found["router_entropy"] == pytest.approx(6 / 8) and found["balance_loss"] == pytest.approx(18 / 8)
    assert set(summary(torch.zeros(2, 6)).values()) == {None}
    totals, other = StepTotals((2, 6)), StepTotals((2, 6))
    totals.choices += sums.float()
    other.choices += sums.float()
    totals.replace(totals.summed() + other.summed(), totals.maxima)
    assert torch.equal(totals.choices, 2 * sums)
    assert totals.record(True)["expert_load"] == 2.0 and "expert_load" not in StepTotals().record(True)


def make_step(name, **changes):
    return DiffusionStep(load(name), make_objective(objective_settings(method="vanilla")), **changes).train()


def make_batch():
    documents, noises = make_documents(3, [0.3, 0.6, 0.9], {1})
    return collate(documents, noises, 247)


def router_gradients(root, batch, factor):
    """Loss, and gradients of routers and first embeddings, of a micro-batch."""
    root.zero_grad()
    loss, result = root(batch, torch.full((len(batch.t),), 1 / 50), balance_factor=factor)
    loss.backward()
    named = {key: each.grad.clone() for key, each in root.named_parameters()}
    return loss.item(), result.choices, named


@pytest.mark.parametrize("name", MIXTURES)
def test_the_losss_gradient_in_a_model(name):
    """The gradient with the loss less that without it is that of the formula, computed from the routers' logits."""
    root, batch = make_step(name), make_batch()
    plain_loss, sums, plain = router_gradients(root, batch, None)
    with_loss, same_sums, found = router_gradients(root, batch, FACTOR)
    assert plain_loss == with_loss and torch.equal(sums, same_sums)
    logits = []
    mixtures = root.choices.mixtures
    hooks = [each.gate.register_forward_hook(lambda module, given, out: logits.append(out)) for each in mixtures]
    root.zero_grad()
    root(batch, torch.zeros(len(batch.t)))
    for hook in hooks:
        hook.remove()
    expected = 0
    copies = 2 if name == "llada2_tiny" else 1
    for row, (scores, chosen, _) in zip(sums, logits, strict=True):
        scores, chosen = (each.unflatten(0, (3, copies, -1))[:, 0][batch.response_mask] for each in (scores, chosen))
        shares = scores.softmax(-1) if copies == 1 else scores.sigmoid() / scores.sigmoid().sum(-1, keepdim=True)
        counts = torch.tensor([(chosen == expert).sum() for expert in range(scores.shape[1])])
        assert torch.equal(row[:-3].long(), counts) and row[-1] == batch.response_mask.sum()
        layer = scores.shape[1] * (counts / counts.sum() * shares.mean(0)).sum()
        assert row[-2] / row[-1] == pytest.approx(layer.item(), rel=1e-5)
        expected = expected + FACTOR * layer
    root.zero_grad()
    expected.backward()
    for key, parameter in root.named_parameters():
        wanted = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(found[key] - plain[key], wanted, rtol=1e-3, atol=1e-5, msg=key)
    assert all(mixture.gate.weight.grad.any() for mixture in mixtures)


@pytest.mark.parametrize("name", MIXTURES)
def test_layouts_and_recomputation_count_the_same(name):
    batch = make_batch()
    _, sums, padded = router_gradients(make_step(name), batch, FACTOR)
    _, packed_sums, packed = router_gradients(make_step(name, is_packed=True), batch, FACTOR)
    again = make_step(name)
    again.model.checkpoint_layers(2)
    _, same_sums, recomputed = router_gradients(again, batch, FACTOR)
    torch.testing.assert_close(packed_sums, sums, rtol=1e-5, atol=1e-5)
    assert torch.equal(same_sums, sums)
    for key in padded:
        torch.testing.assert_close(packed[key], padded[key], rtol=1e-4, atol=1e-5)
        assert torch.equal(recomputed[key], padded[key])


def test_micro_batches_add_up():
    """Counts are those of the whole; shares of the step's response tokens add up to 1, a part without any has 0."""
    root = make_step("llada_moe_tiny")
    documents, noises = make_documents(3, [0.3, 0.6, 0.9], {1})
    totals = torch.tensor([float(sum(each.response_mask.sum() for each in documents)), 0, 3])
    parts = [collate([document], [noise], 247) for document, noise in zip(documents, noises, strict=True)]
    shares = [response_share(part, totals) for part in parts]
    assert sum(shares) == pytest.approx(1) and shares[1] == 0
    found = [router_gradients(root, part, FACTOR * share)[1] for part, share in zip(parts, shares, strict=True)]
    torch.testing.assert_close(
        sum(found)[:, [*range(8), -1]], router_gradients(root, make_batch(), None)[1][:, [*range(8), -1]]
    )


def test_settings_of_routers_need_one():
    dense, mixture = load("sdar_tiny").config, load("llada2_tiny").config
    run = RunConfig(model=ModelConfig(freeze_router=True, router_aux_loss=0.01))
    with pytest.raises(ValueError, match="model.freeze_router, model.router_aux_loss: the model .sdar. has no"):
        require_router(run, dense)
    require_router(run, mixture)
    require_router(RunConfig(), dense)
