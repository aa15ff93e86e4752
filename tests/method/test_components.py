import pytest
import torch

from lift_ds.method.components import Component, lift2_component, lift3_component


@pytest.mark.parametrize(
    ("t", "name"),
    [
        (0.001, "HARD"),
        (0.33, "HARD"),
        (0.34, "RANDOM"),
        (0.5, "RANDOM"),
        (0.66, "RANDOM"),
        (0.67, "EASY"),
        (1.0, "EASY"),
    ],
)
def test_lift3_thresholds(t, name):
    assert lift3_component(torch.tensor([t])).item() == Component[name]


def test_lift3_is_the_argmax_of_the_three_weights():
    t = torch.linspace(0.0015, 0.9985, 997)
    weights = torch.stack([t, 3 * t * (1 - t), 1 - t])  # easy, random, hard: the order of Component
    assert torch.equal(lift3_component(t), weights.argmax(0))


@pytest.mark.parametrize("c", [2.5, 4.0, 6.0])
def test_lift3_with_another_c(c):
    t = torch.linspace(0.0015, 0.9985, 997)
    assert torch.equal(lift3_component(t, c), torch.stack([t, c * t * (1 - t), 1 - t]).argmax(0))


def test_lift2():
    assert lift2_component(torch.tensor([0.2, 0.5, 0.9])).tolist() == [Component.HARD, Component.EASY, Component.EASY]


def test_components_are_decided_per_example_whatever_the_batch():
    # The public code takes the mean t of the batch: 0.5 here, hence "random" for both.
    assert lift3_component(torch.tensor([0.1, 0.9])).tolist() == [Component.HARD, Component.EASY]
