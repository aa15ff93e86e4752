"""`lift_loss` is the trainer's step, whoever's loop it is called from."""

import pytest
import torch
from torch import nn

from lift_ds import lift_loss, select_kept, sft_loss
from lift_ds.method.components import Component
from lift_ds.objectives import OBJECTIVES
from lift_ds.objectives.objective import candidates
from tests.training.test_step import make_batch, make_root


@pytest.fixture
def batch():
    response = torch.arange(20)[None].expand(3, -1) >= 4
    return make_batch([0.2, 0.5, 0.8], [0.3, 0.2, 0.1], [Component.HARD, Component.RANDOM, Component.EASY], response)


class PlainLogits(nn.Module):
    """A model of which only its logits are known."""

    def __init__(self, model, shift=False):
        super().__init__()
        self.inner, self.shift = model, shift

    def forward(self, input_ids, attention_mask=None):
        logits = self.inner(input_ids=input_ids, attention_mask=attention_mask).logits
        return torch.cat([logits[:, 1:], logits[:, -1:]], 1) if self.shift else logits


def numbers_of(batch):
    names = ("t", "rho", "component", "mask_uniform", "tie_uniform")
    return {name: getattr(batch, name) for name in names} | {"v": batch.count_uniform}


def step_of_the_trainer(model, batch, method, **options):
    model.zero_grad()
    scale = torch.full((3,), 1 / float(batch.response_mask.sum()))
    loss, _ = make_root(model, method, **options).train()(batch, scale)
    loss.backward()
    return loss.item(), [parameter.grad.clone() for parameter in model.parameters()]


@pytest.mark.parametrize("method", list(OBJECTIVES))
@pytest.mark.parametrize("kind", ["own", "logits"])
def test_equal_to_the_trainers_step(llada, batch, method, kind):
    expected, gradients = step_of_the_trainer(llada, batch, method)
    llada.zero_grad()
    model, known = (llada, {}) if kind == "own" else (PlainLogits(llada), {"mask_token_id": 100})
    loss = lift_loss(model, batch.clean_ids, batch.response_mask, method=method, **known, **numbers_of(batch))
    loss.backward()
    assert loss.item() == (expected if kind == "own" else pytest.approx(expected, rel=1e-5))
    for parameter, gradient in zip(llada.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-6)
    assert expected > 0


@pytest.mark.parametrize(
    "options",
    [
        {"scoring": "approximate"},
        {"complementary": True},
        {"token_weight": "mgdm"},
        {"token_weight": "papl"},
        {"time_scaling": False},
    ],
)
def test_options_are_the_configs(llada, batch, options):
    expected, _ = step_of_the_trainer(llada, batch, "lift3", **options)
    loss = lift_loss(PlainLogits(llada), batch.clean_ids, batch.response_mask, mask_token_id=100, **options,
                     **numbers_of(batch))  # fmt: skip
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    plain, _ = step_of_the_trainer(llada, batch, "lift3")
    assert expected != pytest.approx(plain, rel=1e-4)


@pytest.mark.parametrize("scoring", ["exact", "approximate"])
def test_papl_weighs_what_is_learned_by_its_own_log_probabilities(llada, batch, scoring):
    """The plain functions, with the weights of the tokens that LIFT kept as the training pass sees them."""
    root = make_root(llada, "lift3", scoring=scoring, token_weight="papl", papl_alpha=3.0, papl_tau=0.25).train()
    scale = torch.full((len(batch.t),), 1 / 48)
    loss, _ = root(batch, scale)
    plain, _ = make_root(llada, "lift3", scoring=scoring).train()(batch, scale)
    superset = candidates(batch).superset
    noised = batch.clean_ids.masked_fill(superset, 100)
    score = llada(input_ids=noised).logits.log_softmax(-1).gather(-1, batch.clean_ids[..., None])[..., 0]
    drawn = {"scores": batch.tie_uniform, "v": batch.count_uniform}
    kept = select_kept(score, superset, batch.t, batch.rho, ["hard", "random", "easy"], **drawn)
    seen = noised if scoring == "approximate" else batch.clean_ids.masked_fill(kept, 100)
    gold = llada(input_ids=seen).logits.log_softmax(-1).gather(-1, batch.clean_ids[..., None])[..., 0]
    expected = 0.0
    for row, (is_kept, t) in enumerate(zip(kept, batch.t, strict=True)):
        nll = -gold[row][is_kept]
        expected += ((1 + 3.0 * (-nll / 0.25).softmax(0)) * nll).sum() / t / 48
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert loss.item() > 1.05 * plain.item()


def test_equal_to_the_pure_functions(llada, batch):
    """Score, choose and learn by hand, without the root module."""
    superset = candidates(batch).superset
    logits = llada(input_ids=batch.clean_ids.masked_fill(superset, 100)).logits
    gold_logprob = logits.log_softmax(-1).gather(-1, batch.clean_ids[..., None])[..., 0]
    drawn = {"scores": batch.tie_uniform, "v": batch.count_uniform}
    kept = select_kept(gold_logprob, superset, batch.t, batch.rho, ["hard", "random", "easy"], **drawn)
    expected = sft_loss(llada, batch.clean_ids, kept, batch.t, 48)
    loss = lift_loss(llada, batch.clean_ids, batch.response_mask, **numbers_of(batch))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    quarter = lift_loss(llada, batch.clean_ids, batch.response_mask, num_targets=4 * 48, **numbers_of(batch))
    assert quarter.item() == pytest.approx(expected.item() / 4, rel=1e-5)


def test_a_model_that_predicts_the_next_token(llada, batch):
    """Row i predicts token i + 1; the first token has no row before it, and keeps its own."""
    numbers = numbers_of(batch)
    aligned = lift_loss(llada, batch.clean_ids, batch.response_mask, **numbers)
    shifted = lift_loss(
        PlainLogits(llada, shift=True), batch.clean_ids, batch.response_mask, mask_token_id=100,
        right_shift_logits=True, **numbers,
    )  # fmt: skip
    assert shifted.item() == pytest.approx(aligned.item(), rel=1e-5)


def test_what_is_drawn_follows_the_generator_and_padding_is_left_out(llada):
    ids = torch.randint(0, 99, (4, 30), generator=torch.Generator().manual_seed(0))
    response = torch.arange(30)[None].expand(4, -1) >= 5
    visible = torch.ones_like(response)
    response = response & (torch.arange(30) < 24)
    visible[:, 24:] = False

    def loss(seed, ids):
        generator = torch.Generator().manual_seed(seed)
        return lift_loss(llada, ids, response, attention_mask=visible, generator=generator).item()

    other_padding = ids.clone()
    other_padding[:, 24:] = 7
    assert loss(1, ids) == loss(1, other_padding) != loss(2, ids)


def test_the_mode_of_the_model_stays(llada, batch):
    """Scores are without dropout; a part that its owner keeps in eval mode stays there."""
    llada.train()
    llada.model.blocks[0].eval()
    lift_loss(llada, batch.clean_ids, batch.response_mask, **numbers_of(batch))
    assert llada.training and not llada.model.blocks[0].training and llada.model.blocks[1].training
    llada.eval()
    lift_loss(llada, batch.clean_ids, batch.response_mask, **numbers_of(batch))
    assert not any(module.training for module in llada.modules())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "lift4"}, "unknown; allowed: vanilla, lift2"),
        (
            {"method": "vanilla", "scoring": "exact"},
            r"scoring='exact': no argument, and no option of this method \(of lift2",
        ),
        ({"num_target": 3}, r"num_target=3: no argument, and no option of this method \(of no method: misspelt\?\)"),
        ({"t_min": 2.0}, "t_min=2.0: input should be less than 1"),
        ({"scoring": "buffer"}, "the table of difficulties is the trainer's; use exact or approximate"),
        ({"normalizer": "per_example"}, "only the trainer has it; the loss is divided by num_targets"),
        ({"t": torch.tensor([0.0, 0.5, 0.5])}, r"\(0, 1\]"),
        ({"component": "simple"}, "'easy', 'random', 'hard'"),
        ({"mask_token_id": 3}, "the model has its own, mask_token_id=100"),
        ({"t": torch.tensor(0.5)}, r"t has the shape \(\); \(3,\) is expected"),
        ({"rho": torch.full((3, 1), 0.1)}, r"rho has the shape \(3, 1\); \(3,\) is expected"),
        ({"mask_uniform": torch.ones(20)}, r"mask_uniform has the shape \(20,\); \(3, 20\) is expected"),
    ],
)
def test_bad_arguments(llada, batch, options, message):
    with pytest.raises(ValueError, match=message):
        lift_loss(llada, batch.clean_ids, batch.response_mask, **options)


class FixedLength(PlainLogits):
    """A model of one length, which returns a tuple."""

    def forward(self, input_ids, attention_mask=None):
        assert input_ids.shape[1] == 20
        return super().forward(input_ids, attention_mask), None


class Wrapper(PlainLogits):
    """Passes its model's attributes on, as FSDP and PEFT do; going around its forward would be wrong."""

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)


def test_models_of_one_length_and_wrapped_models(llada, batch):
    """Also where no document is scored: the pass that keeps ranks together runs what the model can."""
    numbers = numbers_of(batch) | {"component": "random"}
    expected = lift_loss(llada, batch.clean_ids, batch.response_mask, **numbers).item()
    fixed = lift_loss(FixedLength(llada), batch.clean_ids, batch.response_mask, mask_token_id=100, **numbers)
    assert fixed.item() == pytest.approx(expected, rel=1e-5)
    wrapper, calls = Wrapper(llada), []
    wrapper.register_forward_hook(lambda *_: calls.append(1))
    wrapped = lift_loss(wrapper, batch.clean_ids, batch.response_mask, **numbers)
    assert wrapped.item() == pytest.approx(expected, rel=1e-5)
    assert len(calls) == 2


def test_bad_batches(llada, batch):
    ids, response = batch.clean_ids, batch.response_mask
    with pytest.raises(ValueError, match="clean_ids has no document"):
        lift_loss(llada, ids[:0], response[:0])
    with pytest.raises(ValueError, match="response_mask is true on padding"):
        lift_loss(llada, ids, response, attention_mask=torch.arange(20)[None].expand(3, -1) < 15)


def test_a_model_without_a_mask_token(llada, batch):
    with pytest.raises(ValueError, match=r"PlainLogits has no config.mask_token_id; give mask_token_id="):
        lift_loss(PlainLogits(llada), batch.clean_ids, batch.response_mask)


class Dropping(nn.Module):
    """Logits of embeddings after dropout; notes what is dropped, and whether types are automatic."""

    def __init__(self):
        super().__init__()
        self.table, self.dropout, self.last = nn.Embedding(101, 32), nn.Dropout(0.5), nn.Linear(32, 101)
        self.dropped, self.in_autocast = [], []

    def forward(self, input_ids):
        hidden = self.dropout(self.table(input_ids))
        self.dropped.append((hidden == 0).tolist())
        self.in_autocast.append(torch.is_autocast_enabled("cpu"))
        return self.last(hidden)


def test_every_call_has_its_own_dropout(batch):
    """By the generator, as all that is drawn; the last forward of each call is the one with dropout."""
    model = Dropping()

    def dropped(generator):
        lift_loss(model, batch.clean_ids, batch.response_mask, mask_token_id=100, generator=generator)
        return model.dropped[-1]

    generator = torch.Generator().manual_seed(0)
    first, second = dropped(generator), dropped(generator)
    assert first != second
    assert dropped(torch.Generator().manual_seed(0)) == first
    assert dropped(None) != dropped(None)


def test_both_forwards_have_the_callers_types(batch):
    """And what the pass without gradient casts is not kept for the one with gradient."""
    model = Dropping()
    with torch.autocast("cpu", torch.bfloat16):
        lift_loss(model, batch.clean_ids, batch.response_mask, mask_token_id=100, method="easy").backward()
    assert model.in_autocast == [True, True]
    assert model.last.weight.grad.abs().sum() > 0


def test_a_model_on_the_cpu_needs_no_cuda(batch, monkeypatch):
    """Where there is some: neither clock nor dropout touches it."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert lift_loss(Dropping(), batch.clean_ids, batch.response_mask, mask_token_id=100).isfinite()
