"""A level for each block of a document: noise, choice, loss and counts, against plain loops and enumeration."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from lift_ds import block_sft_loss
from lift_ds.data.batch import Document, Noise, collate
from lift_ds.method.components import Component
from lift_ds.method.noise import superset_mask
from lift_ds.method.selection import num_kept, select_kept
from lift_ds.objectives import make_objective, objective_settings
from lift_ds.objectives.gift import gift_levels
from lift_ds.training.draws import make_noise_rule
from lift_ds.training.step import DiffusionStep
from lift_ds.training.wanted import doubts, nums_kept, want
from tests.models.block_vectors import load

SIZE = 4  # tokens of a block of sdar_tiny
LENGTHS = (22, 13, 30)


def settings(method="lift3", **options):
    return objective_settings(method, level_per="block", **options)


def make_documents(lengths=LENGTHS, prompt=5, fillers=0):
    """Documents with a prompt that ends inside a block, and end tokens that only fill up every second response."""
    generator = np.random.default_rng(7)
    documents = []
    for place, length in enumerate(lengths):
        ids, at = generator.integers(0, 240, length), np.arange(length)
        is_filler = (at >= length - fillers) & (place % 2 == 0)
        documents.append(Document(ids, at >= prompt, is_filler, sample_id=place + 3, epoch=1, where="made"))
    return documents


def make_batch(asked, documents=None, step=2):
    documents = documents or make_documents()
    noises = make_noise_rule(asked, 5, len(documents), SIZE)(
        documents, step, [(row, 0) for row in range(99)][: len(documents)]
    )
    batch = collate(documents, noises, 247)
    if make_objective(asked).reads_difficulty:
        generator = torch.Generator().manual_seed(1)
        batch = replace(batch, difficulty=torch.rand(batch.clean_ids.shape, generator=generator) * 5)
    return batch


def blocks_of(batch):
    """Row, block, and its tokens, of all blocks that lie on a document."""
    for row, length in enumerate(batch.lengths):
        for block in range(-(-length // SIZE)):
            yield row, block, slice(block * SIZE, min((block + 1) * SIZE, length))


def test_each_block_draws_its_own():
    """A block's numbers do not depend on how long its document is, on its neighbours or on the micro-batch."""
    rule = make_noise_rule(settings(t_sampling="iid"), 5, 8, SIZE)
    documents = make_documents()
    together = rule(documents, 0, [])
    (alone,) = rule(documents[2:], 4, [])
    for name in ("t", "rho", "component", "count_uniform", "uniforms"):
        assert np.array_equal(getattr(together[2], name), getattr(alone, name))
    assert [len(noise.t) for noise in together] == [6, 4, 8]
    cut = replace(documents[2], ids=documents[2].ids[:9], response_mask=documents[2].response_mask[:9])
    (shorter,) = rule([cut], 0, [])
    assert np.array_equal(shorter.t, alone.t[:3])
    assert len({*np.concatenate([noise.t for noise in together]).tolist()}) == 18
    (by_document,) = make_noise_rule(objective_settings("lift3", t_sampling="iid"), 5, 8)(documents[2:], 0, [])
    assert np.array_equal(by_document.uniforms, alone.uniforms)  # masks and ties are the tokens' own


def test_stratified_levels_are_spread_over_blocks():
    """Of 40 documents with 20 blocks each, every tenth of t has close to a tenth of all blocks, in any step."""
    documents = make_documents([80] * 40)
    for step in range(3):
        noises = make_noise_rule(settings(), 5, 40, SIZE)(documents, step, [(slot, 0) for slot in range(40)])
        counts = np.histogram(np.concatenate([noise.t for noise in noises]), bins=10, range=(0, 1))[0]
        assert abs(counts - 80).max() <= 4
        first = np.histogram([noise.t[0] for noise in noises], bins=10, range=(0, 1))[0]
        assert abs(first - 4).max() <= 1


def test_levels_end_where_they_are_told_to():
    noises = make_noise_rule(settings("vanilla", t_min=0.3, t_max=0.8), 5, 3, SIZE)(make_documents(), 0, [(0, 0)] * 3)
    levels = np.concatenate([noise.t for noise in noises])
    assert 0.3 <= levels.min() < 0.4 and 0.7 < levels.max() <= 0.8
    with pytest.raises(ValueError, match="objective.t_max=0.2: it must be above objective.t_min=0.3"):
        settings("vanilla", t_min=0.3, t_max=0.2)


@pytest.mark.parametrize("method", ["lift2", "lift3", "easy", "hard", "random"])
def test_the_choice_is_a_plain_loop_over_blocks(method):
    """Superset, how many are kept and which: `select_kept` of each block alone, at its own level."""
    objective = make_objective(settings(method))
    batch = make_batch(settings(method), make_documents(fillers=3))
    candidates = objective.noise(batch)
    scores = -torch.rand(batch.clean_ids.shape, generator=torch.Generator().manual_seed(0))
    targets = objective.choose(batch, candidates, scores).targets
    t, rho, component, v = map(batch.by_document, (batch.t, batch.rho, batch.component, batch.count_uniform))
    expected, masked = torch.zeros_like(targets), torch.zeros_like(targets)
    learnable = batch.response_mask & ~batch.filler_mask
    for row, block, part in blocks_of(batch):
        one = (slice(row, row + 1), part)
        level, extra = t[row, block][None], rho[row, block][None]
        superset = superset_mask(batch.mask_uniform[one], learnable[one], level, extra)
        chosen = select_kept(
            scores[one], superset, level, extra, component[row, block][None], scores=batch.tie_uniform[one],
            v=v[row, block][None],
        )  # fmt: skip
        fillers = batch.filler_mask[one] & (batch.mask_uniform[one] < level)
        expected[one], masked[one] = chosen | fillers, superset | fillers
    assert torch.equal(targets, expected) and torch.equal(candidates.masked, masked)
    assert torch.equal(objective.num_targets(batch), expected.sum(-1))
    assert 0 < expected.sum() < masked.sum()
    if method not in ("random", "easy", "hard"):
        assert (
            len(batch.component[batch.spans(candidates.superset).any(-1)].unique()) == {"lift2": 2, "lift3": 3}[method]
        )


def test_gift_takes_the_mean_of_a_block():
    objective = make_objective(settings("gift"))
    batch = make_batch(settings("gift"))
    entropy = torch.rand(batch.clean_ids.shape, generator=torch.Generator().manual_seed(0))
    levels = objective.choose(batch, objective.noise(batch), entropy).levels
    t = batch.by_document(batch.t)
    for row, block, part in blocks_of(batch):
        one = (slice(row, row + 1), part)
        expected = gift_levels(entropy[one], batch.response_mask[one], t[row, block][None])
        torch.testing.assert_close(levels[one], expected)


@pytest.mark.parametrize("method", ["vanilla", "lift3"])
@pytest.mark.parametrize("is_packed", [False, True])
def test_the_steps_loss_weighs_each_block_by_its_level(method, is_packed):
    """sum over blocks of 1 / t of the block times the CE of what is masked there, document by document, by hand."""
    model, asked = load("sdar_tiny"), settings(method)
    batch = make_batch(asked)
    root = DiffusionStep(model, make_objective(asked), is_packed=is_packed)
    seen = {}
    view = root.objective.view
    root.objective.view = lambda batch, choice: seen.update(choice=choice) or view(batch, choice)
    loss, result = root(batch, torch.full((3,), 1 / 50))
    targets, t = seen["choice"].targets, batch.by_document(batch.t)
    expected = 0.0
    for row, length in enumerate(batch.lengths):
        weights = 1 / t[row].repeat_interleave(SIZE)[:length]
        ids, masked = batch.clean_ids[row, :length], targets[row, :length]
        expected += block_sft_loss(model, ids[None], masked[None], weights[None], 50)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    loss.backward()
    learned = torch.stack([targets[row, part].sum() for row, _, part in blocks_of(batch)])
    on_documents = torch.tensor([row * 8 + block for row, block, _ in blocks_of(batch)])
    assert torch.equal(result.num_kept[on_documents], learned) and int(result.num_kept.sum()) == int(learned.sum())
    assert torch.equal(result.gradient_norms > 0, result.num_kept > 0)


@pytest.mark.parametrize("name", ["sdar_tiny", "llada2_tiny"])
def test_packed_equals_padded(name):
    model = load(name)
    for method, options in (("lift3", {}), ("lift3", {"scoring": "approximate"}), ("gift", {})):
        batch = make_batch(settings(method, **options))
        pair = [
            DiffusionStep(model, make_objective(settings(method, **options)), is_packed=is_packed)(
                batch, torch.full((3,), 1 / 50)
            )
            for is_packed in (False, True)
        ]
        torch.testing.assert_close(pair[0][0], pair[1][0], rtol=1e-5, atol=0)
        assert torch.equal(pair[0][1].num_kept, pair[1][1].num_kept)


def test_the_expected_loss_is_that_of_the_blocks():
    """All 2^6 masks of a document with their probabilities: the step's mean is the sum of the blocks' own means.

    A block's mean is over its own masks alone, all else clean: with weights 1 / t, of which each block has another.
    """
    model, levels = load("sdar_tiny"), np.array([1.0, 0.4, 0.8])
    ids, response = np.random.default_rng(3).integers(0, 240, 10), np.arange(10) >= 4
    document = Document(ids, response, response & False, sample_id=0, epoch=0, where="made")
    root = DiffusionStep(model, make_objective(settings("vanilla")))
    places, blocks = np.arange(4, 10), [range(4), range(4, 6)]
    probability = lambda mask, level: level ** sum(mask) * (1 - level) ** (len(mask) - sum(mask))  # noqa: E731
    rest = {"rho": np.zeros(3), "component": np.full(3, 1), "count_uniform": np.zeros(3), "span_length": SIZE}
    mean = 0.0
    for mask in itertools.product([0, 1], repeat=6):
        uniforms = np.ones((2, 10), np.float32)
        uniforms[0, places[np.array(mask, bool)]] = 0
        batch = collate([document], [Noise(t=levels, uniforms=uniforms, **rest)], 247)
        with torch.no_grad():
            loss, _ = root(batch, torch.ones(1))
        share = math.prod(probability([mask[i] for i in block], levels[n]) for n, block in enumerate(blocks, 1))
        mean += share * float(loss)
    expected = 0.0
    for number, block in enumerate(blocks, 1):
        for mask in itertools.product([0, 1], repeat=len(block)):
            masked = torch.zeros(1, 10, dtype=torch.bool)
            masked[0, places[list(block)]] = torch.tensor(mask, dtype=torch.bool)
            weights = torch.full((1, 10), 1 / levels[number])
            with torch.no_grad():
                loss = block_sft_loss(model, torch.from_numpy(ids)[None], masked, weights, 1)
            expected += probability(mask, levels[number]) * float(loss)
    assert mean == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("t", "rho"), [(0.1, 0.3), (0.5, 0.5), (0.7, 0.05)])
def test_the_weights_of_a_block_sum_to_its_length(t, rho):
    """Over all supersets of a block of 4 and all roundings v: the mean of kept / t is 4."""
    wide, mean, steps = t + rho, 0.0, 10_000
    v = (torch.arange(steps) + 0.5) / steps
    for size in range(5):
        share = math.comb(4, size) * wide**size * (1 - wide) ** (4 - size)
        level = torch.full((steps,), t)
        kept = num_kept(torch.full((steps,), size), level, torch.full((steps,), rho), v=v)
        mean += share * float(kept.double().mean()) / t
    assert mean == pytest.approx(4, abs=2e-3)


def test_a_document_is_scored_for_any_block_that_asks():
    """By its blocks with a superset; a prompt's block, or an empty superset, asks for nothing."""
    asked = settings()
    (document,) = make_documents([16], prompt=8)
    uniforms = np.full((2, 16), 0.5, np.float32)
    uniforms[0, 12:] = 0.95  # nothing is masked in the last block
    noise = Noise(np.full(4, 0.6), np.full(4, 0.2), np.array([0, 2, 1, 0]), uniforms, np.zeros(4), True, SIZE)
    objective = make_objective(asked)
    assert objective.noise(collate([document], [noise], 247)).scored.tolist() == []
    noise.component[2] = int(Component.HARD)
    assert objective.noise(collate([document], [noise], 247)).scored.tolist() == [0]


def test_agreement_is_counted_where_scores_choose():
    """Tokens of random blocks agree by themselves, and are left out: by hand, block by block."""
    asked = settings(scoring="buffer")
    objective, batch = make_objective(asked), make_batch(asked)
    candidates = objective.noise(batch)
    exact = -torch.rand(batch.clean_ids.shape, generator=torch.Generator().manual_seed(4)) * 5
    found = objective.choose(batch, candidates, exact).agreement
    expected = torch.zeros(3)
    by_exact, by_table = (objective.kept(batch, candidates, each) for each in (exact, -batch.difficulty))
    component = batch.by_document(batch.component)
    for row, block, part in blocks_of(batch):
        if row in candidates.scored and component[row, block] != Component.RANDOM:
            k, size = by_exact[row, part].sum(), candidates.superset[row, part].sum()
            expected += torch.tensor([(by_exact & by_table)[row, part].sum(), k, k * k / size.clamp(min=1)])
    torch.testing.assert_close(found, expected)
    assert 0 < found[0] < found[1] < by_exact.sum()


def test_what_the_memory_is_asked():
    """The superset of the blocks that are not random, each at its level, and how many of each are kept."""
    asked = settings(scoring="memory")
    documents = make_documents()
    noises = make_noise_rule(asked, 5, 3, SIZE)(documents, 0, [(slot, 0) for slot in range(3)])
    batch = collate(documents, noises, 247)
    masks = make_objective(asked).noise(batch)
    wanted = [want(*pair) for pair in zip(documents, noises, strict=True)]
    assert all(wanted)
    by_scores = masks.superset & batch.per_token(batch.component != Component.RANDOM)
    level = batch.per_token((batch.t + batch.rho).clamp(max=1))
    kept = batch.by_document(num_kept(batch.spans(by_scores).sum(-1), batch.t, batch.rho, v=batch.count_uniform))
    for row, (each, of_spans) in enumerate(zip(wanted, nums_kept(wanted), strict=True)):
        assert each.superset.tolist() == by_scores[row].nonzero()[:, 0].tolist()
        torch.testing.assert_close(torch.from_numpy(each.levels), level[row][each.superset])
        assert each.sizes.tolist() == [
            int(by_scores[row, at : at + SIZE].sum()) for at in range(0, len(each.document.ids), SIZE)
        ]
        assert of_spans == kept[row, : len(each.sizes)].tolist()
    # k (1 - k / |S|) (1 + 1 / (1 + 3)) of each block in which some are chosen and some are not
    sizes, of_spans = wanted[0].sizes.tolist(), nums_kept(wanted)[0]
    expected = sum(k * (1 - k / size) * 1.25 for size, k in zip(sizes, of_spans, strict=True) if 0 < k < size)
    assert doubts(wanted[:1], [np.full(sum(sizes), 3)]) == [pytest.approx(expected)]
    assert expected > 0
