"""The published fine-tuning of SDAR and LLaDA2 by keys of the config: their stored losses through the step."""

import numpy as np
import pytest
import torch

from lift_ds.data.batch import Document, Noise, collate
from lift_ds.method.noise import level_from_uniform, narrowed
from lift_ds.objectives import make_objective, objective_settings
from lift_ds.training.normalizer import document_scale, step_counts
from lift_ds.training.step import DiffusionStep
from tests.models.block_vectors import cases, check_gradients, document_positions, load

SDAR = objective_settings("vanilla", t_min=1e-3, time_scaling=True, normalizer="response_tokens")
LLADA2 = objective_settings("vanilla", t_min=0.3, t_max=0.8, time_scaling=False, normalizer="masked_tokens")


def replayed(ids, response, masked, level):
    """A document and the noise that masks these of its tokens."""
    document = Document(ids.numpy(), response.numpy(), (response & False).numpy(), sample_id=0, epoch=0, where="stored")
    uniforms = np.stack([np.where(masked.numpy(), 0.0, 1.0), np.zeros(len(ids))]).astype(np.float32)
    return document, Noise(level, 0.0, 1, uniforms)


def losses(model, asked, micro_batches, is_packed=False):
    """The loss of a step of these micro-batches, pairs of documents and noises, and its gradients."""
    root = DiffusionStep(model, make_objective(asked), is_packed=is_packed)
    batches = [collate(*map(list, zip(*pairs, strict=True)), 247) for pairs in micro_batches]
    totals = step_counts(batches, root.objective)
    model.zero_grad()
    total = 0.0
    for batch in batches:
        loss, _ = root(batch, document_scale(batch, asked.normalizer, totals, len(batches)))
        loss.backward()
        total += loss.item()
    return total


@pytest.mark.parametrize("is_packed", [False, True])
def test_sdars_stored_losses(is_packed):
    """Documents of packed rows, each at its level p, by 1 / p over the labels; a tail is a document without any."""
    model = load("sdar_tiny")
    for case, tensors in cases("sdar_tiny", "loss", "cases"):
        levels = torch.ones(tensors["masked"].shape).masked_scatter(tensors["masked"], tensors["p_mask"])
        pairs = []
        for row, positions in enumerate(document_positions(tensors["position_ids"])):
            begins = [*(positions == 0).nonzero()[:, 0].tolist(), len(positions)]
            for start, end in zip(begins[:-1], begins[1:], strict=True):
                ids, labels, masked, level = (
                    tensors[name][row, start:end] if name else levels[row, start:end]
                    for name in ("input_ids", "labels", "masked", None)
                )
                level = float(level[masked][0]) if masked.any() else 1.0
                pairs.append(replayed(ids, labels != -100, masked, level))
        loss = losses(model, SDAR, [pairs], is_packed)
        torch.testing.assert_close(loss, case["loss"], rtol=1e-5, atol=0)
        check_gradients(model, case["grad_norm"])


def test_llada2s_stored_losses():
    """The mean over a micro-batch's masked tokens, padding among them, and over micro-batches the mean of the means.

    Here it is the mean over all masked tokens of a step, which is the same where there is one micro-batch.
    """
    model, several = load("llada2_tiny"), 0
    for case, tensors in cases("llada2_tiny", "loss", "cases"):
        micro_batches = []
        for clean_ids, noisy_ids in zip(tensors["input_ids"], tensors["noisy_ids"], strict=True):
            rows = zip(clean_ids, noisy_ids == 250, strict=True)
            micro_batches.append([replayed(ids, masked | (ids == 247), masked, 0.5) for ids, masked in rows])
        loss = losses(model, LLADA2, micro_batches)
        if len(micro_batches) == 1:
            torch.testing.assert_close(loss, case["loss"], rtol=1e-5, atol=0)
            all_rows = {"model.word_embeddings.weight": case["embedding_grad_norm_all_rows"]}
            check_gradients(model, case["grad_norm"] | all_rows)
            continue
        several += 1
        alone = [losses(model, LLADA2, [each]) for each in micro_batches]
        assert np.mean(alone) == pytest.approx(case["loss"], rel=1e-5)
        assert loss == pytest.approx(np.average(alone, weights=case["masked"]), rel=1e-5)
    assert several == 4


def test_the_published_ranges():
    u = torch.linspace(0, 1, 101)
    torch.testing.assert_close(level_from_uniform(narrowed(u, 1e-3, 1.0), 1e-3), 0.999 * u + 0.001)
    torch.testing.assert_close(level_from_uniform(narrowed(u, 0.3, 0.8), 0.3), 0.3 + 0.5 * u)
    with pytest.raises(ValueError, match="t_max=0.2: allowed are 0.3"):
        narrowed(u, 0.3, 0.2)
