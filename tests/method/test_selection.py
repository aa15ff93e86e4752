import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lift_ds.method.noise import extra_level, level_from_uniform, superset_mask
from lift_ds.method.selection import num_kept, select_kept

SCORES = torch.tensor([[-0.1, -2.0, -0.5, -3.0, -1.0]])
ALL = torch.ones(1, 5, dtype=torch.bool)
T, RHO = torch.tensor([0.4]), torch.tensor([0.6])  # k = round(5 * 0.4) = 2


def kept(component, superset=ALL, **kwargs):
    return select_kept(SCORES, superset, T, RHO, component, **kwargs)[0].nonzero()[:, 0].tolist()


def test_easy_keeps_the_most_confident():
    assert kept("easy") == [0, 2]


def test_hard_keeps_the_least_confident():
    assert kept("hard") == [1, 3]


def test_random_keeps_the_largest_uniforms():
    assert kept("random", scores=torch.tensor([[0.3, 0.1, 0.9, 0.2, 0.8]])) == [2, 4]


def test_only_the_superset_is_kept():
    superset = torch.tensor([[False, True, True, False, True]])  # k = round(3 * 0.4) = 1
    assert kept("easy", superset) == [2]
    assert kept("hard", superset) == [1]


def test_components_per_example():
    chosen = select_kept(SCORES.repeat(2, 1), ALL.repeat(2, 1), T.repeat(2), RHO.repeat(2), ["easy", "hard"])
    assert chosen.tolist() == [[True, False, True, False, False], [False, True, False, True, False]]


def test_rounding_is_half_to_even_in_float32():
    # 5 * 0.5 = 2.5 -> 2;  7 * 0.5 = 3.5 -> 4
    counts = num_kept(torch.tensor([5, 7]), torch.tensor([0.5, 0.5]), torch.tensor([0.5, 0.5]))
    assert counts.tolist() == [2, 4]


def test_one_token_is_kept_where_one_is_masked():
    # round(3 * 0.1) = 0: the public code trains on nothing
    superset_count, t, rho = torch.tensor([3, 0]), torch.tensor([0.1, 0.1]), torch.tensor([0.9, 0.9])
    assert num_kept(superset_count, t, rho).tolist() == [1, 0]
    assert num_kept(superset_count, t, rho, min_kept=0).tolist() == [0, 0]


def test_rounding_by_a_uniform():
    # x = 5 * 0.4 / 1 = 2: floor(2 + v) = 2;  x = 3 * 0.1 / 1 = 0.3: 1 where v >= 0.7, and no floor below
    superset_count, t, rho = torch.tensor([5, 3, 3, 0]), torch.tensor([0.4, 0.1, 0.1, 0.1]), torch.full((4,), 0.9)
    v = torch.tensor([0.99, 0.69, 0.71, 0.99])
    assert num_kept(superset_count, t, rho, v=v).tolist() == [2, 0, 1, 0]
    # the whole superset where nothing is added, and never more
    whole = num_kept(torch.tensor([7, 1]), torch.tensor([0.3, 1.0]), torch.zeros(2), v=torch.tensor([0.0, 0.999]))
    assert whole.tolist() == [7, 1]
    # levels over 1 are 1: 10 * 0.9 / 1, not 10 * 0.9 / 1.3
    wide = num_kept(torch.tensor([10]), torch.tensor([0.9]), torch.tensor([0.4]), v=torch.tensor([0.5]))
    assert wide.tolist() == [9]


@pytest.mark.parametrize("component", ["easy", "random", "hard"])
@pytest.mark.parametrize("t_min", [0.001, 0.05, 0.2])
@pytest.mark.parametrize("length", [8, 16, 48, 300, 2000])
def test_the_weights_of_a_document_sum_to_its_length(length, t_min, component):
    """E[sum over kept of 1 / t] = L: no level and no length has more to say than its share.

    With a floor of one kept token it was 1.6 L for 16 tokens in the hard branch.
    """
    generator = torch.Generator().manual_seed(length)
    num_documents = 1_600_000 // length + 2000
    u = (torch.arange(num_documents) + torch.rand(num_documents, generator=generator)) / num_documents
    v_rho, v = torch.rand(2, num_documents, generator=generator)
    t = level_from_uniform(u, t_min)
    rho = extra_level(u, t, v_rho)
    response = torch.ones(num_documents, length, dtype=torch.bool)
    superset = superset_mask(torch.rand(response.shape, generator=generator), response, t, rho)
    scores = torch.rand(response.shape, generator=generator)
    chosen = select_kept(scores.log(), superset, t, rho, component, scores=scores, v=v)
    assert ((chosen.sum(-1) / t.double()).mean() / length).item() == pytest.approx(1.0, abs=0.01)


def test_unknown_component_names_the_allowed_ones():
    with pytest.raises(ValueError, match="'easy', 'random', 'hard'"):
        kept("simple")
    with pytest.raises(ValueError, match="1 examples, 2 names"):
        kept(["easy", "hard"])


def test_same_generator_same_choice():
    draws = [kept("random", generator=torch.Generator().manual_seed(3)) for _ in range(2)]
    assert draws[0] == draws[1]


@given(
    st.integers(1, 4),
    st.integers(1, 24),
    st.floats(0.001, 1.0),
    st.floats(0.0, 0.99),
    st.sampled_from(["easy", "random", "hard"]),
    st.integers(0, 10_000),
)
def test_exactly_k_of_the_superset(batch, length, t, rho, component, seed):
    # The public code reads an unsorted top-k for "random" and can keep fewer than k in a batch.
    generator = torch.Generator().manual_seed(seed)
    superset = torch.rand(batch, length, generator=generator) < 0.6
    scores = torch.randn(batch, length, generator=generator)
    scores[0, 0] = -torch.inf  # log p can underflow
    levels, extra = torch.full((batch,), t), torch.full((batch,), rho)
    chosen = select_kept(scores, superset, levels, extra, component, generator=generator)
    assert not (chosen & ~superset).any()
    assert torch.equal(chosen.sum(-1), num_kept(superset.sum(-1), levels, extra))
    for row in range(batch):
        inside, outside = scores[row][chosen[row]], scores[row][superset[row] & ~chosen[row]]
        if component != "random" and len(inside) and len(outside):
            assert (inside.min() >= outside.max()) if component == "easy" else (inside.max() <= outside.min())
