import pytest
import torch

from lift_ds.config.training import OptimConfig
from lift_ds.data.batch import collate, stand_in
from lift_ds.objectives import make_objective, objective_settings
from lift_ds.training.normalizer import document_scale, step_counts
from lift_ds.training.optimizer import learning_rate
from tests.distributed.jobs import make_documents

LIFT3 = make_objective(objective_settings(method="lift3"))


@pytest.fixture
def batches():
    documents, noises = make_documents(3, [0.2, 0.5, 0.9], {1})
    return [collate(documents[:2], noises[:2], 99), collate(documents[2:], noises[2:], 99)]


def test_counts(batches):
    response, kept, documents = step_counts(batches, LIFT3).tolist()
    assert response == sum(int(batch.response_mask.sum()) for batch in batches)
    assert kept == sum(int(LIFT3.num_targets(batch).sum()) for batch in batches)
    assert 0 < kept < response
    assert documents == 3


def test_a_stand_in_counts_for_nothing():
    document, noise = stand_in(99)
    assert step_counts([collate([document], [noise], 99)], LIFT3).tolist() == [0, 0, 0]


def test_scales(batches):
    totals = torch.tensor([40.0, 16.0, 8.0])
    batch = batches[0]
    length = int(batch.response_mask[0].sum())
    assert document_scale(batch, "response_tokens", totals, 4).tolist() == pytest.approx([1 / 40] * 2)
    assert document_scale(batch, "masked_tokens", totals, 4).tolist() == pytest.approx([1 / 16] * 2)
    # mean over 8 documents of sum / response length; a document without response has length 1, its sum is 0
    assert document_scale(batch, "per_example", totals, 4).tolist() == pytest.approx([1 / (8 * length), 1 / 8])
    # B L minus prompt tokens, padding counted
    prompts = int((batch.attention_mask & ~batch.response_mask).sum())
    expected = 1 / (4 * (batch.clean_ids.numel() - prompts))
    assert document_scale(batch, "reference", totals, 4).tolist() == pytest.approx([expected] * 2)


def test_learning_rates():
    def rates(**changes):
        optim = OptimConfig(steps=10, lr=1.0, warmup_ratio=0.2, **changes)
        return [round(learning_rate(step, optim), 4) for step in range(10)]

    assert rates(schedule="constant") == [0.5] + [1.0] * 9
    assert rates(schedule="linear") == [0.5, 1.0, 1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125]
    assert rates(schedule="linear", min_lr_ratio=0.5)[-1] == 0.5625
    cosine = rates(schedule="cosine")
    assert cosine[2] == 1.0
    assert cosine[6] == 0.5
    assert cosine[3:] == sorted(cosine[3:], reverse=True)
