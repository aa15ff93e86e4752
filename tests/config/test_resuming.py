"""What a run that goes on may change, on plain values."""

import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lift_ds.config.deepspeed import KNOWN_KEYS, PERFORMANCE
from lift_ds.config.loading import known_keys, resolve
from lift_ds.config.resuming import (
    FIXED,
    FREE,
    MEANT,
    NAMES,
    Change,
    Meaning,
    Rule,
    find_changes,
    find_json_changes,
    inherit_json,
    overlay,
    rule_of,
)
from lift_ds.config.run import RunConfig
from lift_ds.section import flat

RECORDED = RunConfig().model_dump()
KEYS = st.sampled_from(known_keys())


def resumed(recorded, given):
    """The config of a run that goes on, what is wrong with it, and what differs."""
    before, _ = resolve(overlay(recorded, {}))
    now, problems = resolve(overlay(recorded, given))
    return now, problems, {change.key: change for change in find_changes(before, now)}


def test_every_key_has_one_rule():
    """A new key needs an entry in one of the tables: what may a run that goes on do with it?"""
    assert [key for key in known_keys() if rule_of(key) is None] == []
    entries = [*FREE, *NAMES, *MEANT, *FIXED]
    for entry in entries:
        assert any(key == entry or key.startswith(entry) for key in known_keys()), entry
    twice = [key for key in known_keys() if sum(key == each or key.startswith(f"{each}.") for each in entries) > 1]
    assert twice == ["data.sources"]  # its paths are names, and the rest of it is fixed
    assert PERFORMANCE < KNOWN_KEYS


def test_the_rules():
    assert {rule_of(key) for key in ("optim.steps", "eval.rows", "checkpoint.keep", "log_every")} == {Rule.FREE}
    assert {rule_of(key) for key in ("optim.lr", "objective.method", "optim.global_batch")} == {Rule.MEANT}
    assert {rule_of(key) for key in ("seed", "data.lanes", "lora.rank", "data.columns.prompt")} == {Rule.FIXED}
    json_rules = {key: rule_of(f"deepspeed.{key}") for key in ("gradient_clipping", "bf16.enabled", "optimizer.type")}
    assert set(json_rules.values()) == {Rule.MEANT}
    assert rule_of("deepspeed.zero_optimization.stage") is Rule.FREE
    assert rule_of("deepspeed.zero_optimization.zero_quantized_gradients") is Rule.MEANT


@given(st.sets(KEYS), st.booleans())
def test_recorded_values_given_again_are_no_changes(keys, has_mixture):
    recorded = copy.deepcopy(RECORDED)
    if has_mixture:
        recorded["data"]["sources"] = [{"path": "a.jsonl", "weight": 1.0}, {"path": "b.jsonl", "weight": 2.0}]
    values, nested = flat(recorded), {}
    for key in keys & values.keys() - {"data.path", "data.sources", "output", "checkpoint.resume"}:
        *sections, name = key.split(".")
        owner = nested
        for section in sections:
            owner = owner.setdefault(section, {})
        owner[name] = values[key]
    now, problems, changes = resumed(recorded, nested)
    assert not problems and not changes
    assert (now.data.sources is not None) == has_mixture


@given(KEYS, st.booleans(), st.booleans(), st.booleans())
def test_the_rule_decides(key, is_given, is_meant, has_steps):
    meaning = Meaning({key: ""} if is_given else {}, [key] if is_meant else [], has_steps)
    problem = meaning.problem(Change(key, None, [{"path": "a.jsonl"}]))
    rule = Rule.FIXED if key == "data.sources" else rule_of(key)
    may = not is_given or rule is Rule.FREE or (has_steps and rule is Rule.NAMES)
    may |= is_meant and not (has_steps and rule is Rule.FIXED)
    assert (problem is None) == may
    if problem is not None:
        assert problem.startswith(f"{key}: none -> ")
        assert ("cannot change" in problem) == (has_steps and rule is Rule.FIXED)
        assert (f"--change {key}" in problem) == ("cannot change" not in problem)


def test_what_is_not_given_is_the_records():
    recorded = copy.deepcopy(RECORDED)
    recorded["optim"] |= {"lr": 1e-3, "steps": 20}
    recorded |= {"output": "there", "seed": 7}
    recorded["checkpoint"]["resume"] = "elsewhere"
    now, problems, changes = resumed(recorded, {"optim": {"lr": 5e-6}, "eval": {"rows": 3}})
    assert not problems
    assert (now.seed, now.optim.steps, now.output, now.checkpoint.resume) == (7, 20, "auto", "none")
    assert [str(change) for change in changes.values()] == ["optim.lr: 0.001 -> 5e-06", "eval.rows: 32 -> 3"]


def test_another_method_keeps_the_options_that_it_has():
    recorded = copy.deepcopy(RECORDED)
    recorded["objective"] |= {"random_weight": 4.0, "t_min": 0.01}
    now, problems, changes = resumed(recorded, {"objective": {"method": "vanilla"}})
    assert not problems
    assert (now.objective.method, now.objective.t_min) == ("vanilla", 0.01)
    assert str(changes["objective.random_weight"]) == "objective.random_weight: 4.0 -> not set"


def test_a_mixture_takes_the_place_of_a_path_and_back():
    mixture = [{"path": "a.jsonl", "weight": 1.0}, {"path": "b.jsonl", "weight": 2.0}]
    now, problems, changes = resumed(RECORDED, {"data": {"sources": mixture}})
    assert not problems and len(now.data.sources) == 2 and set(changes) == {"data.sources"}
    moved = [entry | {"path": f"moved/{entry['path']}"} for entry in mixture]
    recorded = copy.deepcopy(RECORDED)
    recorded["data"]["sources"] = mixture
    _, _, changes = resumed(recorded, {"data": {"sources": moved}})
    meaning = Meaning({"data.sources": ""}, [], has_steps=True)
    assert meaning.problem(changes["data.sources"]) is None
    moved[0]["weight"] = 3.0
    _, _, changes = resumed(recorded, {"data": {"sources": moved}})
    assert "cannot change" in meaning.problem(changes["data.sources"])
    now, problems, _ = resumed(recorded, {"data": {"path": "c.jsonl"}})
    assert not problems and (now.data.path, now.data.sources) == ("c.jsonl", None)


@pytest.mark.parametrize(
    ("loaded", "inherited", "lines", "changes"),
    [
        (
            {},
            {"gradient_clipping": 0.5, "bf16": {"enabled": False}},
            ["deepspeed.gradient_clipping: 0.5, as recorded"],
            [],
        ),
        ({"gradient_clipping": "auto"}, {"gradient_clipping": 0.5, "bf16": {"enabled": False}}, [], []),
        (
            {"gradient_clipping": 1.0, "bf16": {"enabled": "auto"}},
            {"gradient_clipping": 1.0, "bf16": {"enabled": False}},
            [],
            ["deepspeed.gradient_clipping: 0.5 -> 1.0"],
        ),
        (
            {"gradient_clipping": 0.5, "bfloat16": {"enabled": True}, "prescale_gradients": False},
            {"gradient_clipping": 0.5, "bf16": {"enabled": True}, "prescale_gradients": False},
            [],
            ["deepspeed.bf16.enabled: false -> true"],
        ),
        (
            {"gradient_clipping": 0.5, "bf16": {"enabled": False, "check_grad_overflow": True}},
            {"gradient_clipping": 0.5, "bf16": {"enabled": False, "check_grad_overflow": True}},
            [],
            [],  # DeepSpeed's default, written out
        ),
        (
            {"gradient_clipping": 0.5, "bf16": {"enabled": False, "check_grad_overflow": False}},
            {"gradient_clipping": 0.5, "bf16": {"enabled": False, "check_grad_overflow": False}},
            [],
            ["deepspeed.bf16.check_grad_overflow: true -> false"],
        ),
    ],
)
def test_deepspeeds_json(loaded, inherited, lines, changes):
    """What it leaves out, or to the machine, is as it was; what it says otherwise is a change."""
    recorded = {"gradient_clipping": 0.5, "bf16": {"enabled": False}, "zero_optimization": {"stage": 3}}
    zero = {"zero_optimization": {"stage": 2, "reduce_bucket_size": "auto"}}
    found, said = inherit_json(loaded | zero, recorded)
    assert (found, said) == (inherited | zero, lines)
    stage = "deepspeed.zero_optimization.stage: 3 -> 2"
    assert sorted(map(str, find_json_changes(recorded, found))) == sorted([*changes, stage])


def test_change_of_what_is_not_given_or_not_known():
    meant = ["optim.lr", "optim.beta2", "optim.rate", "deepspeed.x", "model.path", "data.path"]
    meaning = Meaning({"optim.lr": "", "seed": ""}, meant, True)
    assert list(meaning.misnamed([Change("seed", 1, 2), Change("model.path", None, None)])) == [
        (False, "--change optim.lr: nothing to change, the run has this value already"),
        (True, "--change optim.beta2: no value is given; add optim.beta2=VALUE, or remove the flag"),
        (True, "--change optim.rate: unknown key; did you mean optim.lr?"),
        (True, "--change deepspeed.x: no value is given; write x into the JSON, or remove the flag"),
        (False, "--change data.path: nothing to change, the run has this value already"),
    ]
