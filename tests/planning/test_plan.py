"""The plan of a run: its parts against arithmetic, what it refuses, and the command line."""

import json
import re
from dataclasses import replace

import pytest

from lift_ds.cli import train
from lift_ds.cli.plan import main
from lift_ds.config.run import RunConfig
from lift_ds.models.settings import LoraConfig
from lift_ds.models.weights import parameter_shapes
from lift_ds.planning import report
from lift_ds.planning.costs import Rates, Received, checkpoint_bytes, received_in_step, step_seconds
from lift_ds.planning.flops import Arithmetic
from lift_ds.planning.memory import estimate
from lift_ds.planning.report import Longest
from lift_ds.planning.run import plan_of
from lift_ds.planning.sizes import Sizes, config_of
from lift_ds.training import engine
from tests.conftest import REPOSITORY

BASE = config_of("builtin:base")
ZERO3 = {
    "bf16": {"enabled": True},
    "train_micro_batch_size_per_gpu": 2,
    "gradient_accumulation_steps": 3,
    "zero_optimization": {"stage": 3, "reduce_bucket_size": 1000, "stage3_param_persistence_threshold": 0},
}


def plan(ds_json=ZERO3, config=BASE, gpu_gib=80.0, **run):
    return plan_of(config, RunConfig.model_validate(run), ds_json, 1, 4, gpu_gib, longest=Longest(128))


def test_micro_batches_by_tokens():
    """32 documents on 4 ranks, of 128 tokens at most: by 512 tokens 4 at a time, by 100 alone, by 10,000 a rank's 8.

    200 tokens hold one of 128, and more of them as two of 100: eight of 128 are six micro-batches of 200.
    """
    by_tokens = ZERO3 | {"train_micro_batch_size_per_gpu": "auto", "gradient_accumulation_steps": "auto"}
    for tokens, *expected in ((512, 4, 128, 2), (100, 1, 128, 8), (200, 2, 100, 6), (10_000, 8, 128, 1)):
        found = plan(by_tokens, optim={"global_batch": 32}, data={"micro_batch_tokens": tokens})
        assert [found.setup.num_documents, found.setup.length, found.num_micro_batches] == expected
    assert any("data.micro_batch_tokens=128" in line for line in found.remedies())


def test_a_smaller_micro_batch_holds_the_longest_document_in_all_its_views():
    """With the complement each document is seen twice: 2 of them are 4, and one is 2."""
    found = plan(objective={"method": "vanilla", "complementary": True})
    assert (found.setup.num_documents, found.one_document.num_documents) == (4, 2)
    by_tokens = ZERO3 | {"train_micro_batch_size_per_gpu": "auto", "gradient_accumulation_steps": "auto"}
    found = plan(by_tokens, optim={"global_batch": 32}, data={"micro_batch_tokens": 200})
    assert (found.one_document.num_documents, found.one_document.length) == (1, 128)


def test_sizes_are_those_of_all_parameters():
    shapes = parameter_shapes(BASE)
    sizes = Sizes.of(BASE, LoraConfig(), few=129)
    assert sizes.total == sizes.trained == sum(shape.numel() for shape in shapes.values())
    assert sizes.small == 128 * 13  # two norms of 6 layers and the last one
    # q, k and v of 6 layers: A (8, 128) and B (128, 8)
    assert Sizes.of(BASE, LoraConfig(rank=8)).trained == 6 * 3 * 2 * 8 * 128


def test_known_sizes():
    assert 8.0e9 < Sizes.of(config_of("8b"), LoraConfig()).total < 8.03e9
    assert 7.61e9 < Sizes.of(config_of("dream-7b"), LoraConfig()).total < 7.63e9
    assert Sizes.of(config_of("sdar-8b"), LoraConfig()).total == 8_190_735_360  # bytes of the published index / 2
    with pytest.raises(ValueError, match=r"no known size: 8b \(LLaDA-8B\), dream-7b .*builtin:base"):
        config_of("9b")


def test_zero_3_cuts_everything_by_the_ranks():
    """P parameters, 4 ranks, bf16: weights 2 P / 4, master and gradients 4 P / 4, moments 8 P / 4; bucket 2 x 1000."""
    num = Sizes.of(BASE, LoraConfig()).total
    kept = plan().memory.kept
    expected = {"weights": num / 2, "master weights": num, "moments": 2 * num, "gradients": num, "buckets": 2000}
    assert {name: kept[name] for name in expected} == expected
    assert "update" not in plan().memory.moments()  # which copies nothing


def test_weights_in_float32_are_their_own_masters():
    num = Sizes.of(BASE, LoraConfig()).total
    kept = plan(ZERO3 | {"bf16": {"enabled": False}}).memory.kept
    assert (kept["weights"], kept["master weights"]) == (num, 0)


def test_zero_2_keeps_the_weights_whole():
    num = Sizes.of(BASE, LoraConfig()).total
    zero = {"stage": 2, "overlap_comm": True, "reduce_bucket_size": 1000}
    memory = plan(ZERO3 | {"zero_optimization": zero}).memory
    assert memory.kept["weights"] == 2 * num and "buckets" not in memory.kept
    # bf16 and float32 of the own part, while gradients come in; two buckets
    assert memory.passes["training pass"]["gradients"] == 6 * num / 4
    assert memory.passes["training pass"]["buckets"] == 2 * 2 * 1000


def test_offloading_moves_the_optimizer_to_the_host():
    zero = ZERO3["zero_optimization"] | {"offload_optimizer": {"device": "cpu"}}
    plain, offloaded = plan().memory, plan(ZERO3 | {"zero_optimization": zero}).memory
    moved = ("master weights", "moments", "gradients")
    assert offloaded.host == {name: plain.kept[name] for name in moved}
    assert not set(moved) & set(offloaded.kept)


def test_what_is_moved_and_written():
    """All stays gathered: weights once, gradients once, 2 P bytes each, 3/4 of them from others, in 3 micro-batches."""
    num = Sizes.of(BASE, LoraConfig()).total
    assert received_in_step(plan().setup, 3) == Received(3 * 2 * 2 * num * 3 / 4)
    assert plan().checkpoint() == checkpoint_bytes(num, num) == 16 * num + 64 * 2**20
    assert plan(lora={"rank": 8}).checkpoint() == 16 * 6 * 3 * 2 * 8 * 128 + 64 * 2**20


def test_a_second_cut_keeps_what_crosses_nodes_to_one_gather():
    """Of three gathers a micro-batch (scoring, forward, backward) and two micro-batches, five stay within 2 ranks."""
    zero = ZERO3["zero_optimization"] | {"stage3_max_reuse_distance": 0}
    once = plan(ZERO3 | {"zero_optimization": zero}).setup
    twice = once.with_zero(zero_hpz_partition_size=2)
    sizes = once.sizes()
    cut, gradients = 2 * (sizes.total - sizes.small), 2 * 2 * sizes.trained
    assert received_in_step(once, 2) == Received((6 * cut + gradients) * 3 / 4)
    assert received_in_step(twice, 2) == Received((cut + gradients) * 3 / 4, 5 * cut / 2)
    assert Received(40e9, 200e9).seconds(2, Rates(node_gbytes=200, network_gbytes=40)) == 2.0
    assert Received(40e9, 200e9).seconds(1, Rates(node_gbytes=200, network_gbytes=40)) == 1.2
    adapted = replace(twice, lora=LoraConfig(rank=4))
    trained, frozen_too = adapted.sizes().trained, 2 * (adapted.sizes().total - adapted.sizes().small)
    within = (6 * frozen_too - 2 * trained) / 2
    assert received_in_step(adapted, 2) == Received(3 * 2 * trained * 3 / 4, within)
    kept = estimate(twice).kept
    assert kept["second cut"] == 2 * sizes.total / 2 and "second cut" not in estimate(once).kept


def test_a_larger_model_lets_go_of_what_it_gathered():
    """Of 1e9 elements there and back half is used again: of 8e9 parameters, 5e8 and a layer are gathered."""
    setup = replace(plan().setup, config=config_of("8b"))
    sizes = setup.sizes()
    gathered = estimate(setup).passes["training pass"]["gathered layers"]
    assert gathered == 2 * (5e8 + max(sizes.layer, sizes.largest))


def test_what_does_not_fit_is_said_with_what_to_change():
    zero = {"stage": 2, "overlap_comm": True, "reduce_bucket_size": 1000}
    large = plan(ZERO3 | {"zero_optimization": zero}, config_of("8b"), gpu_gib=40.0)
    text = "\n".join(large.lines())
    assert not large.fits and "DOES NOT FIT" in text
    remedies = [line for line in text.splitlines() if line.startswith("  change ")]
    assert any("zero3.json" in line for line in remedies) and any("lora.rank=128" in line for line in remedies)
    assert remedies[-1].startswith("  change all of these") and remedies[-1].endswith("fits")
    # 2 x 8.02e9 bytes of weights, 12 x 8.02e9 / 4 of the optimizer and as many more to update
    with pytest.raises(ValueError, match=r"a GPU has 40\.0 GiB, and without any activation .*weights 14\.9"):
        large.require_room()
    plan().require_room()


def test_room_is_known_without_running_a_pass(monkeypatch):
    """At the start of a run, and for families whose passes a plan cannot run."""
    monkeypatch.setattr(report, "estimate", lambda setup: pytest.fail("a pass was run"))
    plan().require_room()


def test_a_run_that_cannot_fit_ends_before_weights_are_read(monkeypatch, capsys):
    """The device is a stand-in with 1 MiB; the base's weights, optimizer and libraries take more."""
    monkeypatch.setattr(engine, "has_accelerator", lambda: True)
    monkeypatch.setattr(engine, "device_gib", lambda: 1 / 1024)
    with pytest.raises(SystemExit) as ended:
        train.main(["--deepspeed", str(REPOSITORY / "ds_configs" / "zero3.json"), "--dry-run", "data.builtin_rows=600"])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "error: the model cannot be trained here: a GPU has 0.0 GiB" in said and "  change all of these: " in said


def planned_line(capsys, *settings):
    """The first line of the plan of a dry run."""
    train.main(["--deepspeed", str(REPOSITORY / "ds_configs" / "zero3.json"), "--dry-run", *settings])
    return next(line for line in capsys.readouterr().out.splitlines() if line.startswith("plan: "))


def test_the_longest_row_that_is_read_is_planned_for(tmp_path, capsys):
    """Where all rows were read; else, or where rows are packed, the longest that is allowed."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(f'{{"prompt": "why", "response": "{"has " * n}"}}\n' for n in (1, 1, 30)))
    read = planned_line(capsys, f"data.path={rows}", "eval.rows=0", "optim.global_batch=2")
    length = int(re.search(r"micro-batch 2 x (\d+) tokens at most", read)[1])
    assert 30 < length < 64 and read.endswith(f"; longest row {length} of 3 read")
    for unknown in ("data.check_rows=2", "data.packing=best_fit"):
        line = planned_line(capsys, f"data.path={rows}", "eval.rows=0", "data.max_length=64", unknown)
        assert line.endswith(" x 64 tokens at most, 1 a step; longest allowed 64")


def test_activations_are_what_checkpointing_is_for():
    """At 4,096 tokens the activations of 8b are most of it; without them an update is known to fit."""
    long = plan_of(config_of("8b"), RunConfig(), ZERO3, 4, 32, 40.0, longest=Longest(4096))
    remedies = [line for line in long.lines() if line.startswith("  change ")]
    found = re.fullmatch(r"  change model\.checkpoint_layers=(\d+): .* GiB, fits", remedies[0])
    fewest = int(found[1])
    assert 0 < fewest < 32
    peaks = [estimate(replace(long.setup, num_checkpointed=count)).peak for count in (fewest - 1, fewest)]
    assert peaks[0] > long.usable >= peaks[1]
    long.require_room()  # only a shorter micro-batch, or checkpointing, is wanted


def test_layers_that_are_computed_again_cost_their_share_of_time():
    """A forward and backward of all but the head are three forwards; 2 of 6 layers again are a third of one more."""
    none, some = (plan(model={"checkpoint_layers": count}) for count in (0, 2))
    seconds = [step_seconds(each.setup, 1, 1, each.rates)[0] for each in (none, some)]
    layers = Arithmetic.of(BASE).layers(128) / (none.rates.peak_tflops * 1e12 * none.rates.mfu)
    assert seconds[1] - seconds[0] == pytest.approx(none.setup.num_documents * layers / 3)
    assert "2 of 6 layers computed again" in next(some.lines())
    with pytest.raises(ValueError, match=r"model\.checkpoint_layers=7: the model has 6 layers"):
        plan(model={"checkpoint_layers": 7})


def test_the_command(tmp_path, capsys):
    figures, ds_json = tmp_path / "plan.json", str(REPOSITORY / "ds_configs" / "zero3.json")
    main(["--model", "builtin:base", "--gpus", "4", "--ds", ds_json, "--json", str(figures), "data.max_length=64"])
    text = capsys.readouterr().out
    assert (
        "ZeRO-3 on 4 GPUs of 1 node" in text
        and "micro-batch 2 x 64 tokens at most, 1 a step; longest allowed 64\n" in text
    )
    found = json.loads(figures.read_text())
    assert found["fits"] is True and 0 < found["weights_GiB"] < found["peak_GiB"] < 80
    with pytest.raises(SystemExit) as caught:
        main(["--model", "8b", "--gpus", "1", "--ds", ds_json, "--gpu-gib", "24"])
    assert caught.value.code == 1
    assert "DOES NOT FIT" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "9b"], "no known size"),
        (["--model", "8b", "--gpus", "0"], "--gpus=0: at least 1"),
        (["--model", "8b", "--gpu-gib", "0"], "--gpu-gib=0.0: a number above 0"),
        (["--model", "8b", "optim.global_bach=8"], "optim.global_bach: unknown key"),
    ],
)
def test_what_the_command_refuses(arguments, message, capsys):
    with pytest.raises(SystemExit) as caught:
        main([*arguments, "--ds", str(REPOSITORY / "ds_configs" / "zero3.json")])
    assert caught.value.code == 2 and message in capsys.readouterr().err
