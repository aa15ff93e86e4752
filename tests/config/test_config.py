import json
from pathlib import Path

import pytest
import yaml

from lift_ds.cli.train import make_parser
from lift_ds.config.deepspeed import as_deepspeed_counts, read_ds_json, resolve_ds_json
from lift_ds.config.loading import ConfigError, explain_keys, known_keys, load_run_config
from lift_ds.config.run import RunConfig
from lift_ds.models.families import FAMILIES, family_of
from lift_ds.models.layer_sizes import LayerSizes
from lift_ds.models.llada import LLaDAConfig
from lift_ds.models.lora import add_adapters
from lift_ds.section import flat
from lift_ds.text_files import load_yaml
from tests.conftest import REPOSITORY, VECTORS

CASES = VECTORS / "cases" / "yaml_duplicate"
RECIPES = [REPOSITORY / "lift_ds/assets/reasoning.yaml", *sorted((REPOSITORY / "launchers/recipes").glob("*.yaml"))]
DS_CONFIGS = sorted((REPOSITORY / "ds_configs").glob("*.json"))
STABLE_KEYS = ["optim.steps", "optim.lr", "objective.method", "checkpoint.save_every", "eval.solve_items"]


def test_overrides_win_over_the_recipe(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("optim:\n  lr: 5e-6\n  steps: 20\nobjective:\n  method: vanilla\n")
    config, problems = load_run_config(
        recipe, ["objective.method=lift2", "optim.steps=300", "data.path=[a.jsonl, b.jsonl]"]
    )
    assert not problems
    assert (config.optim.lr, config.optim.steps, config.objective.method) == (5e-6, 300, "lift2")
    assert config.data.path == ["a.jsonl", "b.jsonl"]


def test_exponents_are_numbers_wherever_they_stand(tmp_path):
    """YAML 1.1, which PyYAML reads, takes all of these for strings."""
    for text, number in {"5e-6": 5e-6, "1.5e3": 1500.0, "-2E+1": -20.0, ".5e1": 5.0, "2.e0": 2.0}.items():
        assert load_yaml(f"[{text}]") == [number] and load_yaml(f"a: {{b: [{text}]}}") == {"a": {"b": [number]}}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("data:\n  sources: [{path: a.jsonl, weight: 5e-1}, {path: b.jsonl, weight: 1e0}]\n")
    overrides = ["data.sources=[{path: a.jsonl, weight: 5e-1}, {path: b.jsonl, weight: 1e0}]"]
    for config, problems in (load_run_config(recipe, []), load_run_config(None, overrides)):
        assert not problems
        assert [source.weight for source in config.data.sources] == [0.5, 1.0]


def test_what_is_no_number_stays_a_string():
    for text in ('"5e-6"', "'5e-6'"):
        assert load_yaml(text) == "5e-6"
    for text in ("1e5x", "e5", "5e", "5e-", "1e5/rows.jsonl", "v1e5", "1-e5"):
        assert load_yaml(text) == text
    assert "optim.lr='5e-6': input should be a valid number" in load_run_config(None, ["optim.lr='5e-6'"])[1][0]


def test_a_text_that_reads_as_a_number_needs_quotes():
    """As YAML has it; flags such as `--output 1e5` are taken as they are."""
    _, (problem,) = load_run_config(None, ["output=1e5"])
    assert "output=100000.0: input should be a valid string" in problem and "needs quotes" in problem
    config, problems = load_run_config(None, ["output='1e5'", 'data.path="1e5"'])
    assert not problems and (config.output, config.data.path) == ("1e5", "1e5")
    assert load_run_config(None, [], {"output": "1e5"})[0].output == "1e5"


def test_all_problems_at_once():
    overrides = ["optim.lr=abc", "objective.metod=lift2", "optim.steps=-3", "nonsense", "eval.solve_items=1.5", "a.b=1"]
    config, problems = load_run_config(None, [*overrides, "optim.eps=1e-6"])
    assert config.optim.eps == 1e-6
    assert config.objective.method == "lift3"  # the rest can still be checked
    text = str(ConfigError(problems))
    assert "6 problems in the configuration" in text
    for part in (
        "optim.lr='abc': input should be a valid number",
        "objective.metod: unknown key; did you mean objective.method?",
        "optim.steps=-3: input should be greater than or equal to 1",
        "'nonsense': an override has the form section.key=value",
        "eval.solve_items=1.5: input should be a valid integer",
        "a: unknown key",
    ):
        assert part in text


@pytest.mark.parametrize(
    ("overrides", "starts"),
    [
        (
            [
                "objective.method=gift",
                "objective.cart_p=0.2",
                "objective.papl_tau=2.0",
                "objective.normalizer=masked_tokens",
            ],
            [
                "objective.cart_p=0.2: only read",
                "objective.papl_tau=2.0: only read",
                "objective.normalizer=masked_tokens: gift has no mask",
            ],
        ),
        (
            ["objective.scoring=buffer", "objective.cart_p=0.2", "difficulty.enabled=false", "eval.rows=5"],
            ["objective.cart_p=0.2: only read", "objective.scoring=buffer needs difficulty.enabled=true"],
        ),
        (
            [
                *("objective.scoring=buffer", "difficulty.enabled=false"),
                *("checkpoint.best_by=heldout_loss", "eval.rows=0", "eval.every=7"),
            ],
            ["checkpoint.best_by=heldout_loss: needs held-out", "objective.scoring=buffer needs difficulty"],
        ),
        (["objective.method=own", "objective.share=0.2"], ["objective.method='own': unknown"]),
        (
            ["runtime.prometheus_file=run.txt"],
            ["runtime.prometheus_file=run.txt: node_exporter reads *.prom alone; name it run.txt.prom"],
        ),
        (["objective.method=[vanilla]"], ["objective.method=['vanilla']: unknown"]),
        (["objective={1: 2}"], ["objective.1=1: keys should be strings"]),
    ],
)
def test_every_check_is_reported_once(overrides, starts):
    """Also where one check hides another, or several sections are wrong together."""
    _, problems = load_run_config(None, overrides)
    assert len(problems) == len(starts), problems
    for problem, start in zip(problems, starts, strict=True):
        assert problem.startswith(start)


def test_keys_that_do_not_fit_each_other():
    assert "must be a multiple of eval.block_length=64" in load_run_config(None, ["eval.gen_length=50"])[1][0]
    assert (
        "must be a multiple of the number of blocks, 4"
        in load_run_config(None, ["eval.block_length=16", "eval.steps=30"])[1][0]
    )


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["checkpoint.best_by=heldout_loss", "checkpoint.save_every=0"], "needs checkpoints to choose from"),
        (
            ["model.checkpoint_layers=3", "model.gradient_checkpointing=true"],
            "gradient_checkpointing=true means all",
        ),
        (["model.checkpoint_layers=-1"], "model.checkpoint_layers=-1: input should be greater than or equal to 0"),
        (["checkpoint.best_by=heldout_loss", "eval.rows=0"], "needs held-out rows, and eval.rows=0 turns them off"),
        (
            ["checkpoint.best_by=solve_rate", "checkpoint.save_every=0", "checkpoint.export=best"],
            "writes only the last",
        ),
        (["checkpoint.export=best"], "needs checkpoint.best_by=heldout_loss or solve_rate"),
        (["checkpoint.best_by=accuracy"], "also keep the checkpoint that is best by"),
    ],
)
def test_a_best_checkpoint_that_there_cannot_be(overrides, message):
    config, problems = load_run_config(None, [*overrides, "optim.lr=x", "checkpoint.resume=auto"])
    assert config.checkpoint.resume == "auto"
    assert len(problems) == 2
    assert any(message in problem for problem in problems)


@pytest.mark.parametrize(
    ("content", "message"),
    [("", "is empty"), ("- a\n", "holds a list"), ("a: [", "not YAML"), (None, "cannot be read")],
)
def test_unusable_recipes(tmp_path, content, message):
    recipe = tmp_path / "recipe.yaml"
    if content is not None:
        recipe.write_text(content)
    assert message in load_run_config(recipe, [])[1][0]


def test_what_is_written_twice():
    """Both places of every key, in recipes and in DeepSpeed's JSON; an undecodable file by line and byte."""
    (problem,) = load_run_config(CASES / "recipe.yaml", [])[1]
    assert problem.startswith(f"--config {CASES / 'recipe.yaml'}: a key stands twice, and only the last would count: ")
    assert "'optim' in line 1 and again in line 6" in problem
    assert "'rows' in line 9 and again in line 10" in problem
    problem = read_ds_json(CASES / "ds.json")[1][0]
    assert problem.startswith(
        f"--deepspeed {CASES / 'ds.json'}: the key 'gradient_clipping' stands twice in one object"
    )
    assert "at line 5 character 3 and line 6 character 3" in problem
    (problem,) = load_run_config(CASES / "latin1.yaml", [])[1]
    assert problem.startswith(f"--config {CASES / 'latin1.yaml'}: line 2: byte 23 of the file (0xfc) is no UTF-8; ")
    for problem, *_ in (load_run_config(CASES, [])[1], read_ds_json(CASES)[1]):
        assert f"{CASES}: cannot be read: Is a directory" in problem


@pytest.mark.parametrize(
    ("overrides", "first", "second"),
    [
        (["optim.lr=1", "eval.rows=3", "optim.lr=2"], "optim.lr=1", "optim.lr=2"),
        (["optim.lr=1", "optim={steps: 3}"], "optim.lr=1", "optim={steps: 3}"),
        (["optim={steps: 3}", "optim.steps=3"], "optim={steps: 3}", "optim.steps=3"),
        (["data.path=b.jsonl"], "--data a.jsonl", "data.path=b.jsonl"),
        (["model.path=other"], "--model model", "model.path=other"),
    ],
)
def test_two_values_on_one_command_line(overrides, first, second):
    flags = {"data.path": "a.jsonl", "model.path": "model"}
    shown = {"data.path": "--data a.jsonl", "model.path": "--model model"}
    problems = load_run_config(None, overrides, flags, shown)[1]
    key = second.partition("=")[0]
    assert f"{first} and {second}: one command line gives {key} two values; remove one of them" in problems


def test_the_same_value_twice():
    overrides = ["optim.lr=1e-3", "optim.lr=0.001", "data.path=a.jsonl"]
    config, problems = load_run_config(None, overrides, {"data.path": "a.jsonl"}, {"data.path": "--data a.jsonl"})
    assert not problems
    assert config.optim.lr == 1e-3
    (problem,) = load_run_config(None, ["data.columns={prompt: a, prompt: b}"])[1]
    assert problem.startswith("'data.columns={prompt: a, prompt: b}': a key stands twice")


def test_flags_twice(capsys):
    """argparse would forget the first; --data may be given again."""
    parse = make_parser().parse_intermixed_args
    given = parse(["--deepspeed", "a", "--data", "b", "optim.lr=1", "--data", "c", "--deepspeed", "a"])
    assert (given.deepspeed, given.data) == (Path("a"), ["b", "c"])
    with pytest.raises(SystemExit):
        parse(["--deepspeed", "a", "--model", "b", "--model", "c"])
    assert "argument --model: given twice, b and c; remove one" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("2026-01-31T12:00:00", "2026-01-31T12:00:00"),
        ("2026-01-31", "2026-01-31"),
        ("'2026-01-31 12:00'", "2026-01-31 12:00"),
    ],
)
def test_a_clock_that_yaml_takes_for_a_time(written, read):
    config, problems = load_run_config(None, [f"data.clock={written}"])
    assert not problems and config.data.clock == read


def test_help_explains_every_key():
    explained = explain_keys()
    assert set(STABLE_KEYS) <= set(known_keys())
    for key in known_keys():
        assert f"  {key}  (" in explained
    assert "\n      None" not in explained
    assert "\n      \n" not in explained


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipes_are_valid(recipe):
    config, problems = load_run_config(recipe, [])
    assert not problems
    assert config != RunConfig()


SMALL_MODEL = LLaDAConfig(d_model=128, n_layers=2, n_heads=4, mlp_hidden_size=96, vocab_size=100)


def resolve(loaded, config=None, world_size=2, has_bf16=False, model=SMALL_MODEL, node_size=None):
    return resolve_ds_json(loaded, Path("zero.json"), config or RunConfig(), world_size, model, has_bf16, node_size)


@pytest.mark.parametrize("path", DS_CONFIGS, ids=lambda path: path.stem)
def test_shipped_json_resolves(path):
    loaded, problems = read_ds_json(path)
    assert not problems
    resolved, problems = resolve(loaded)
    assert not problems
    left = {key for key, value in flat(resolved).items() if value == "auto"}
    assert left <= {"train_micro_batch_size_per_gpu", "gradient_accumulation_steps"}
    assert "auto" not in json.dumps(as_deepspeed_counts(resolved))


def test_weights_are_cut_again_over_a_machine():
    """By "auto" where there are several machines; DeepSpeed would ignore the key below stage 3."""

    def second_cut(size, stage=3, **ranks):
        zero, problems = resolve({"zero_optimization": {"stage": stage, "zero_hpz_partition_size": size}}, **ranks)
        return zero["zero_optimization"]["zero_hpz_partition_size"], [each for each in problems if "hpz" in each]

    assert second_cut("auto", world_size=8, node_size=4) == (4, [])
    assert second_cut("auto", world_size=4, node_size=4) == second_cut("auto", world_size=4) == (1, [])
    assert second_cut(2, world_size=4) == (2, [])
    for size, stage, ranks, message in (
        (2, 2, {}, "=2: only stage 3 cuts weights; remove it"),
        ("auto", 3, {"world_size": 6, "node_size": 4}, "=4 does not divide 6 ranks; it needs machines of equally many"),
        (0, 3, {}, '=0: the ranks of a machine, or "auto"'),
        (True, 3, {}, '=True: the ranks of a machine, or "auto"'),
        ("4", 3, {}, "='4': the ranks of a machine, or \"auto\""),
    ):
        (problem,) = second_cut(size, stage, **ranks)[1]
        assert f"zero.json: zero_optimization.zero_hpz_partition_size{message}" in problem


def test_auto_is_filled():
    keys = ("reduce_bucket_size", "stage3_param_persistence_threshold", "reduce_scatter")
    loaded = {"zero_optimization": {"stage": 3} | dict.fromkeys(keys, "auto")}
    resolved, problems = resolve(loaded)
    assert not problems
    assert resolved["train_batch_size"] == 8
    assert resolved["train_micro_batch_size_per_gpu"] == resolved["gradient_accumulation_steps"] == "auto"  # by tokens
    assert resolved["zero_optimization"]["reduce_scatter"] is True
    assert resolve(loaded, world_size=1)[0]["zero_optimization"]["reduce_scatter"] is False
    assert resolved["bf16"] == {"enabled": False}
    assert resolve(loaded, has_bf16=True)[0]["bf16"] == {"enabled": True}
    layer = 4 * 128 * 128 + 3 * 128 * 96 + 2 * 128
    assert resolved["zero_optimization"]["reduce_bucket_size"] == layer
    assert resolved["zero_optimization"]["stage3_param_persistence_threshold"] == 1280


def test_buckets_of_an_8b_model_hold_a_layer():
    """LLaDA-8B: four matrices of 4096^2, three of 4096 * 12288, two norms; adapters of rank 128 at three matrices."""
    matrices, adapters = 4 * 4096**2 + 3 * 4096 * 12288, 3 * 2 * 128 * 4096
    loaded = json.loads((REPOSITORY / "ds_configs" / "zero3.json").read_text())
    full = resolve(loaded, model=LLaDAConfig())[0]["zero_optimization"]
    assert matrices == 218_103_808
    assert full["stage3_prefetch_bucket_size"] == matrices  # norms are below the threshold, and always gathered
    assert full["stage3_param_persistence_threshold"] == 10 * 4096
    assert full["reduce_bucket_size"] == matrices + 2 * 4096
    lora = RunConfig(lora={"rank": 128, "targets": ["q_proj", "k_proj", "v_proj"]})
    adapted = resolve(loaded, lora, model=LLaDAConfig())[0]["zero_optimization"]
    assert adapted["stage3_prefetch_bucket_size"] == matrices + adapters == 221_249_536
    assert adapted["reduce_bucket_size"] == 4096**2 > adapters  # five layers' gradients in one message
    loaded["zero_optimization"] |= {"stage3_param_persistence_threshold": 0, "reduce_bucket_size": 5}
    own = resolve(loaded, lora, model=LLaDAConfig())[0]["zero_optimization"]
    assert own["stage3_prefetch_bucket_size"] == matrices + adapters + 2 * 4096
    assert own["reduce_bucket_size"] == 5


def test_layers_are_counted_as_they_are_built():
    """Grouped heads, tied weights, another family: the sizes are those of the model with its adapters."""
    config = FAMILIES["a2d-qwen3"].config_class(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
        intermediate_size=48, vocab_size=40, right_shift_logits=True,
    )  # fmt: skip
    model = family_of(config).model_class(config)
    add_adapters(model, 3, 6.0, 0.0, ["q_proj", "down_proj"], 0)
    layer = next(module for module in model.modules() if isinstance(module, family_of(config).layer_class))
    sizes = LayerSizes.of(config, 3, ["q_proj", "down_proj"])
    for requires_grad, counted in ((True, sizes.trained), (False, sizes.frozen)):
        built = [each.numel() for each in layer.parameters() if each.requires_grad is requires_grad]
        assert sorted(built) == sorted(counted)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_batch_size": 64}, "train_batch_size=64 but optim.global_batch gives 8"),
        ({"train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 4}, "gradient_accumulation_steps=4 but"),
        ({"gradient_accumulation_steps": 4}, 'cuts each step by data.micro_batch_tokens; write "auto"'),
        ({"train_micro_batch_size_per_gpu": 0}, "a positive number"),
        (
            {"optimizer": {"type": "AdamW", "params": {"lr": 1e-5}}},
            "optimizer.params.lr=1e-05 but optim.lr gives 5e-06",
        ),
        ({"optimizer": {"type": "Lamb"}}, "optimizer.type='Lamb'"),
        ({"optimizer": {"type": "AdamW", "params": {"momentum": 1}}}, "optimizer.params.momentum: unknown"),
        ({"scheduler": {"type": "WarmupLR"}}, "set optim.schedule"),
        ({"gradient_clipping": "auto"}, 'gradient_clipping="auto" has no counterpart'),
    ],
)
def test_two_homes_of_a_number(change, message):
    _, problems = resolve({"zero_optimization": {"stage": 3}, **change})
    assert len(problems) == 1
    assert message in problems[0]


@pytest.mark.parametrize("section", ["offload_param", "offload_optimizer"])
def test_nvme_is_refused_before_anything_is_trained(section):
    """Training works, and the first save fails: DeepSpeed's swap files are no part of a checkpoint here."""
    loaded = {"zero_optimization": {"stage": 3, section: {"device": "nvme", "nvme_path": "/tmp"}}}
    _, problems = resolve(loaded)
    assert len(problems) == 1
    assert f"zero_optimization.{section}.device=nvme" in problems[0] and "allowed: none, cpu" in problems[0]
    loaded["zero_optimization"][section]["device"] = "cpu"
    assert not resolve(loaded)[1]


def test_equal_numbers_are_allowed():
    params = {"lr": 5e-6, "betas": "auto", "eps": "auto", "weight_decay": 0.1}
    resolved, problems = resolve(
        {"zero_optimization": {"stage": 3}, "train_batch_size": 8, "optimizer": {"type": "AdamW", "params": params}}
    )
    assert not problems
    assert "optimizer" not in resolved


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not JSON"),
        ("[]", "holds a list"),
        (
            '{"zero_optimisation": {"stage": 3}}',
            "unknown key 'zero_optimisation'; DeepSpeed would ignore it; did you mean zero_optimization?",
        ),
        ('{"zero_optimization": {"stage": 4}}', "zero_optimization.stage must be"),
        ('{"bf16": {"enabled": true}}', "zero_optimization.stage must be"),
        ('{"zero_optimization": {"stage": 3}, "fp16": {"enabled": true}}', "only bf16 and float32"),
    ],
)
def test_unusable_json(tmp_path, content, message):
    path = tmp_path / "zero.json"
    path.write_text(content)
    assert any(message in problem for problem in read_ds_json(path)[1])


def test_missing_json():
    assert "cannot be read" in read_ds_json(Path("nowhere.json"))[1][0]


def test_recipes_name_what_made_the_base():
    folder = REPOSITORY / "launchers" / "recipes"
    text, chats = (yaml.safe_load((folder / f"{stage}_base.yaml").read_text()) for stage in ("pretrain", "instruct"))
    assert (text["data"]["path"], chats["data"]["path"]) == ("builtin:pretraining", "builtin:instructions")
    assert text["model"]["from_scratch"] is True
    assert chats["model"]["path"] == f"{text['output']}/export"
