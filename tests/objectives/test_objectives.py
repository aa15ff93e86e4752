"""Every objective as the root module computes it, against the pure functions and the public code's faults."""

import math
import re
from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
import torch

from lift_ds import cart_weights, gift_loss, select_kept, sft_loss
from lift_ds.config.loading import load_run_config
from lift_ds.data.batch import Document, collate
from lift_ds.method.components import Component, random_component
from lift_ds.models.head import masked_gold_logprob
from lift_ds.objectives import OBJECTIVES, make_objective, objective_settings
from lift_ds.objectives.gift import gift_levels
from lift_ds.objectives.objective import candidates
from lift_ds.objectives.settings import ObjectiveSettings
from lift_ds.training.draws import make_noise_rule
from lift_ds.training.noised import Noised
from lift_ds.training.step import DiffusionStep
from tests.conftest import REPOSITORY
from tests.training.test_step import make_batch, make_root

NAMES = ["hard", "random", "easy"]


@pytest.fixture
def batch():
    response = torch.arange(20)[None].expand(3, -1) >= 4
    return make_batch([0.2, 0.5, 0.8], [0.3, 0.2, 0.1], [2, 1, 0], response)


def loss_of(model, batch, method, **settings):
    root = make_root(model, method, **settings).train()
    loss, stats = root(batch, torch.full((3,), 1 / 48))
    return loss, stats, root.objective


@pytest.mark.parametrize("method", list(OBJECTIVES))
def test_every_objective_trains(llada, batch, method):
    """A loss with a gradient; and the count that the normaliser needs is the count that is learned."""
    loss, stats, objective = loss_of(llada, batch, method)
    loss.backward()
    assert loss.item() > 0
    assert llada.model.transformer["wte"].weight.grad.abs().sum() > 0
    counted = objective.num_targets(batch)
    assert counted is None or counted.tolist() == stats.num_kept.tolist()


@pytest.mark.parametrize(
    ("method", "settings", "num_forwards"),
    [
        ("vanilla", {}, 1),
        ("vanilla", {"complementary": True}, 1),
        ("random", {}, 1),
        ("lift2", {}, 2),
        ("lift3", {}, 2),
        ("lift3", {"complementary": True}, 2),
        ("lift3", {"scoring": "approximate"}, 1),
        ("easy", {}, 2),
        ("hard", {}, 2),
        ("gift", {}, 2),
    ],
)
def test_number_of_forwards_and_nothing_printed(llada, batch, capfd, method, settings, num_forwards):
    """The public code runs one more where outputs are asked for, and prints a line in every micro-batch."""
    calls = []
    hook = llada.model.blocks[0].register_forward_hook(lambda *_: calls.append(1))
    loss, _, _ = loss_of(llada, batch, method, **settings)
    loss.backward()
    hook.remove()
    assert len(calls) == num_forwards
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("method", ["vanilla", "lift3", "gift"])
def test_alignment_belongs_to_the_model(llada, batch, method):
    """A model whose output i predicts token i + 1, as Dream's does, aligns its rows itself; every branch is right then.

    The public code shifts in vanilla SFT only.
    """
    expected, _, _ = loss_of(llada, batch, method)
    encode = llada.encode

    def unshifted(*inputs):
        return torch.roll(encode(*inputs), -1, dims=1)

    llada.encode = lambda *inputs: torch.roll(unshifted(*inputs), 1, dims=1)
    assert loss_of(llada, batch, method)[0].item() == expected.item()
    llada.encode = unshifted  # what the public code's other branches see
    assert abs(loss_of(llada, batch, method)[0].item() - expected.item()) > 1e-3 * expected.item()


def test_components_by_level():
    t, u = torch.tensor([0.1, 0.5, 0.9]), torch.tensor([0.0, 0.4, 0.99])

    def names(method, **settings):
        chosen = make_objective(objective_settings(method=method, **settings)).component(t, u)
        return [Component(int(each)).name.lower() for each in chosen]

    assert names("lift3") == ["hard", "random", "easy"]
    assert names("lift2") == ["hard", "easy", "easy"]
    assert names("easy") == ["easy"] * 3
    assert names("hard") == ["hard"] * 3
    assert names("random") == ["random"] * 3
    assert names("lift3", policy="random") == ["easy", "random", "hard"]  # thirds of u, whatever t
    assert names("lift2", policy="random") == ["easy", "easy", "hard"]  # halves of u
    assert names("vanilla") == ["random"] * 3


def test_random_policy_is_uniform():
    chosen = random_component(torch.rand(30_000, generator=torch.Generator().manual_seed(0)), tuple(Component))
    for share in torch.bincount(chosen) / len(chosen):
        assert share.item() == pytest.approx(1 / 3, abs=0.01)


def test_the_trainer_keeps_what_makes_weights_sum_to_the_length():
    """From keyed draws to kept tokens, with weights 1 / t: the mean over documents is their length."""
    settings = objective_settings(method="hard", t_sampling="iid")
    length, count = 48, 20_000
    ids, response = np.zeros(length, dtype=np.int64), np.ones(length, dtype=bool)
    documents = [Document(ids, response, ~response, sample, 0, "made") for sample in range(count)]
    noises = make_noise_rule(settings, 3, 8)(documents, 0, [(0, 0)] * count)
    batch = collate(documents, noises, 1)
    objective = make_objective(settings)
    kept = objective.kept(batch, objective.noise(batch), batch.tie_uniform)
    assert ((kept.sum(-1) / batch.t).mean() / length).item() == pytest.approx(1.0, abs=0.01)
    assert kept.sum(-1).tolist() == objective.num_targets(batch).tolist()


def chosen(root, batch):
    """What is learned of a batch."""
    masks = root.objective.noise(batch)
    return root.objective.choose(batch, masks, scores_by(root, batch, masks))


def scores_by(root, batch, masks):
    """Scores of what these masks want scored."""
    return root.score(Noised.of(root.objective, batch, masks, torch.ones(len(batch.t))))


def scores_of(root, batch, wanted):
    """Scores of the superset, of wanted documents."""
    return scores_by(root, batch, replace(candidates(batch), scored=torch.tensor(wanted).nonzero()[:, 0]))


def exact_kept(model, batch):
    superset = candidates(batch).superset
    scores = torch.zeros(superset.shape)
    noised_ids = batch.clean_ids.masked_fill(superset, 100)
    scores[superset] = masked_gold_logprob(model, noised_ids, superset, batch.clean_ids)
    drawn = {"scores": batch.tie_uniform, "v": batch.count_uniform}
    return superset, select_kept(scores, superset, batch.t, batch.rho, NAMES, **drawn)


def test_approximate_learns_the_kept_tokens_on_the_superset(llada, batch):
    """One forward: the same tokens as exact scoring keeps, predicted from the superset's input."""
    superset, kept = exact_kept(llada, batch)
    calls = []
    hook = llada.model.blocks[0].register_forward_hook(lambda *_: calls.append(1))
    loss, stats, _ = loss_of(llada, batch, "lift3", scoring="approximate")
    hook.remove()
    assert len(calls) == 1
    logits = llada(input_ids=batch.clean_ids.masked_fill(superset, 100)).logits
    nll = -logits.log_softmax(-1).gather(-1, batch.clean_ids[..., None])[..., 0]
    assert loss.item() == pytest.approx(((nll / batch.t[:, None])[kept].sum() / 48).item(), rel=1e-5)
    assert stats.num_kept.tolist() == kept.sum(-1).tolist()
    loss.backward()
    ours = llada.model.transformer["ff_out"].weight.grad.clone()
    llada.zero_grad()
    logits = llada(input_ids=batch.clean_ids.masked_fill(superset, 100)).logits
    nll = -logits.log_softmax(-1).gather(-1, batch.clean_ids[..., None])[..., 0]
    ((nll / batch.t[:, None])[kept].sum() / 48).backward()
    torch.testing.assert_close(ours, llada.model.transformer["ff_out"].weight.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", ["vanilla", "lift3", "hard"])
def test_complementary_is_the_mean_of_both_views(llada, batch, method):
    """For every component, with both views divided by the same normaliser."""
    first = chosen(make_root(llada, method), batch).targets
    second = batch.response_mask & ~first
    t = batch.t
    expected = 0.5 * (
        sft_loss(llada, batch.clean_ids, first, t, 48) + sft_loss(llada, batch.clean_ids, second, 1 - t, 48)
    )
    loss, stats, objective = loss_of(llada, batch, method, complementary=True)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert stats.num_kept.tolist() == batch.response_mask.sum(-1).tolist()
    assert stats.num_views == 2
    assert objective.num_targets(batch).sum() == stats.num_kept.sum() / 2


@pytest.mark.parametrize("time_scaling", [True, False])
def test_cart_multiplies_or_replaces_the_level(llada, batch, time_scaling):
    superset = candidates(batch).superset
    weights = cart_weights(superset, 0.1)
    expected = sft_loss(llada, batch.clean_ids, superset, batch.t, 48, time_scaling=time_scaling, weights=weights)
    loss, _, _ = loss_of(llada, batch, "vanilla", token_weight="cart", time_scaling=time_scaling)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_only_documents_that_need_scores_are_scored(llada, batch):
    """A random document needs none; where none does, one token is run and ignored, so that ranks stay together."""

    def sizes(batch):
        found = []
        hook = llada.model.blocks[0].register_forward_pre_hook(
            lambda _, inputs: found.append(tuple(inputs[0].shape[:2]))
        )
        loss_of(llada, batch, "lift3")
        hook.remove()
        return found

    assert sizes(batch) == [(2, 20), (3, 20)]  # hard and easy are scored, then all three are trained on
    assert sizes(make_batch([0.5] * 3, [0.2] * 3, [1] * 3, batch.response_mask)) == [(1, 1), (3, 20)]


def test_scores_of_unwanted_documents_are_0(llada, batch):
    root = make_root(llada, "lift3")
    superset = candidates(batch).superset
    assert not scores_of(root, batch, [False] * 3).any()
    first = scores_of(root, batch, [True, False, False])
    everyone = scores_of(root, batch, [True] * 3)
    torch.testing.assert_close(first[0], everyone[0])
    assert not first[1:].any() and (everyone[superset] < 0).all()


def buffered(batch, difficulty, is_refreshed):
    return replace(
        batch, difficulty=difficulty.expand(batch.mask_uniform.shape), is_refreshed=torch.tensor(is_refreshed)
    )


def test_buffer_scoring_ranks_by_the_table(llada, batch):
    """Difficulty rises with the position: hard documents keep the last of the superset, easy ones the first."""
    filled = buffered(batch, torch.arange(20.0), [False] * 3)
    root = make_root(llada, "lift3", scoring="buffer", refresh_share=0.0, warm_start_steps=0)
    calls = []
    hook = llada.model.blocks[0].register_forward_hook(lambda *_: calls.append(1))
    _, stats = root.train()(filled, torch.ones(3))
    hook.remove()
    assert len(calls) == 1  # no second forward
    kept = chosen(root, filled).targets
    superset = candidates(batch).superset
    for row, best_first in ((0, -torch.arange(20)), (2, torch.arange(20))):
        places = superset[row].nonzero()[:, 0]
        expected = places[best_first[places].argsort()][: int(stats.num_kept[row])]
        assert sorted(expected.tolist()) == kept[row].nonzero()[:, 0].tolist()


def test_agreement_of_buffer_and_exact_choices(llada, batch):
    """1 where the table knows the exact scores; refreshed documents only; k^2 / |S| by chance."""
    root = make_root(llada, "lift3", scoring="buffer")
    superset, kept = exact_kept(llada, batch)
    scores = scores_of(root, batch, [True] * 3)

    def agreement(difficulty):
        return chosen(root, buffered(batch, difficulty, [True, True, False])).agreement.tolist()

    k, size = int(kept[0].sum()), int(superset[0].sum())  # document 1 is random, document 2 is not refreshed
    assert agreement(-scores) == [k, k, pytest.approx(k * k / size)]
    opposite = agreement(scores)
    assert opposite[0] == max(0, 2 * k - size) and opposite[1] == k


def test_scoring_in_bf16_ranks_nearly_the_same(llada, batch):
    full = scores_of(make_root(llada, "lift3"), batch, [True] * 3)
    narrow = scores_of(make_root(llada, "lift3", scoring_precision="bf16"), batch, [True] * 3)
    assert narrow.dtype == torch.float32 and not torch.equal(full, narrow)
    torch.testing.assert_close(full, narrow, rtol=0.05, atol=0.05)


def test_gift_conformance(llada, vectors, cases):
    for case in cases:
        names = ("clean_ids", "t", "prompt_lengths", "gift.uniform", "gift.token_mask_prob")
        clean_ids, t, prompts, uniform, expected = (vectors[f"{case['case']}.{name}"] for name in names)
        response = torch.arange(clean_ids.shape[1])[None] >= prompts[:, None]
        loss = gift_loss(llada, clean_ids, response, t, uniform=uniform)
        assert loss.item() == pytest.approx(case["gift.loss"], rel=1e-5), case["case"]
        root = make_root(llada, "gift")
        batch = make_batch(t.tolist(), [0.0] * len(t), [1] * len(t), response)
        object.__setattr__(batch, "clean_ids", clean_ids)
        levels = gift_levels(scores_by(root, batch, root.objective.noise(batch)), response, t, over_batch=True)
        torch.testing.assert_close(levels[response], expected[response].float(), rtol=1e-5, atol=1e-6)


def test_gift_in_the_trainer_is_the_function_of_each_document(llada, batch):
    """Whatever else is in the micro-batch."""
    loss, stats, _ = loss_of(llada, batch, "gift")
    expected = 0.0
    for row in range(3):
        inputs = [each[row : row + 1] for each in (batch.clean_ids, batch.response_mask, batch.t, batch.mask_uniform)]
        expected += gift_loss(llada, *inputs).item() * int(stats.num_kept[row]) / 48
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_gift_has_no_nan_at_zero_entropy():
    """The public code divides 0 by 0 there."""
    response = torch.ones(2, 4, dtype=torch.bool)
    entropy = torch.tensor([[0.0] * 4, [0.0, 1.0, 1.0, 0.0]])
    levels = gift_levels(entropy, response, torch.tensor([0.5, 0.5]))
    assert levels.isfinite().all()
    assert levels[0].tolist() == [0.5] * 4
    # mean beta is 1/2: exponents 0 and 2
    assert levels[1].tolist() == pytest.approx([1e-3, 0.75, 0.75, 1e-3])


def test_no_response_at_all(llada):
    for method in OBJECTIVES:
        empty = make_batch([0.5] * 3, [0.1] * 3, [0, 1, 2], torch.zeros(3, 12, dtype=torch.bool))
        loss, stats, _ = loss_of(llada, empty, method)
        loss.backward()
        assert loss.item() == 0 and not stats.num_kept.any()
        assert all(not parameter.grad.isnan().any() for parameter in llada.parameters())
        llada.zero_grad()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "vanilla", "policy": "random"}, "vanilla has no such option"),
        ({"method": "lift2", "random_weight": 4.0}, "lift2 has no such option; remove it, or use lift3"),
        ({"method": "gift", "complementary": True}, "gift has no such option"),
        ({"method": "vanilla", "scoring": "approximate"}, "vanilla has no such option"),
        ({"method": "lift3", "scoring": "approximate", "complementary": True}, "no mask before its forward"),
        ({"method": "gift", "normalizer": "masked_tokens"}, "no mask before its forward"),
        ({"method": "lift3", "refresh_share": 0.5}, "only read with objective.scoring=buffer"),
        ({"method": "lift3", "scoring": "buffer", "scoring_budget": 0.5}, "only read with objective.scoring=memory"),
        ({"method": "lift3", "scoring": "memory", "refresh_share": 0.5}, "only read with objective.scoring=buffer"),
        ({"method": "lift3", "scoring": "memory", "scoring_budget": 1.5}, "scoring_budget"),
        ({"method": "lift3", "scoring": "hybrid"}, "'exact', 'approximate', 'buffer' or 'memory'"),
        ({"method": "vanilla", "cart_p": 0.2}, "only read with objective.token_weight=cart"),
        (
            {"method": "lift3", "scoring": "approximate", "scoring_precision": "bf16"},
            "only read with objective.scoring",
        ),
        ({"method": "lift4"}, "unknown; allowed: vanilla, lift2"),
    ],
)
def test_options_that_a_method_does_not_have(settings, message):
    _, problems = load_run_config(None, [], {f"objective.{name}": value for name, value in settings.items()})
    assert len(problems) == 1 and message in problems[0]


def test_defaults_are_no_problem():
    for method in OBJECTIVES:
        assert load_run_config(None, [f"objective.method={method}"])[1] == []


def test_levels_are_checked(llada):
    ids = torch.ones(1, 4, dtype=torch.long)
    for t in (0.0, 1.01, math.nan):
        with pytest.raises(ValueError, match=r"\(0, 1\]"):
            gift_loss(llada, ids, ids.bool(), torch.tensor([t]))


def test_an_objective_of_ones_own(llada, batch):
    """The worked example of docs/extending.md, from the config to the loss, with an option of its own."""
    text = (REPOSITORY / "docs" / "extending.md").read_text()
    try:
        exec(re.search(r"```python\n(.*?)```", text, re.DOTALL).group(1), {"__name__": "last_part"})
        run, problems = load_run_config(None, ["objective.method=last_part", "objective.share=0.25"])
        assert problems == [] and run.model_dump()["objective"]["share"] == 0.25
        objective = make_objective(run.objective)
        _, problems = load_run_config(None, ["objective.method=last_part", "objective.share=2.0", "objective.rho=code"])
    finally:
        del OBJECTIVES["last_part"]
    assert "objective.share=2.0: input should be less than or equal to 1" in problems[0]
    assert "last_part has no such option; remove it, or use lift2, lift3, easy, hard, random" in problems[1]
    loss, stats = DiffusionStep(llada, objective).train()(batch, torch.full((3,), 1 / 48))
    loss.backward()
    late = candidates(batch).superset & (torch.arange(20) >= 16)  # 16 response tokens from 4 on: the last 4
    assert stats.num_kept.tolist() == late.sum(-1).tolist() == objective.num_targets(batch).tolist()
    assert loss.item() == pytest.approx(sft_loss(llada, batch.clean_ids, late, batch.t, 48).item(), rel=1e-5)
    assert late.any()


class UncountedSettings(ObjectiveSettings):
    method: Literal["uncounted"] = "uncounted"


class Uncounted(OBJECTIVES["vanilla"]):
    settings_type = UncountedSettings

    def num_targets(self, batch):
        return None


def test_a_normalizer_that_an_objective_cannot_count(monkeypatch):
    """Whatever it is called: its loss would be NaN."""
    monkeypatch.setitem(OBJECTIVES, "uncounted", Uncounted)
    flags = {"objective.method": "uncounted", "objective.normalizer": "masked_tokens"}
    _, problems = load_run_config(None, [], flags)
    assert problems == ["objective.normalizer=masked_tokens: uncounted has no mask before its forward; use another"]
