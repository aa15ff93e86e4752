"""Adapters with dropout inside the root module: the masks follow the documents, and scoring has none."""

import pytest
import torch

from lift_ds import load_pretrained
from lift_ds.data.batch import collate
from lift_ds.models.keyed_dropout import KeyedDropout
from lift_ds.models.lora import add_adapters
from lift_ds.objectives import make_objective, objective_settings
from lift_ds.objectives.objective import Candidates
from lift_ds.training.noised import Noised
from lift_ds.training.step import DiffusionStep
from tests.distributed.jobs import make_documents

LEVELS = [0.2, 0.5, 0.8, 0.9]


def make_root(llada_dir, dropout=0.5, is_packed=False, checkpointing=False, **settings):
    """A root whose adapters B are not 0, so that dropout shows."""
    model, _ = load_pretrained(llada_dir)
    add_adapters(model, 4, 8.0, dropout, ["q_proj", "v_proj", "ff_out"], seed=1)
    generator = torch.Generator().manual_seed(2)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return DiffusionStep(model, make_objective(objective_settings(**settings)), is_packed=is_packed).train()


def losses_and_gradient(root, cut):
    """Sums over the micro-batches of a cut of four documents: loss, and the gradient of one adapter."""
    documents, noises = make_documents(7, LEVELS, set())
    total = 0.0
    for places in cut:
        batch = collate([documents[place] for place in places], [noises[place] for place in places], 99)
        loss, _ = root(batch, torch.full((len(places),), 0.01), (42, 7))
        loss.backward()
        total += loss.item()
    weight = root.model.model.blocks[0].q_proj.lora_A["default"].weight
    return total, weight.grad


WHOLE = [[0, 1, 2, 3]]


@pytest.mark.parametrize("settings", [{"method": "lift3"}, {"method": "vanilla", "complementary": True}])
@pytest.mark.parametrize(
    ("cut", "options"),
    [
        ([[0], [1, 2], [3]], {}),
        ([[3, 1], [2, 0]], {}),
        (WHOLE, {"is_packed": True}),
        (WHOLE, {"checkpointing": True}),
    ],
)
def test_another_cut_has_the_same_dropout(llada_dir, cut, options, settings):
    loss, gradient = losses_and_gradient(make_root(llada_dir, **settings), WHOLE)
    other, others_gradient = losses_and_gradient(make_root(llada_dir, **options, **settings), cut)
    assert other == pytest.approx(loss, rel=1e-5)
    assert (others_gradient - gradient).abs().max() <= 1e-5 * gradient.abs().max()
    without, _ = losses_and_gradient(make_root(llada_dir, dropout=0.0, **settings), WHOLE)
    assert without != pytest.approx(loss, rel=1e-3)


def test_scores_are_those_without_dropout(llada_dir):
    documents, noises = make_documents(7, LEVELS, set())
    batch = collate(documents, noises, 99)
    everything = Candidates(batch.response_mask, batch.filler_mask & False, torch.arange(4))
    scores = []
    for dropout in (0.5, 0.0):
        root = make_root(llada_dir, dropout, method="lift3")
        assert sum(isinstance(module, KeyedDropout) for module in root.modules()) == (6 if dropout else 0)
        root(batch, torch.ones(4))  # the training pass draws, and must leave nothing behind
        scores.append(root.score(Noised.of(root.objective, batch, everything, torch.ones(4))))
    assert torch.equal(*scores)
    assert scores[0].any()
