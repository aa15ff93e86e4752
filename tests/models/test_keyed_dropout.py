import pytest
import torch

from lift_ds.models.keyed_dropout import DocumentRows, KeyedDropout, document_seeds


def dropped(hidden, lengths, samples, is_packed=False, step=3, place=1, p=0.25, copies=1):
    layer = KeyedDropout(p, place).train()
    layer.rows = DocumentRows(lengths, document_seeds(42, step, samples, 1, 4), is_packed, copies)
    return layer(hidden)


def test_a_quarter_of_the_features_becomes_0_and_the_others_grow():
    """Share .25 of 200 x 64 features: standard error sqrt(.25 * .75 / 12800) = .004; kept ones are 1 / .75."""
    found = dropped(torch.ones(1, 200, 64), [200], [5])
    assert found.unique().tolist() == [0.0, pytest.approx(4 / 3)]
    assert (found == 0).float().mean().item() == pytest.approx(0.25, abs=0.016)


def test_masks_belong_to_documents_however_they_are_batched():
    """Documents of 7 and 4 tokens: alone, padded, in the other order, and packed."""
    first, second = dropped(torch.ones(1, 7, 8), [7], [5]), dropped(torch.ones(1, 4, 8), [4], [9])
    both = dropped(torch.ones(2, 7, 8), [7, 4], [5, 9])
    assert torch.equal(both[0], first[0]) and torch.equal(both[1, :4], second[0])
    assert not both[1, 4:].any()
    swapped = dropped(torch.ones(2, 7, 8), [4, 7], [9, 5])
    assert torch.equal(swapped[1], first[0]) and torch.equal(swapped[0, :4], second[0])
    packed = dropped(torch.ones(1, 11, 8), [7, 4], [5, 9], is_packed=True)
    assert torch.equal(packed[0], torch.cat([first[0], second[0]]))


def test_copies_have_masks_of_their_own_and_the_first_has_that_of_one():
    """Two documents, noised and clean: padded, packed and alone."""
    alone = [dropped(torch.ones(1, length, 8), [length], [sample]) for length, sample in ((7, 5), (4, 9))]
    padded = dropped(torch.ones(2, 14, 8), [7, 4], [5, 9], copies=2)
    packed = dropped(torch.ones(1, 22, 8), [7, 4], [5, 9], is_packed=True, copies=2)
    assert torch.equal(padded[0, :7], alone[0][0]) and torch.equal(padded[1, :4], alone[1][0])
    assert not torch.equal(padded[0, 7:], padded[0, :7]) and not torch.equal(padded[1, 7:11], padded[1, :4])
    assert not padded[1, 4:7].any() and not padded[1, 11:].any()
    assert torch.equal(packed[0], torch.cat([padded[0, :7], padded[1, :4], padded[0, 7:], padded[1, 7:11]]))


@pytest.mark.parametrize("change", [{"step": 4}, {"place": 2}, {"samples": [6]}])
def test_another_step_place_or_document_draws_another_mask(change):
    before = {"hidden": torch.ones(1, 7, 8), "lengths": [7], "samples": [5]}
    assert not torch.equal(dropped(**before), dropped(**(before | change)))


def test_seen_twice_a_document_has_two_masks_and_the_first_stays_the_same():
    twice = document_seeds(42, 3, [5, 9], 2, 4)
    assert len(twice) == 4 and twice[0] != twice[2]
    assert twice[:2] == document_seeds(42, 3, [5, 9], 1, 4)


def test_nothing_happens_outside_training_and_global_generators_stay():
    before = torch.random.get_rng_state()
    assert torch.equal(KeyedDropout(0.5, 0).eval()(torch.ones(2, 3)), torch.ones(2, 3))
    dropped(torch.ones(1, 7, 8), [7], [5])
    assert torch.equal(torch.random.get_rng_state(), before)
