import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lift_ds.method.noise import extra_level, level_from_uniform, stratify, superset_mask


def test_level_arithmetic():
    # t = 0.001 + 0.999 * 0.5 = 0.5005
    assert level_from_uniform(torch.tensor([0.0, 0.5]), 1e-3).tolist() == pytest.approx([0.001, 0.5005])


@pytest.mark.parametrize("t_min", [0.0, 1.0, -0.1])
def test_bad_t_min_is_refused(t_min):
    with pytest.raises(ValueError, match="t_min"):
        level_from_uniform(torch.tensor([0.5]), t_min)


def test_rho_of_the_public_code():
    # u = 0.3: room 0.7, lower 0.1, rho = 0.1 + 0.6 * 0.5 = 0.4
    # u = 0.95: room 0.05, lower 0, rho = 0.05 * 0.5 = 0.025
    u = torch.tensor([0.3, 0.95])
    rho = extra_level(u, level_from_uniform(u), torch.tensor([0.5, 0.5]), "code")
    assert rho.tolist() == pytest.approx([0.4, 0.025])


def test_rho_of_the_paper():
    # rho = (1 - t) v = 0.75 * 0.5
    assert extra_level(torch.tensor([0.2]), torch.tensor([0.25]), torch.tensor([0.5]), "paper").item() == 0.375


@given(st.floats(0, 0.9999), st.floats(0, 0.9999), st.sampled_from(["code", "paper"]))
def test_superset_level_never_exceeds_one(u, v, rule):
    u, v = torch.tensor([u]), torch.tensor([v])
    t = level_from_uniform(u)
    rho = extra_level(u, t, v, rule)
    assert rho >= 0
    assert t + rho <= 1 + 1e-3


def test_superset_takes_response_tokens_below_the_level():
    uniform = torch.tensor([[0.1, 0.1, 0.7, 0.5]])
    response = torch.tensor([[False, True, True, True]])
    mask = superset_mask(uniform, response, torch.tensor([0.4]), torch.tensor([0.2]))
    assert mask.tolist() == [[False, True, False, True]]  # level 0.6: position 0 is prompt, 0.7 lies above


def test_stratified_levels_cover_the_unit_interval_evenly():
    levels = sorted(stratify(0.37, slot, 8) for slot in range(8))
    gaps = [b - a for a, b in zip(levels, levels[1:], strict=False)]
    assert gaps == pytest.approx([1 / 8] * 7)
