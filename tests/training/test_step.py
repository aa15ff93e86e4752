"""The objectives against what the public code computed, and against its faults."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from lift_ds import select_kept, sft_loss
from lift_ds.data.batch import MicroBatch
from lift_ds.method.components import Component, lift3_component
from lift_ds.method.noise import superset_mask
from lift_ds.models.head import masked_gold_logprob
from lift_ds.objectives import make_objective, objective_settings
from lift_ds.objectives.objective import candidates
from lift_ds.training.step import DiffusionStep, _GradientNorms, weight_sums

CASES = [f"case{number:03d}" for number in range(24)]


class Case:
    """One case of the reference vectors."""

    def __init__(self, name, vectors, losses):
        self.losses = next(case for case in losses if case["case"] == name)
        self.arrays = {key.removeprefix(f"{name}."): value for key, value in vectors.items() if key.startswith(name)}
        self.clean_ids, self.t, self.rho = (self.arrays[key] for key in ("clean_ids", "t", "rho"))
        batch, length = self.clean_ids.shape
        self.response_mask = torch.arange(length)[None] >= self.arrays["prompt_lengths"][:, None]
        self.num_targets = batch * length - int(self.arrays["prompt_lengths"].sum())


@pytest.fixture(params=CASES)
def case(request, vectors, cases):
    return Case(request.param, vectors, cases)


def score(model, case, superset):
    scores = torch.zeros(superset.shape)
    noised_ids = case.clean_ids.masked_fill(superset, model.config.mask_token_id)
    with torch.no_grad():
        scores[superset] = masked_gold_logprob(model, noised_ids, superset, case.clean_ids)
    return scores


def assert_loss(model, case, kept, name):
    model.zero_grad()
    loss = sft_loss(model, case.clean_ids, kept, case.t, case.num_targets)
    loss.backward()
    assert loss.item() == pytest.approx(case.losses[f"{name}.loss"], rel=1e-5)
    for key, norm in case.losses.get(f"{name}.grad_norm", {}).items():
        assert model.get_parameter(key).grad.norm().item() == pytest.approx(norm, rel=1e-4), key
    if f"{name}.loss_unscaled" in case.losses:
        unscaled = sft_loss(model, case.clean_ids, kept, case.t, case.num_targets, time_scaling=False)
        assert unscaled.item() == pytest.approx(case.losses[f"{name}.loss_unscaled"], rel=1e-5)


def test_vanilla(llada, case):
    masked = superset_mask(case.arrays["uniform"], case.response_mask, case.t, torch.zeros_like(case.rho))
    assert torch.equal(masked, case.arrays["masked"].bool())
    assert_loss(llada, case, masked, "vanilla")


@pytest.mark.parametrize("component", ["easy", "hard", "random"])
def test_components(llada, case, component):
    if component == "random" and len(case.t) > 1:
        pytest.skip("the public code's random branch is only defined for one example")
    superset = superset_mask(case.arrays["uniform"], case.response_mask, case.t, case.rho)
    assert torch.equal(superset, case.arrays["superset"].bool())
    kept = select_kept(
        score(llada, case, superset),
        superset,
        case.t,
        case.rho,
        component,
        scores=case.arrays.get("random.scores"),
        min_kept=0,
    )
    assert torch.equal(kept, case.arrays[f"{component}.kept"].bool())
    assert_loss(llada, case, kept, component)


def test_token_weights(llada, case):
    """All ones change nothing; weights are per token, before the sum."""
    masked = case.arrays["masked"].bool()
    plain = sft_loss(llada, case.clean_ids, masked, case.t, case.num_targets)
    ones = sft_loss(llada, case.clean_ids, masked, case.t, case.num_targets, weights=torch.ones(masked.shape))
    half = sft_loss(llada, case.clean_ids, masked, case.t, case.num_targets, weights=torch.full(masked.shape, 0.5))
    assert ones.item() == plain.item()
    assert half.item() == pytest.approx(plain.item() / 2)


@pytest.mark.parametrize("t", [0.0, 1.5])
def test_level_outside_its_range(llada, t):
    ids = torch.tensor([[1, 2]])
    with pytest.raises(ValueError, match=r"\(0, 1\]"):
        sft_loss(llada, ids, torch.ones_like(ids).bool(), torch.tensor([t]), 2)


def make_root(model, method, **settings):
    return DiffusionStep(model, make_objective(objective_settings(method=method, **settings)))


def make_batch(t, rho, component, response_mask, filler_mask=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = response_mask.shape
    return MicroBatch(
        clean_ids=torch.randint(0, 99, shape, generator=generator),
        attention_mask=torch.ones(shape, dtype=torch.bool),
        response_mask=response_mask,
        filler_mask=torch.zeros(shape, dtype=torch.bool) if filler_mask is None else filler_mask,
        mask_uniform=torch.rand(shape, generator=generator),
        tie_uniform=torch.rand(shape, generator=generator),
        count_uniform=torch.rand(shape[0], generator=generator),
        t=torch.tensor(t),
        rho=torch.tensor(rho),
        component=torch.tensor(component),
        lengths=[shape[1]] * shape[0],
        sample_ids=list(range(shape[0])),
        slots=[(row, 0) for row in range(shape[0])],
        is_refreshed=torch.ones(shape[0], dtype=torch.bool),
    )


def test_one_forward_equals_the_pure_functions(llada):
    """The root module's loss is the sum over documents of what the API computes for each alone."""
    response = torch.arange(20)[None].expand(3, -1) >= 4
    batch = make_batch([0.2, 0.5, 0.8], [0.3, 0.2, 0.1], [Component.HARD, Component.RANDOM, Component.EASY], response)
    root = make_root(llada, "lift3").train()
    loss, stats = root(batch, torch.full((3,), 1 / 48))
    superset = candidates(batch).superset
    expected = 0.0
    for row, name in enumerate(["hard", "random", "easy"]):
        one = slice(row, row + 1)
        noised = batch.clean_ids[one].masked_fill(superset[one], 100)
        scores = torch.zeros(1, 20)
        scores[superset[one]] = masked_gold_logprob(llada, noised, superset[one], batch.clean_ids[one]).detach()
        drawn = {"scores": batch.tie_uniform[one], "v": batch.count_uniform[one]}
        kept = select_kept(scores, superset[one], batch.t[one], batch.rho[one], name, **drawn)
        assert int(kept.sum()) == int(stats.num_kept[row])
        expected += sft_loss(llada, batch.clean_ids[one], kept, batch.t[one], 48).item()
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert root.objective.num_targets(batch).tolist() == stats.num_kept.tolist()
    weights = [
        1 / (level * 48) for level, count in zip([0.2, 0.5, 0.8], stats.num_kept, strict=True) for _ in range(count)
    ]
    sums = [sum(weights), sum(weight**2 for weight in weights), max(weights)]
    assert stats.weight_sums.tolist() == pytest.approx(sums, rel=1e-5)


def test_sums_of_weights():
    assert weight_sums(torch.tensor([0.5, 2.0, 1.0])).tolist() == [3.5, 5.25, 2.0]
    assert weight_sums(torch.zeros(0)).tolist() == [0.0, 0.0, 0.0]


def test_a_batch_with_nothing_masked_runs_the_same_forwards(llada):
    """The public code returns early there, which hangs the other ranks."""
    calls = []
    hook = llada.model.blocks[0].register_forward_hook(lambda *_: calls.append(1))
    root = make_root(llada, "lift3").train()
    loss, _ = root(make_batch([0.5], [0.1], [Component.EASY], torch.zeros(1, 12, dtype=torch.bool)), torch.ones(1))
    loss.backward()
    hook.remove()
    assert len(calls) == 2
    assert loss.item() == 0
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in llada.parameters())


def test_fillers_are_masked_at_t_and_never_chosen(llada):
    """With `pad_targets: all` the public code's easy picks are mostly padding."""
    response = torch.ones(1, 4000, dtype=torch.bool)
    filler = torch.arange(4000)[None] >= 2000
    batch = make_batch([0.3], [0.5], [Component.EASY], response, filler)
    masks = candidates(batch)
    superset, masked_filler = masks.superset, masks.fillers
    assert not (superset & filler).any()
    assert superset.sum().item() == pytest.approx(0.8 * 2000, rel=0.05)
    assert masked_filler.sum().item() == pytest.approx(0.3 * 2000, rel=0.1)


def test_scoring_runs_without_dropout():
    class Recorder(nn.Module):
        config = type("Config", (), {"mask_token_id": 0})

        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(100, 4)
            self.modes = []

        def encode(self, ids, attention_mask=None, position_ids=None):
            self.modes.append((self.training, torch.is_grad_enabled()))
            return self.embedding(ids)

        def head(self, hidden, through):
            return through(hidden, self.embedding.weight)

    model = Recorder()
    root = make_root(model, "lift3").train()
    root(make_batch([0.5], [0.3], [Component.HARD], torch.ones(1, 9, dtype=torch.bool)), torch.ones(1))
    assert model.modes == [(False, False), (True, True)]


def test_gradient_norms_by_document(llada):
    """The recorded norm is the norm of d loss / d hidden of each document's rows."""
    batch = make_batch([0.4, 0.9], [0.0, 0.0], [1, 1], torch.ones(2, 10, dtype=torch.bool))
    root = make_root(llada, "vanilla").train()
    scale = torch.tensor([0.1, 0.2])
    loss, stats = root(batch, scale)
    loss.backward()
    norms = stats.gradient_norms
    kept = candidates(batch).superset
    for row in range(2):
        ids = batch.clean_ids[row : row + 1].masked_fill(kept[row : row + 1], 100)
        hidden = llada.encode(ids).detach().requires_grad_()
        logprob = torch.log_softmax(llada.head(hidden[0]).float(), -1)
        nll = -logprob[kept[row], batch.clean_ids[row][kept[row]]].sum()
        (nll * scale[row] / batch.t[row]).backward()
        assert norms[row].item() == pytest.approx(hidden.grad.norm().item(), rel=1e-4)


def test_gradient_norms_copy_no_rows():
    """Rows of logits are large: the backward of the norms makes nothing of their size in float32."""
    rows = torch.randn(50, 400).bfloat16().requires_grad_()
    document, probe = torch.zeros(50, dtype=torch.long), torch.zeros(1, requires_grad=True)
    passed = _GradientNorms.apply(rows, document, probe)
    gradient = torch.full((50, 400), 0.5, dtype=torch.bfloat16)
    with MadeSizes() as made:
        passed.backward(gradient)
    assert probe.grad.item() == pytest.approx(0.5 * 20_000**0.5)
    assert made.sizes[torch.float32] == 50 and made.sizes[torch.bfloat16] == rows.numel()


class MadeSizes(TorchDispatchMode):
    """Elements of the largest tensor of each type that an operation gives."""

    def __enter__(self):
        self.sizes = {}
        return super().__enter__()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor):
            self.sizes[made.dtype] = max(self.sizes.get(made.dtype, 0), made.numel())
        return made


def test_a_batch_of_wild_levels_gets_a_component_each():
    assert lift3_component(torch.tensor([0.05, 0.5, 0.95])).tolist() == [2, 1, 0]
