"""Block diffusion models and mixtures in the trainer: the step's loss, and whole runs on two ranks."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file

from lift_ds import block_sft_loss, generate_blocks, load_pretrained
from lift_ds.config.run import RunConfig
from lift_ds.data.batch import collate
from lift_ds.evaluation.settings import EvalConfig
from lift_ds.models.families import read_config
from lift_ds.models.head import masked_gold_logprob
from lift_ds.models.lora import add_adapters
from lift_ds.models.settings import LoraConfig
from lift_ds.models.weights import NewWeights
from lift_ds.objectives import make_objective, objective_settings
from lift_ds.planning.flops import Arithmetic
from lift_ds.planning.live_memory import measure_passes
from lift_ds.storage.run_folder import METRICS_FILE, read_metrics
from lift_ds.training.inputs import check_answers, level_block_size
from lift_ds.training.run import compile_layers
from lift_ds.training.step import DiffusionStep
from tests.conftest import SMALL, launch_train, losses_of, read_steps
from tests.distributed.jobs import make_documents
from tests.models.block_vectors import GIVEN, load, write_folder

BLOCKWISE = ["sdar_tiny", "llada2_tiny"]


@pytest.mark.parametrize("is_packed", [False, True])
@pytest.mark.parametrize("name", BLOCKWISE)
def test_the_steps_loss_is_that_of_the_plain_function(name, is_packed):
    """Vanilla SFT of documents of different lengths: sum over masked of CE / t, each document alone by hand."""
    model = load(name)
    objective = make_objective(objective_settings(method="vanilla"))
    documents, noises = make_documents(3, [0.3, 0.6, 0.9], set())
    batch = collate(documents, noises, 247)
    assert batch.is_padded
    loss, _ = DiffusionStep(model, objective, is_packed=is_packed)(batch, torch.full((3,), 1 / 50))
    masked = objective.noise(batch).masked
    expected = sum(
        block_sft_loss(
            model, batch.clean_ids[row : row + 1, :length], masked[row : row + 1, :length],
            torch.full((1, length), 1 / float(batch.t[row])), 50,
        )
        for row, length in enumerate(batch.lengths)
    )  # fmt: skip
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", BLOCKWISE)
def test_adapters_dropout_belongs_to_documents(name):
    """Of both copies: documents padded together, packed and alone have the same losses, other than without dropout."""
    model = load(name)
    targets = ["q_proj", "down_proj"] if name == "sdar_tiny" else ["query_key_value", "shared_experts.gate_proj"]
    add_adapters(model, 2, 4.0, 0.3, targets, 0)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "lora_B" in key:
                parameter.normal_(generator=torch.Generator().manual_seed(len(key)))
    objective = make_objective(objective_settings(method="vanilla"))
    documents, noises = make_documents(3, [0.3, 0.6, 0.9], set())

    def loss(chosen, is_packed=False, is_training=True):
        batch = collate([documents[row] for row in chosen], [noises[row] for row in chosen], 247)
        root = DiffusionStep(model, objective, is_packed=is_packed).train(is_training)
        return root(batch, torch.full((len(chosen),), 1 / 50), (7, 2))[0].item()

    together = loss([0, 1, 2])
    assert loss([0, 1, 2], is_packed=True) == pytest.approx(together, rel=1e-5)
    assert sum(loss([row]) for row in (2, 0, 1)) == pytest.approx(together, rel=1e-5)
    assert loss([0, 1, 2], is_training=False) != pytest.approx(together, rel=1e-3)


@pytest.mark.parametrize("name", BLOCKWISE)
def test_lift_scores_as_it_learns(name):
    """Scores of a superset are log p(gold) where blocks before are clean, and what is revealed is seen as such."""
    model = load(name)
    documents, noises = make_documents(3, [0.3, 0.6], set())
    batch = collate(documents, noises, 247)
    root = DiffusionStep(model, make_objective(objective_settings(method="lift3")))
    seen = {}
    choose = root.objective.choose
    root.objective.choose = lambda batch, candidates, scores: (
        seen.update(scores=scores) or choose(batch, candidates, scores)
    )
    loss, _ = root(batch, torch.full((2,), 1 / 50))
    candidates = root.objective.noise(batch)
    for row in candidates.scored.tolist():
        length = batch.lengths[row]
        clean_ids, masked = (each[row : row + 1, :length] for each in (batch.clean_ids, candidates.masked))
        expected = masked_gold_logprob(model, clean_ids.masked_fill(masked, 250), masked, clean_ids)
        torch.testing.assert_close(seen["scores"][row, :length][masked[0]], expected, rtol=1e-4, atol=1e-4)
    assert loss.isfinite() and len(candidates.scored)


@pytest.fixture
def folder_of(tiny_dir, tmp_path):
    """A folder of a family with a real tokenizer, for new weights."""

    def write(name):
        return write_folder(name, tiny_dir, tmp_path / name)

    return write


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("sdar_tiny", ["data.packing=best_fit"]),
        ("llada2_tiny", ["objective.method=vanilla", "model.freeze_router=true"]),
        ("llada_moe_tiny", ["model.router_aux_loss=0.01"]),
    ],
)
def test_runs_learn_resume_and_export(name, more, folder_of, tmp_path):
    """Six steps under ZeRO-3, the same from the checkpoint of the third, and an export that was compared."""
    folder = folder_of(name)
    settings = [*SMALL, *more, "--model", folder, "eval.solve_items=0", "data.pad_to_multiple=1", "eval.every=3"]
    done = launch_train(*settings, "--output", tmp_path / "run")
    losses = losses_of(tmp_path / "run")
    assert len(losses) == 6 and losses[6][0] < losses[1][0]
    assert "largest difference of the export's logits from the trained model's" in done.stdout
    checkpoint = tmp_path / "run" / "checkpoints" / "step-000003"
    launch_train(*settings, "--output", tmp_path / "again", "--resume", checkpoint)
    resumed = losses_of(tmp_path / "again")
    assert [resumed[step] for step in (4, 5, 6)] == [losses[step] for step in (4, 5, 6)]
    exported = load_file(tmp_path / "run" / "export" / "model.safetensors")
    model, _ = load_pretrained(tmp_path / "run" / "export")
    assert exported.keys() == model.state_dict().keys()
    first = NewWeights(read_config(folder), RunConfig().seed)
    routers = {
        key: torch.equal(each, first.tensor(key)) for key, each in exported.items() if key.endswith("gate.weight")
    }
    assert len(routers) == {"sdar_tiny": 0, "llada2_tiny": 1, "llada_moe_tiny": 2}[name]
    assert set(routers.values()) <= {name == "llada2_tiny"}  # which is frozen
    for record in read_metrics(tmp_path / "run" / METRICS_FILE, "step"):
        assert ("expert_load" in record) == bool(routers)
        if routers:
            assert 1 <= record["expert_load"] <= model.config.num_experts
            assert 1 <= record["balance_loss"] <= model.config.num_experts
            assert 0 < record["router_entropy"] <= math.log(model.config.num_experts) + 1e-6
            assert 0 <= record["experts_without_tokens"] < 1
    if name in BLOCKWISE:
        assert len(generate_blocks(model, torch.tensor([5, 6, 7]), 10, 2)) % GIVEN[name].get("block_size", 4) == 0


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("name", "more"),
    [
        pytest.param("sdar_tiny", ["objective.scoring=memory", "data.packing=best_fit"], marks=pytest.mark.slow),
        ("llada2_tiny", ["objective.t_min=0.3", "objective.t_max=0.8", "objective.normalizer=masked_tokens"]),
    ],
)
def test_levels_by_block_on_one_rank_and_on_two(name, more, folder_of, tmp_path):
    """The same steps on one rank and on two, and from a checkpoint; blocks are counted."""
    settings = [*SMALL, *more, "--model", folder_of(name), "eval.solve_items=0", "objective.level_per=block"]
    launch_train(*settings, "--output", tmp_path / "two")
    launch_train(*settings, "--output", tmp_path / "one", "optim.steps=4", num_ranks=1)
    two, one = (losses_of(tmp_path / output) for output in ("two", "one"))
    for step in (1, 2, 3, 4):
        assert one[step] == pytest.approx(two[step], rel=1e-4)
    checkpoint = tmp_path / "two" / "checkpoints" / "step-000003"
    launch_train(*settings, "--output", tmp_path / "again", "--resume", checkpoint)
    again = losses_of(tmp_path / "again")
    assert [again[step] for step in (4, 5, 6)] == [two[step] for step in (4, 5, 6)]
    for ours, theirs in zip(read_steps(tmp_path / "two"), read_steps(tmp_path / "one"), strict=False):
        counts = [sum(each["t_documents"]) for each in (ours, theirs)]
        assert counts[0] == counts[1] > 3 * ours["num_documents"] == 3 * theirs["num_documents"]
        assert ours["t_documents"] == theirs["t_documents"]
        assert ours["component_share"] == pytest.approx(theirs["component_share"])


def test_levels_by_block_need_blocks():
    objective = objective_settings("lift3", level_per="block")
    assert level_block_size(objective, load("llada2_tiny").config) == 8
    assert level_block_size(objective_settings("lift3"), load("llada2_tiny").config) is None
    with pytest.raises(ValueError, match="level_per=block: llada-moe does not denoise block after block; use"):
        level_block_size(objective, load("llada_moe_tiny").config)
    with pytest.raises(ValueError, match="token_weight=cart: it counts later blocks"):
        objective_settings("lift3", level_per="block", token_weight="cart")
    with pytest.raises(ValueError, match="token_weight=papl: its softmax compares the tokens of a document"):
        objective_settings("lift3", level_per="block", token_weight="papl")


def test_what_the_trainer_cannot_do_with_them():
    model = load("sdar_tiny")
    run = RunConfig(eval=EvalConfig(solve_items=3))
    with pytest.raises(ValueError, match="sdar denoises blocks of 4 .* eval.block_length=64: set it to 4, the model's"):
        check_answers(run, model.config)
    check_answers(RunConfig(), model.config)
    check_answers(RunConfig(eval=EvalConfig(solve_every=2, block_length=4)), model.config)
    check_answers(run, load("llada_moe_tiny").config)
    with pytest.raises(ValueError, match="model.compile=true: layers with experts are not compiled"):
        compile_layers(load("llada_moe_tiny"))


def test_a_plan_counts_both_copies():
    """A token of SDAR goes through every matrix twice, and holds twice as much as one of the same layers without."""
    config = load("sdar_tiny").config
    layer = 64 * 16 * (4 + 2 + 2 + 4) + 3 * 64 * 112
    assert Arithmetic.of(config).matrices == 2 * 2 * layer
    moe = load("llada2_tiny").config
    attention, dense = 64 * 16 * (4 + 2 + 2 + 4), 3 * 64 * 112
    assert Arithmetic.of(moe).matrices == 2 * (2 * attention + dense + (4 + 1) * 3 * 64 * 24)
    assert Arithmetic.of(moe).query_width == 64
    short, long = (measure_passes(config, LoraConfig(), torch.float32, 0, 1, length, 8, "cpu") for length in (32, 64))
    assert short.saved > 2 * 32 * 2 * 64 * 4  # at least the 64 inputs of both layers, of width 64
    assert long.saved == pytest.approx(2 * short.saved, rel=0.05)


@pytest.mark.distributed
def test_a_run_lets_them_answer(folder_of, tmp_path):
    """Three items on two ranks under ZeRO-3, one of which has one item twice, and on one process under ZeRO-2."""
    asked = ["eval.solve_items=3", "eval.gen_length=16", "eval.block_length=4", "eval.steps=8", "eval.rows=0"]
    asked += ["eval.solve_every=1", "eval.solve_subset=3", "eval.watch_every=1", "checkpoint.save_every=0"]
    settings = [*SMALL, *asked, "--model", folder_of("sdar_tiny"), "optim.steps=2", "data.pad_to_multiple=1"]
    found = []
    for num_ranks, preset in ((2, "zero3"), (1, "zero2")):
        output = tmp_path / preset
        done = launch_train(
            *settings, "--output", output, "--deepspeed", f"ds_configs/{preset}.json", num_ranks=num_ranks
        )
        assert "step 2, " in done.stdout  # the item that is watched
        lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
        found.append([line for line in lines if line["kind"] == "solve"])
        assert [line["moment"] for line in found[-1]] == ["before", "during", "during", "after"]
    for cut, whole in zip(*found, strict=True):
        assert cut["scores"] == whole["scores"] and cut["solved"] == whole["solved"]
    # a prompt's blocks, four blocks of two steps, or five where the prompt leaves a tail, and all but the last kept
    (per_item,) = {line["forwards_per_item"] for line in found[0][:1]}
    assert 4 <= per_item <= 1 + 5 * 2 + 4
