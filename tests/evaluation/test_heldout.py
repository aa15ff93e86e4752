import math
from collections import Counter, defaultdict
from dataclasses import replace

import numpy as np
import pytest
import torch

from lift_ds.evaluation.heldout import LEVELS, HeldoutLoss, fixed_noise, heldout_loss
from lift_ds.ranks.shares import Alone, equal_share
from tests.conftest import Share
from tests.distributed.jobs import make_documents


@pytest.fixture
def documents():
    return make_documents(5, [0.5] * 7, set())[0]


def measure(model, documents, batch_size=3, ranks=None, seed=1):
    return heldout_loss(model.eval(), documents, ranks or Alone(), batch_size, seed)


def test_batches_and_ranks_change_nothing(llada, documents):
    expected = measure(llada, documents)
    assert len(expected.by_level) == len(LEVELS)
    assert expected.mean == pytest.approx(sum(expected.by_level) / len(LEVELS))
    assert measure(llada, documents, batch_size=1).mean == pytest.approx(expected.mean, rel=1e-6)
    shares = [Share(rank, 3) for rank in range(3)]
    for share in shares:
        measure(llada, documents, batch_size=2, ranks=share)
    together = HeldoutLoss(*torch.stack([share.sums for share in shares]).sum(0))
    assert together.by_level == pytest.approx(expected.by_level, rel=1e-6)
    assert together.by_frequency == pytest.approx(expected.by_frequency, rel=1e-6)
    assert torch.equal(together.num_tokens, expected.num_tokens)
    alone = measure(llada, documents, batch_size=1)
    assert torch.equal(alone.num_tokens, expected.num_tokens)
    torch.testing.assert_close(alone.nll, expected.nll, rtol=1e-6, atol=1e-6)


def test_it_is_the_cross_entropy_of_the_fixed_masks(llada, documents):
    one = documents[0]
    uniform = torch.from_numpy(fixed_noise(one, 1).uniforms[0])
    ids = torch.from_numpy(one.ids)
    masked = torch.from_numpy(one.response_mask) & (uniform < 0.5)
    with torch.no_grad():
        logprob = torch.log_softmax(llada(input_ids=ids.masked_fill(masked, 100)[None]).logits[0], -1)
    expected = -logprob[masked, ids[masked]].mean().item()
    assert measure(llada, [one]).by_level[LEVELS.index(0.5)] == pytest.approx(expected, rel=1e-5)


def test_it_is_split_by_level_and_frequency(llada, documents):
    """Each masked token's -log p, computed alone, is in the cell of its level and of floor(log2) of its count."""
    documents = [replace(each, filler_mask=np.arange(len(each.ids)) == len(each.ids) - 1) for each in documents[:3]]
    counts = Counter(
        token
        for each in documents
        for token, learned, filler in zip(each.ids.tolist(), each.response_mask, each.filler_mask, strict=True)
        if learned and not filler
    )
    cells = defaultdict(list)
    for document in documents:
        uniform = torch.from_numpy(fixed_noise(document, 1).uniforms[0])
        ids = torch.from_numpy(document.ids)
        for place, level in enumerate(LEVELS):
            masked = torch.from_numpy(document.response_mask) & (uniform < level)
            with torch.no_grad():
                logprob = torch.log_softmax(llada(input_ids=ids.masked_fill(masked, 100)[None]).logits[0], -1)
            for position in masked.nonzero()[:, 0].tolist():
                if not document.filler_mask[position]:
                    token = int(ids[position])
                    cells[place, int(math.log2(counts[token]))].append(-float(logprob[position, token]))
    loss = measure(llada, documents)
    assert loss.num_tokens.shape == (len(LEVELS), int(math.log2(max(counts.values()))) + 1)
    assert max(counts.values()) >= 2  # more than one class
    assert loss.num_tokens.sum() == sum(map(len, cells.values()))
    for (place, number), values in cells.items():
        assert loss.by_level_and_frequency[place][number] == pytest.approx(sum(values) / len(values), rel=1e-5)
    rare = [value for (_, number), values in cells.items() for value in values if number == 0]
    assert loss.by_frequency[0] == pytest.approx(sum(rare) / len(rare), rel=1e-5)


def test_nothing_but_fillers_is_no_loss(llada, documents):
    loss = measure(llada, [replace(documents[0], filler_mask=documents[0].response_mask)])
    assert loss.by_frequency == ()
    assert math.isnan(loss.mean)


def test_a_level_that_masks_nothing_is_left_out(llada, documents):
    short = replace(documents[0], response_mask=np.arange(len(documents[0].ids)) == 5)
    loss = measure(llada, [short])
    masked = [value for value in loss.by_level if not math.isnan(value)]
    assert 0 < len(masked) < len(LEVELS)
    assert loss.mean == pytest.approx(sum(masked) / len(masked))


def test_equal_shares():
    shares = [equal_share("abcde", Share(rank, 3)) for rank in range(3)]
    assert [len(share) for share in shares] == [2, 2, 2]
    assert sorted(item for share in shares for item, counts in share if counts) == list("abcde")
    with pytest.raises(ValueError, match="no items"):
        equal_share([], Share(0, 1))
