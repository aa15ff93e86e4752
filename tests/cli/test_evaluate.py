"""`tools/evaluate.py` on the built-in base: whole, on two ranks, cut by ZeRO-3, cut off, with adapters, compared."""

import copy
import io
import json
import re
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from rich.console import Console

from lift_ds import load_pretrained
from lift_ds.cli import evaluate, evaluate_run, evaluate_tables, score
from lift_ds.evaluation.asking import run as evaluation_run
from lift_ds.evaluation.asking.answering import load_answerer
from lift_ds.evaluation.asking.samples import SampleLog
from lift_ds.ranks.shares import Alone
from lift_ds.sampling.settings import SamplingSettings
from tests.conftest import free_port, run, run_script

PROBLEMS = [
    {"question": "Work out 3+4-2.", "ground_truth": 5},
    {"question": "Make 9 from 1, 3 and 5 with + -.", "ground_truth": 9},
    {"question": "Tom has 3 pens. He buys 4 more. How many pens does Tom have now?", "ground_truth": 7},
]


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in PROBLEMS))
    return path


@pytest.fixture(scope="module")
def flags(rows):
    return [
        "--model", "builtin:base", "--protocol", "clean", "--tasks", "gsm8k", "builtin:countdown", "--limit", "3",
        "--data", f"gsm8k={rows}", "--gen-length", "16", "--block-length", "8", "--threshold", "0.8",
        "--batch-size", "2",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def whole(flags, tmp_path_factory):
    output = tmp_path_factory.mktemp("whole") / "evaluation"
    evaluate.main([*flags, "--output", str(output)])
    return output


def texts_of(folder):
    return {path.name: path.read_text() for path in sorted(folder.glob("*.jsonl")) if path.name != "samples.jsonl"}


def test_results(whole, tmp_path, rows):
    results = json.loads((whole / "results.json").read_text())
    assert results["settings"] == json.loads((whole / "settings.json").read_text())
    assert results["settings"]["weights"].keys() == {"config.json", "model.safetensors"}
    assert results["environment"]["world_size"] == 1
    for task, name in (("gsm8k", "gsm8k.jsonl"), ("builtin:countdown", "builtin-countdown.jsonl")):
        found = results["tasks"][task]
        assert list(found["scores"]) == ["strict"]
        cost = found["generation"]
        assert cost["samples"] == 3
        assert 1 <= cost["forwards_per_sample"] <= 16
        assert cost["tokens_per_forward"] <= 16 / cost["forwards_per_sample"]
        score.main([str(whole / name), "--task", task, "--scorer", "strict", "--json", str(tmp_path / "again.json")])
        again, summary = json.loads((tmp_path / "again.json").read_text()), found["scores"]["strict"]
        assert {**again, "items": 0} == {**summary, "items": 0}
        assert [each["scores"] for each in again["items"]] == [each["scores"] for each in summary["items"]]
    first = json.loads((whole / "gsm8k.jsonl").read_text().splitlines()[0])
    assert first["question"] == PROBLEMS[0]["question"]
    assert first["where"] == f"{rows}:1"


def test_tokens_after_an_early_stop_do_not_count():
    """The end token at place 10 of 32, blocks of 8: two blocks were denoised, 16 tokens, if answers stop early."""
    answerer = load_answerer("builtin:base")
    ids = [answerer.encoder.tokenizer.encode("3", add_special_tokens=False)[0]] * 10
    ids += [answerer.encoder.end_token_id] * 22
    settings = [SamplingSettings(gen_length=32, block_length=8, steps=32, stop_early=stops) for stops in (True, False)]
    found = [answerer.read(5, ids, 4, each, False) for each in settings]
    assert [(each.num_tokens, each.num_denoised) for each in found] == [(10, 16), (10, 32)]
    one_block = SamplingSettings(gen_length=8, block_length=8, steps=8, stop_early=True)
    cut = answerer.read(5, ids[:8], 4, one_block, False)
    assert (cut.is_ended, cut.num_denoised) == (False, 8)


@pytest.mark.distributed
@pytest.mark.parametrize("is_cut", [False, True], ids=["whole", "cut"])
def test_two_ranks_answer_the_same(whole, flags, tmp_path, is_cut):
    output = tmp_path / "evaluation"
    command = ["tools/evaluate.py", *flags, "--output", str(output)]
    if is_cut:
        run_script(*command, "--deepspeed", "ds_configs/zero3.json", num_ranks=2)
    else:
        run(["deepspeed", "--num_gpus", "2", "--master_port", str(free_port()), *command])
    assert texts_of(output) == texts_of(whole)
    results = [json.loads((folder / "results.json").read_text()) for folder in (output, whole)]
    assert results[0]["settings"] == results[1]["settings"]
    assert results[0]["environment"]["world_size"] == 2
    assert [each["scores"] for each in results[0]["tasks"].values()] == [
        each["scores"] for each in results[1]["tasks"].values()
    ]


def test_a_cut_off_evaluation_goes_on(whole, flags, tmp_path, monkeypatch, capsys):
    """Killed after its second batch, and in the middle of a line: nothing is made twice, the answers are the same."""
    output = tmp_path / "evaluation"
    made = []
    answer_units = evaluation_run.answer_units

    def dies(plan, units, *others):
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(units)
        return answer_units(plan, units, *others)

    monkeypatch.setattr(evaluation_run, "answer_units", dies)
    with pytest.raises(SystemExit) as stopped:
        evaluate.main([*flags, "--output", str(output)])
    assert stopped.value.code == 130
    assert "stopped; the same command goes on" in capsys.readouterr().err
    assert not (output / "results.json").exists()
    log = output / "samples.jsonl"
    lines = log.read_bytes()
    assert lines.count(b"\n") == 3  # two batches: of two problems, and of the third
    log.write_bytes(lines[:-20])
    made.clear()
    monkeypatch.setattr(evaluation_run, "answer_units", lambda *all_: made.append(all_[1]) or answer_units(*all_))
    evaluate.main([*flags, "--output", str(output)])
    assert sum(map(len, made)) == 6 - 2
    assert texts_of(output) == texts_of(whole)
    made.clear()
    evaluate.main([*flags, "--output", str(output)])
    assert made == []
    with pytest.raises(SystemExit):
        evaluate.main([*flags, "--output", str(output), "--threshold", "0.9"])
    assert "other settings: tasks.builtin:countdown.decoding.threshold (0.8 there, 0.9 now)" in (
        capsys.readouterr().err
    )


def test_samples_do_not_depend_on_their_batch(flags, rows, tmp_path):
    """Drawn at temperature 1, one at a time and six together, with pass@k; another seed draws others."""
    common = [*flags[:4], "--tasks", "gsm8k", "--data", f"gsm8k={rows}", "--samples", "2", "--temperature", "1"]
    common += ["--gen-length", "8", "--block-length", "4", "--steps", "4"]
    found = []
    for number, more in enumerate((["--batch-size", "1"], ["--batch-size", "6"], ["--seed", "1"])):
        output = tmp_path / str(number)
        evaluate.main([*common, *more, "--output", str(output)])
        found.append(texts_of(output))
    assert found[0] == found[1] != found[2]
    generations = [json.loads(line)["generation"] for line in found[0]["gsm8k.jsonl"].splitlines()]
    assert any(len(set(each)) == 2 for each in generations)
    results = json.loads((tmp_path / "0" / "results.json").read_text())
    assert list(results["tasks"]["gsm8k"]["scores"]["strict"]["pass_at_k"]) == ["1", "2"]


def test_adapters_are_not_merged(whole, flags, tmp_path, capsys):
    """PEFT's folder on the base gives the logits of PEFT's own model, and other answers than the base."""
    model, _ = load_pretrained("builtin:base", torch.float32)
    torch.manual_seed(0)
    adapted = get_peft_model(model, LoraConfig(r=4, lora_alpha=64, target_modules=["q_proj", "v_proj"]))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    adapters = str(tmp_path / "adapters")
    adapted.save_pretrained(adapters)
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        logits = load_answerer("builtin:base", adapters).model(input_ids=ids).logits
        assert torch.equal(logits, adapted.eval()(input_ids=ids).logits)
    evaluate.main([*flags, "--adapters", adapters, "--output", str(tmp_path / "out")])
    assert texts_of(tmp_path / "out") != texts_of(whole)
    weights = json.loads((tmp_path / "out" / "settings.json").read_text())["weights"]
    assert weights.keys() == {"adapter_config.json", "adapter_model.safetensors", "config.json", "model.safetensors"}
    config = Path(adapters) / "adapter_config.json"
    config.write_text(config.read_text().replace('"lora_alpha": 64', '"lora_alpha": 32'))
    with pytest.raises(SystemExit):  # the same files of weights are another model then
        evaluate.main([*flags, "--adapters", adapters, "--output", str(tmp_path / "out")])
    assert "other settings: weights.adapter_config.json" in capsys.readouterr().err


def test_the_published_protocol(tmp_path, rows):
    """The prefix is part of the prompt, special tokens stay in the text, both scorers judge."""
    flags = ["--model", "builtin:base", "--tasks", "gsm8k", "--data", f"gsm8k={rows}", "--limit", "1"]
    evaluate.main([*flags, "--gen-length", "32", "--output", str(tmp_path / "lift")])
    results = json.loads((tmp_path / "lift" / "results.json").read_text())
    found = results["tasks"]["gsm8k"]
    assert list(found["scores"]) == ["reference", "strict"]
    assert found["generation"]["forwards_per_sample"] == 16  # 32 tokens, two a step, as 256 in 128
    (line,) = (tmp_path / "lift" / "gsm8k.jsonl").read_text().splitlines()
    has_special = "<|" in json.loads(line)["generation"][0]
    assert has_special == (not found["generation"]["truncated"])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--tasks", "gsm9k"], "task 'gsm9k': allowed under this protocol are gsm8k, math500"),
        (["--tasks", "gsm8k", "gsm8k"], "gsm8k stands there twice"),
        (["--tasks", "countdown"], "countdown: not on the hub; name a file"),
        (["--data", "math500=x.jsonl"], "--data math500=x.jsonl: math500 is not evaluated; --tasks are gsm8k"),
        (["--data", "gsm8k=x.jsonl", "--data", "gsm8k=y.jsonl"], "--data gsm8k=.*: gsm8k has .* already"),
        (["--protocol", "none"], "protocol 'none': allowed are clean, lift"),
        (["--scorers", "kind"], "scorer 'kind': allowed are reference, strict"),
        (["--gen-length", "40", "--block-length", "32"], "gen_length=40 must be a multiple of block_length=32"),
        (
            ["--gen-length", "100032", "--block-length", "32"],
            "--gen-length 100032 are longer than the",
        ),
        (["--samples", "4"], "4 samples at temperature 0 are all the same; set --temperature"),
        (["--limit", "0"], "--limit=0: at least 1"),
        (["--model", "nowhere/nothing/at/all"], "nowhere/nothing/at/all"),
        (["--adapters", "nowhere"], "nowhere"),
        (["--adapters", "x", "--deepspeed", "y"], "merge them first"),
        (["--deepspeed", "ds_configs/zero2.json"], "zero_optimization.stage=2 cuts no weights"),
        (["--deepspeed", "none.json"], "none.json: cannot be read"),
        (["--json", "x.json", "--html", "x.html"], "--html, --json: no flag of an evaluation"),
        (["--num-fewshot", "3", "--apply-chat-template"], "--num-fewshot, --apply-chat-template: no flag of an eval"),
        (["--compare", "a", "b"], "--model, --tasks, --output, --data: no flag of --compare"),
    ],
)
def test_bad_flags(tmp_path, rows, more, message, capsys):
    """One clear line, before an answer is made."""
    output = tmp_path / "out"
    data = [] if "--tasks" in more else ["--data", f"gsm8k={rows}"]
    with pytest.raises(SystemExit) as ended:
        evaluate.main(["--model", "builtin:base", "--tasks", "gsm8k", *data, "--output", str(output), *more])
    assert ended.value.code == 2
    assert re.search(message, capsys.readouterr().err)
    assert not output.exists()


def test_a_folder_of_something_else(flags, tmp_path, capsys):
    (tmp_path / "precious.txt").write_text("x")
    with pytest.raises(SystemExit):
        evaluate.main([*flags, "--output", str(tmp_path)])
    assert "holds something that is no evaluation; choose another --output" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["precious.txt"]


def test_one_evaluation_a_folder(whole, flags, capsys):
    """A second one would make everything again, and may cut off a line that the first is writing."""
    with SampleLog(whole / "samples.jsonl").locked(), pytest.raises(SystemExit):
        evaluate.main([*flags, "--output", str(whole)])
    assert "another evaluation is writing here" in capsys.readouterr().err


def test_broken_settings_are_named(flags, tmp_path, capsys):
    (tmp_path / "settings.json").write_text("")
    with pytest.raises(SystemExit):
        evaluate.main([*flags, "--output", str(tmp_path)])
    assert "settings.json: cannot be read" in capsys.readouterr().err


def test_ranks_that_read_other_problems_are_told(flags, tmp_path, rows, monkeypatch, capsys):
    class TwoMachines(Alone):
        def gather_objects(self, mine):
            theirs = copy.deepcopy(mine)
            if "builtin:countdown" in theirs:
                theirs["builtin:countdown"]["problems_sha256"] = "another"
            return [mine, theirs]

    load_whole = evaluate_run.load_whole
    monkeypatch.setattr(evaluate_run, "load_whole", lambda *given: (load_whole(*given)[0], TwoMachines()))
    with pytest.raises(SystemExit):
        evaluate.main([*flags, "--output", str(tmp_path / "out")])
    assert "builtin:countdown: rank 1 has other problems or another protocol than rank 0 (problems_sha256 differ)" in (
        capsys.readouterr().err
    )
    assert not (tmp_path / "out").exists()


def test_live_table(whole, flags, monkeypatch):
    """On a terminal a table with every task grows; what the log has stands there from the start."""
    terminal = Console(file=io.StringIO(), force_terminal=True, width=120)
    monkeypatch.setattr(evaluate_tables, "wide_console", lambda: terminal)
    shown = []
    show = evaluate_tables.LiveTable.show

    def show_and_keep(table, progress):
        show(table, progress)
        shown.append(dict(table.rows))

    monkeypatch.setattr(evaluate_tables.LiveTable, "show", show_and_keep)
    log = (whole / "samples.jsonl").read_text().splitlines(keepends=True)
    output = whole.parent / "again"
    output.mkdir()
    (output / "settings.json").write_text((whole / "settings.json").read_text())
    (output / "samples.jsonl").write_text("".join(log[:-1]))
    evaluate.main([*flags, "--output", str(output)])
    assert [(rows["gsm8k"][0], rows["builtin:countdown"][0]) for rows in shown] == [
        ("3/3", "0/3"),
        ("3/3", "2/3"),
        ("3/3", "3/3"),
    ]
    samples = [json.loads(line) for line in (output / "samples.jsonl").read_text().splitlines()]
    counts = [each["num_forwards"] for each in samples if each["task"] == "builtin:countdown"]
    assert shown[-1]["builtin:countdown"][4] == f"{sum(counts) / 3:.1f}"
    assert "solved so far" in terminal.file.getvalue()
