"""Whole runs with two real ranks: checkpoint, kill, resume, export, and what goes wrong on the way."""

import importlib.util
import json
import os
import shutil
import signal
import struct
import subprocess
import time
from itertools import product

import pytest
import torch
from prometheus_client.parser import text_string_to_metric_families
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lift_ds import load_pretrained
from lift_ds.storage.run_folder import read_run_folder
from lift_ds.storage.run_record import read_run
from lift_ds.training.timing import PARTS
from tests.conftest import (
    REPOSITORY,
    SMALL,
    clean_environment,
    free_port,
    latest,
    launch_train,
    losses_of,
    read_steps,
    run,
    run_script,
)

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def straight(tiny_dir, tmp_path_factory):
    """A run of six steps that nobody disturbs."""
    output = tmp_path_factory.mktemp("straight") / "run"
    command = ["deepspeed", "--num_gpus", "2", "--master_port", str(free_port()), "launchers/train.py", *SMALL]
    done = run([*command, "--model", str(tiny_dir), "--output", str(output)])
    return output, done.stdout


def test_the_run_folder(straight):
    output, printed = straight
    resolved = json.loads((output / "run.json").read_text())
    assert resolved["run"]["optim"]["steps"] == 6
    assert resolved["deepspeed"]["gradient_accumulation_steps"] == "auto"
    assert resolved["deepspeed"]["train_micro_batch_size_per_gpu"] == "auto"
    steps = read_steps(output)
    assert [record["step"] for record in steps] == [1, 2, 3, 4, 5, 6]
    assert all(sum(record["t_documents"]) == 8 for record in steps)
    assert all(sum(record["component_share"].values()) == pytest.approx(1) for record in steps)
    assert all(1 <= record["max_inverse_t"] <= 1000 for record in steps)
    for record in steps:
        seconds = {part: record[f"{part}_seconds"] for part in PARTS}
        assert min(seconds.values()) >= 0
        assert min(seconds["scoring"], seconds["forward"], seconds["backward"], seconds["optimizer"]) > 0
        assert all(record["slowest_seconds"][part] >= seconds[part] for part in PARTS)
        assert record["mfu"] is None  # on a CPU
        assert record["needed_tflop"] > 0
        assert record["peak_memory_gib"] > 0.1
        assert record["tokens_per_second"] == pytest.approx(record["num_tokens"] / record["seconds"])
        slowest = record["slowest_rank"]
        assert slowest["rank"] in (0, 1) and set(record["slowest_ranks"].values()) <= {0, 1}
        assert 0 <= slowest["behind_seconds"] < slowest["own_seconds"] < record["seconds"]
        assert 0 < record["gather_seconds"] < seconds["scoring"] + seconds["forward"] + seconds["backward"]
        learned = [value for value in record["component_token_nll"].values() if value is not None]
        assert learned and min(learned) > 0
    kinds = [json.loads(line)["kind"] for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert kinds.count("heldout") == kinds.count("solve") == 2
    run = read_run_folder(output)
    assert (run.end, run.step, run.half_lines, run.num_unreadable) == ("done", 6, [], 0)
    assert [(event.step, event.text.split()[0]) for event in run.events] == [
        (3, "checkpoint"), (6, "checkpoint"), (6, "done"),
    ]  # fmt: skip
    assert (output / "checkpoints" / "latest").read_text().strip() == "step-000006"
    assert sorted(path.name for path in (output / "checkpoints").glob("step-*")) == ["step-000003", "step-000006"]
    assert "step 3: checkpoint" in (output / "log.txt").read_text()
    assert "2 ranks, ZeRO-3" in printed
    assert "Held-out items, before -> after" in printed
    assert "logits from the trained model's: 0.0e+00" in printed


def test_killed_and_resumed_is_bit_equal(straight, tiny_dir, tmp_path):
    """SIGKILL after the first checkpoint; `--resume auto` then gives the same losses and weights, bit for bit.

    Nor do held-out losses and answers between the steps change any, which only the resumed run measures.
    """
    output = tmp_path / "run"
    command = ["deepspeed", "--num_gpus", "2", "--master_port", str(free_port()), "launchers/train.py"]
    command += latest(*SMALL, "--model", tiny_dir, "--output", output, "optim.steps=100000", "checkpoint.keep=50")
    process = subprocess.Popen(
        command, cwd=REPOSITORY, env=clean_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 240
        while not (output / "checkpoints" / "latest").is_file():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        kill_ranks(output)
        process.wait(timeout=60)
    for path in (output / "checkpoints").glob("step-*"):
        if path.name != "step-000003":
            shutil.rmtree(path)
    (output / "checkpoints" / ".writing-step-000006").mkdir(exist_ok=True)
    before = len(read_steps(output))
    measuring = ["eval.every=1", "eval.solve_every=1", "eval.solve_subset=3", "checkpoint.best_by=solve_rate"]
    done = launch_train(*SMALL, *measuring, "--model", tiny_dir, "--output", output, "--resume", "auto")
    assert f"resumed from {output}/checkpoints/step-000003 at step 3" in done.stdout
    assert "step 3: step-000003 is the best checkpoint, solve_rate 0.0000" in done.stdout
    assert "passed over .writing-step-000006: an interrupted save" in done.stdout
    reference, _ = straight
    resumed = {record["step"]: (record["loss"], record["grad_norm"]) for record in read_steps(output)[before:]}
    assert resumed == {step: values for step, values in losses_of(reference).items() if step > 3}
    ours, theirs = (load_file(folder / "export" / "model.safetensors") for folder in (output, reference))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize(
    ("scoring", "further"),
    [
        ("buffer", ["objective.warm_start_steps=2", "objective.refresh_share=0.5", "difficulty.sync_every=2"]),
        ("memory", ["data.packing=best_fit", "data.pack_length=512", "data.workers=1"]),
    ],
    ids=["buffer", "memory, packed"],
)
def test_buffers_and_packs_resume_bit_equal(tiny_dir, tmp_path, scoring, further):
    """Between two syncs, with observations pending and documents waiting in open packs, past the warm start.

    Nor does the warm-up, which the resumed run alone has, change anything.
    """
    options = [f"objective.scoring={scoring}", "eval.rows=0", "eval.solve_items=0", "--model", str(tiny_dir), *further]
    is_packed, folders = scoring == "memory", ["difficulty"] + ["difficulty_memory"] * (scoring == "memory")
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    launch_train(*SMALL, *options, "--output", straight)
    saved = straight / "checkpoints" / "step-000003"
    listed = json.loads((saved / "manifest.json").read_text())["files"]
    for folder in folders:
        assert len(list((saved / folder).iterdir())) == sum(name.startswith(f"{folder}/") for name in listed) == 2
    warm = launch_train(*SMALL, *options, "--output", resumed, f"checkpoint.resume={saved}", "model.warm_up=true")
    assert f"warm-up on 4 x {'512 tokens (longest allowed' if is_packed else '97 tokens (longest row'}" in warm.stdout
    expected = {step: values for step, values in losses_of(straight).items() if step > 3}
    assert losses_of(resumed) == expected
    assert all((record["num_documents"] > 8) is is_packed for record in read_steps(straight))
    num_observed = 0
    for rank, folder in product((0, 1), folders):
        name = f"checkpoints/step-000006/{folder}/rank-0000{rank}-of-00002.safetensors"
        ours, theirs = load_file(resumed / name), load_file(straight / name)
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in theirs)
        num_observed += float(theirs["counts"].sum()) if folder == "difficulty" else 0
    assert num_observed > 0


def test_a_budget_of_all_documents_is_exact(tiny_dir, straight, tmp_path):
    """To the last bit."""
    reference, _ = straight
    output = tmp_path / "run"
    budget = ["objective.scoring=memory", "objective.scoring_budget=1"]
    launch_train(*SMALL, *budget, "--model", tiny_dir, "--output", output, "eval.rows=0", "eval.solve_items=0")
    assert losses_of(output) == losses_of(reference)


def kill_ranks(output):
    """SIGKILL to every rank of the run, as if the machine had gone."""
    found = subprocess.run(["pgrep", "-f", str(output)], text=True, stdout=subprocess.PIPE, check=False).stdout
    for pid in found.split():
        if int(pid) != os.getpid():
            os.kill(int(pid), signal.SIGKILL)


def test_a_stop_signal_saves(tiny_dir, tmp_path):
    output = tmp_path / "run"
    command = ["torchrun", "--nproc_per_node", "2", "--master_port", str(free_port()), "launchers/train.py"]
    command += latest(*SMALL, "--model", tiny_dir, "--output", output, "optim.steps=100000", "checkpoint.save_every=0")
    process = subprocess.Popen(
        command, cwd=REPOSITORY, env=clean_environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    deadline = time.monotonic() + 240
    while not (output / "metrics.jsonl").is_file() or len(read_steps(output)) < 2:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    ranks = subprocess.run(["pgrep", "-f", f"python.*{output}"], text=True, stdout=subprocess.PIPE, check=False).stdout
    one_rank = next(pid for pid in map(int, ranks.split()) if pid != process.pid)
    os.kill(one_rank, signal.SIGTERM)
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == 0, printed[-3000:]
    stopped_at = len(read_steps(output))
    assert f"stopped after step {stopped_at}" in printed
    assert read_run_folder(output).end == "stopped"
    assert (output / "checkpoints" / "latest").read_text().strip() == f"step-{stopped_at:06d}"
    more = [f"optim.steps={stopped_at + 2}", "checkpoint.save_every=0"]
    launch_train(*SMALL, *more, "--model", tiny_dir, "--output", output, "--resume", "auto")
    launch_train(*SMALL, *more, "--model", tiny_dir, "--output", tmp_path / "straight")
    assert losses_of(output) == losses_of(tmp_path / "straight")  # the fetched, untaken step was not skipped


def test_zero_to_hf_loads_without_this_package(straight, tmp_path):
    """The folder loads in a process that cannot import lift_ds, and gives the trained logits."""
    output, _ = straight
    folder = tmp_path / "model"
    run_script("tools/zero_to_hf.py", output, folder)
    model, tokenizer = load_pretrained(folder)
    ids = torch.tensor([tokenizer("Solve this 4x4 Sudoku", add_special_tokens=False).input_ids])
    torch.save(ids, tmp_path / "ids.pt")
    code = f"""
import sys, torch
sys.modules["lift_ds"] = None
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer
ids = torch.load({str(tmp_path / "ids.pt")!r})
tokenizer = AutoTokenizer.from_pretrained({str(folder)!r}, trust_remote_code=True)
assert tokenizer("Solve this 4x4 Sudoku", add_special_tokens=False).input_ids == ids[0].tolist()
for auto in (AutoModel, AutoModelForCausalLM):
    model = auto.from_pretrained({str(folder)!r}, trust_remote_code=True).eval()
    torch.save(model(input_ids=ids).logits, {str(tmp_path / "logits.pt")!r})
"""
    environment = {name: value for name, value in clean_environment().items() if name != "PYTHONPATH"}
    run(["python", "-c", code], cwd=tmp_path, env=environment | {"HF_HOME": str(tmp_path / "hf")})
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), model(input_ids=ids).logits, atol=1e-6, rtol=1e-6)
    assert (folder / "config.json").stat().st_mode & 0o777 == 0o644
    again = run_script("tools/zero_to_hf.py", output, folder, check=False)
    assert again.returncode == 2
    assert "exists and is not empty" in again.stdout


@pytest.mark.skipif(shutil.which("mpirun") is None, reason="no mpirun here; apt-get install openmpi-bin")
def test_mpirun_starts_it_too(straight, tiny_dir, tmp_path):
    output = tmp_path / "run"
    command = ["mpirun", "-np", "2", "--allow-run-as-root", "--oversubscribe", "python", "launchers/train.py"]
    run([*command, *latest(*SMALL, "--model", tiny_dir, "--output", output, "eval.solve_items=0")])
    reference, _ = straight
    assert losses_of(output) == losses_of(reference)


def monitored(tiny_dir, tmp_path, **monitors):
    """The settings of two steps with DeepSpeed's monitors switched on in the JSON."""
    loaded = json.loads((REPOSITORY / "ds_configs" / "zero3.json").read_text()) | monitors
    (tmp_path / "zero.json").write_text(json.dumps(loaded))
    command = [*SMALL, "--deepspeed", tmp_path / "zero.json", "--model", tiny_dir, "--output", tmp_path / "run"]
    return [*command, "optim.steps=2", "eval.solve_items=0", "eval.rows=0"]


def test_deepspeeds_monitors_and_prometheus(tiny_dir, tmp_path):
    """CSV files and tensorboard get every step and the run's settings, and Prometheus the newest numbers."""
    place = {"enabled": True, "output_path": str(tmp_path / "out")}
    csv, board = {**place, "job_name": "csv"}, {**place, "job_name": "board"}
    command = monitored(tiny_dir, tmp_path, csv_monitor=csv, tensorboard=board)
    launch_train(*command, f"runtime.prometheus_file={tmp_path}/run.prom", num_ranks=1)
    record, losses = read_run(tmp_path / "run"), [step["loss"] for step in read_steps(tmp_path / "run")]
    written = (tmp_path / "out" / "csv" / "train_loss.csv").read_text().splitlines()
    assert len(written) == 3  # a heading and two steps
    assert read_run(tmp_path / "out" / "csv") == record
    events = EventAccumulator(str(tmp_path / "out" / "board")).Reload()
    (settings,) = events.Tensors("run.json/text_summary")
    (text,) = settings.tensor_proto.string_val
    assert json.loads(text) == {key: value for key, value in record.items() if key != "format"}
    families = text_string_to_metric_families((tmp_path / "run.prom").read_text())
    values = {sample.name: sample.value for family in families for sample in family.samples}
    found = [values[f"lift_ds_{name}"] for name in ("steps_total", "loss", "ended")]
    assert found == [2, losses[-1], 1]


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="no wandb here; pip install wandb")
def test_wandb_offline_has_the_settings(tiny_dir, tmp_path):
    environment = clean_environment(WANDB_MODE="offline", WANDB_DIR=str(tmp_path), WANDB_SILENT="true")
    command = monitored(tiny_dir, tmp_path, wandb={"enabled": True, "project": "lift"})
    launcher = ["torchrun", "--nproc_per_node", "1", "--master_port", str(free_port()), "launchers/train.py"]
    run([*launcher, *latest(*command)], env=environment)
    (written,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    settings, losses = {}, []
    for each in wandb_records(written.read_bytes()):
        settings |= {item.key: json.loads(item.value_json) for item in each.config.update}
        losses += [json.loads(item.value_json) for item in each.history.item if "train/loss" in item.nested_key]
    record = read_run(tmp_path / "run")
    assert (settings["run"], settings["deepspeed"]) == (record["run"], record["deepspeed"])
    assert losses == [step["loss"] for step in read_steps(tmp_path / "run")]


def wandb_records(content):
    """What wandb 0.31 wrote: after 7 bytes, blocks of 32 KiB with parts of records, as in a log of LevelDB."""
    from wandb.proto.wandb_internal_pb2 import Record

    place, whole = 7, b""
    while place + 7 <= len(content):
        if 32768 - place % 32768 < 7:  # too little for the head of a part: checksum, length, which part it is
            place += 32768 - place % 32768
            continue
        _, length, part = struct.unpack_from("<IHB", content, place)
        is_first, is_last = part in (1, 2), part in (1, 4)
        whole = (b"" if is_first else whole) + content[place + 7 : place + 7 + length]
        place += 7 + length
        if is_last:
            yield Record.FromString(whole)


def copy_of(straight, tmp_path):
    output, _ = straight
    shutil.copytree(output, tmp_path / "run")
    return tmp_path / "run"


def test_broken_checkpoints_are_passed_over(straight, tiny_dir, tmp_path):
    """A flipped bit in the newest one: resume says so and takes the one before."""
    output = copy_of(straight, tmp_path)
    shard = sorted((output / "checkpoints" / "step-000006" / "zero").iterdir())[0]
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(bytes(content))
    done = launch_train(*SMALL, "--model", tiny_dir, "--output", output, "--resume", "auto", num_ranks=2)
    assert f"passed over step-000006: zero/{shard.name} has changed (checksum)" in done.stdout
    assert "step-000003 at step 3" in done.stdout


def resume_on(tiny_dir, output, checkpoint, num_ranks, config, steps):
    """Goes on from another run's checkpoint; returns the new run's last checkpoint."""
    command = [*SMALL, "--deepspeed", f"ds_configs/{config}.json", "--model", tiny_dir, "--output", output]
    command += [f"checkpoint.resume={checkpoint}", f"optim.steps={steps}", "eval.rows=0", "eval.solve_items=0"]
    launch_train(*command, num_ranks=num_ranks)
    return output / "checkpoints" / f"step-{steps:06d}"


def assert_same_losses(straight, *outputs):
    expected = losses_of(straight[0])
    found = {step: values for output in outputs for step, values in losses_of(output).items()}
    assert sorted(found) == [4, 5, 6]
    for step, (loss, norm) in found.items():
        assert loss == pytest.approx(expected[step][0], rel=1e-5)
        assert norm == pytest.approx(expected[step][1], rel=1e-4)


def test_resume_on_other_ranks_and_stages(straight, tiny_dir, tmp_path):
    """2 ranks under ZeRO-3, then 1 under ZeRO-2, then 3 under ZeRO-3: the losses of the run that never stopped."""
    saved = straight[0] / "checkpoints" / "step-000003"
    saved = resume_on(tiny_dir, tmp_path / "one", saved, 1, "zero2", 4)
    resume_on(tiny_dir, tmp_path / "three", saved, 3, "zero3", 6)
    assert_same_losses(straight, tmp_path / "one", tmp_path / "three")


@pytest.mark.slow
@pytest.mark.parametrize("config", ["zero2", "zero3"])
def test_resume_on_1_3_and_2_ranks(straight, tiny_dir, tmp_path, config):
    saved = straight[0] / "checkpoints" / "step-000003"
    outputs = [tmp_path / str(num_ranks) for num_ranks in (1, 3, 2)]
    for step, (num_ranks, output) in enumerate(zip((1, 3, 2), outputs, strict=True), 4):
        saved = resume_on(tiny_dir, output, saved, num_ranks, config, step)
    assert_same_losses(straight, *outputs)


def test_a_checkpoint_of_another_model(straight, tiny_dir, tmp_path):
    output = copy_of(straight, tmp_path)
    other = tmp_path / "model"
    shutil.copytree(tiny_dir, other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"n_layers": 1}))
    arguments = ["--model", other, "--resume", output / "checkpoints" / "step-000006", "--output", tmp_path / "new"]
    done = launch_train(*SMALL, *arguments, num_ranks=1, check=False)
    assert done.returncode == 2
    assert f"model.path={other}: another model than the run's: n_layers: 2 -> 1" in done.stdout
    done = launch_train(*SMALL, *arguments, "--change", "model.path", num_ranks=1, check=False)
    assert done.returncode != 0
    assert "belongs to another model" in done.stdout


def test_a_full_disk(straight, tiny_dir, tmp_path):
    """A file-size limit stops a save half-way: one clear error, nothing under the final name, the older one whole."""
    output = copy_of(straight, tmp_path)
    command = [*SMALL, "--model", tiny_dir, "--output", output, "eval.solve_items=0", "eval.rows=0", "optim.steps=9"]
    done = launch_train(*command, "--resume", "auto", check=False, file_size=200_000)
    assert done.returncode != 0
    assert "could not be written" in done.stdout
    assert "Older checkpoints are untouched" in done.stdout
    checkpoints = output / "checkpoints"
    assert (checkpoints / "latest").read_text().strip() == "step-000006"
    assert not (checkpoints / "step-000009").exists()
    again = launch_train(*command, "--resume", "auto")
    assert "step-000006 at step 6" in again.stdout
    assert (checkpoints / "latest").read_text().strip() == "step-000009"


@pytest.mark.parametrize("config", ["zero2", "zero3"])
def test_bf16_with_measurements_in_between(config, tiny_dir, tmp_path):
    """bf16 as on a GPU; held-out losses between the steps; a row that its template refuses does not hang a rank."""
    loaded = json.loads((REPOSITORY / "ds_configs" / f"{config}.json").read_text())
    (tmp_path / "zero.json").write_text(json.dumps(loaded | {"bf16": {"enabled": True}}))
    output = tmp_path / "run"
    command = [*SMALL, "--deepspeed", tmp_path / "zero.json", "--model", tiny_dir, "--output", output, "eval.every=2"]
    done = launch_train(*command, "objective.method=lift2", "optim.steps=4", "eval.rows=6")
    assert "bf16" in done.stdout
    kinds = [json.loads(line)["kind"] for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert kinds.count("heldout") == 3
    assert {str(tensor.dtype) for tensor in load_file(output / "export" / "model.safetensors").values()} == {
        "torch.bfloat16"
    }
    steps = read_steps(output)
    assert steps[-1]["loss"] < steps[0]["loss"]


def test_a_bad_row_in_the_middle_stops_every_rank_and_saves(tiny_dir, tmp_path):
    """Row 30 is malformed and not among the checked ones: the steps before it are kept."""
    data = tmp_path / "rows.jsonl"
    rows = [json.dumps({"prompt": f"q{number}", "response": "r"}) for number in range(40)]
    rows[30] = json.dumps({"prompt": "q"})
    data.write_text("\n".join(rows))
    output = tmp_path / "run"
    command = [*SMALL, "--model", tiny_dir, "--data", data, "--output", output, "data.check_rows=4", "eval.rows=0"]
    done = launch_train(*command, "eval.solve_items=0", check=False)
    assert done.returncode != 0
    assert f"{data}:31: no column 'response'" in done.stdout
    steps = len(read_steps(output))
    assert 0 < steps < 6
    assert (output / "checkpoints" / "latest").read_text().strip() == f"step-{steps:06d}"
    assert "holds a run already" in launch_train(*command, check=False).stdout
    checked = launch_train(*command, "data.check_rows=100", f"output={tmp_path / 'new'}", check=False)
    assert checked.stdout.count(f"{data}:31: no column 'response'") == 1  # one rank says it for both
    assert not (tmp_path / "new").exists()


def test_real_rows(bench, tiny_dir, tmp_path):
    """GSM8K generations and AIME solutions of a real model, mapped on the command line."""
    mappings = {
        ("gsm8k_256.jsonl", 1130): ["data.columns.prompt=question", "data.columns.response=generation"],
        ("aime24.json", 30): [
            "data.columns.prompt=question",
            "data.columns.reasoning=thinking_trajectories.0",
            "data.columns.answer=sol.0",
        ],
    }
    for (name, num_rows), columns in mappings.items():
        command = ["launchers/train.py", "--deepspeed", "ds_configs/zero3.json", "--dry-run"]
        command += ["--model", str(tiny_dir), "--data", str(bench / name), *columns, "eval.rows=8"]
        command += ["data.on_long=skip", "data.max_skipped=1"]
        assert f": {num_rows} rows, {num_rows} checked" in run_script(*command).stdout
