import numpy as np
import torch

from lift_ds.data.batch import Document
from lift_ds.evaluation.heldout import class_label, frequency_class, token_counts


def test_counts_are_of_responses_without_fillers():
    """Ids 3 3 5 5, of which the first is prompt and the last a filler: 3 once, 5 once."""
    response, filler = np.array([False, True, True, True]), np.array([False, False, False, True])
    document = Document(np.array([3, 3, 5, 5]), response, filler, sample_id=0, epoch=0, where="made")
    assert token_counts([document]).tolist() == [0, 0, 0, 1, 0, 1]
    assert token_counts([document, document], num_ids=8).tolist() == [0, 0, 0, 2, 0, 2, 0, 0]
    assert token_counts([]).tolist() == []


def test_classes_are_between_powers_of_two():
    counts = torch.tensor([0, 1, 2, 3, 4, 7, 8, 2**40, 2**40 - 1])
    assert frequency_class(counts).tolist() == [-1, 0, 1, 1, 2, 2, 3, 40, 39]
    assert [class_label(number) for number in (0, 1, 3, 10)] == ["1", "2-3", "8-15", "1,024-2,047"]
