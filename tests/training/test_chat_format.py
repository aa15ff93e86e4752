"""What decided a run's tokens travels with it: into checkpoint, export, adapters, card, and every tool that asks it."""

import json
import shutil
from dataclasses import asdict
from datetime import datetime

import pytest
from transformers import AutoTokenizer

from lift_ds.cli import evaluate, generate, learnability, merge_lora, train, zero_to_hf
from lift_ds.cli.answer_flags import with_flags
from lift_ds.cli.generate import Prompt
from lift_ds.config.loading import load_run_config
from lift_ds.data.text.chat_format import ChatFormat, read_format, write_format
from lift_ds.evaluation.asking.answering import load_answerer, make_encoder, taught_format
from lift_ds.export.convert import ConversionOptions, prepare_average, prepare_conversion
from lift_ds.export.inspection import checkpoint_format
from lift_ds.storage.manifest import hash_file, read_manifest, write_manifest
from lift_ds.storage.run_record import read_run
from lift_ds.training.inputs import chat_format_of, prepare
from tests.conftest import REPOSITORY, VECTORS, launch_train
from tests.training.test_old_runs import copy_run

CASE = VECTORS / "cases" / "template_export"
PLAIN = (CASE / "plain.jinja").read_text()
ASKED = "### system:\nBe exact.\n\n### user:\nAdd 7 and 2.\n\n### assistant:\n"
QUESTION = [{"role": "user", "content": "Add 7 and 2."}]
TAUGHT = ChatFormat("Be exact.", pad_targets="all", pad_to_multiple=4, template=PLAIN)


@pytest.fixture(scope="module")
def taught(tiny_dir, tmp_path_factory):
    """A run of two steps on two ranks under ZeRO-3, with a template and a system text that the base does not have."""
    output = tmp_path_factory.mktemp("taught") / "run"
    shutil.copy(CASE / "plain.jinja", output.parent)
    done = launch_train(
        *("--deepspeed", "ds_configs/zero3.json", "--model", tiny_dir, "--output", output),
        *(
            "--data",
            CASE / "rows.jsonl",
            f"data.chat_template={output.parent / 'plain.jinja'}",
            "data.system=Be exact.",
        ),
        *("data.pad_targets=all", "data.pad_to_multiple=4", "model.from_scratch=true", "optim.steps=2", "eval.rows=4"),
    )
    assert "was trained with" not in done.stdout  # the base says nothing of how it was
    return output


def training_prompts(output):
    """What the model saw before its answers while it trained: texts of the questions, and token ids."""
    recorded = read_run(output)["run"]
    overrides = {f"data.{name}": value for name, value in recorded["data"].items() if name != "sources"}
    run, problems = load_run_config(None, [], overrides | {"model.path": recorded["model"]["path"], "eval.rows": 4})
    assert not problems
    rows = [json.loads(line) for line in (CASE / "rows.jsonl").read_text().splitlines()]
    data = prepare(run).data
    documents = data.reader.by_sample_id(range(len(rows)))
    return [
        (row["prompt"], document.ids[: document.response_mask.argmax()].tolist())
        for row, document in zip(rows, documents, strict=True)
    ]


@pytest.mark.distributed
def test_generate_asks_as_the_run_taught(taught, capsys):
    session = generate.load(generate.main.parser().parse_args([str(taught / "export")]))
    prompts = training_prompts(taught)
    assert len(prompts) == 120
    for question, ids in prompts:
        assert session.encode(Prompt(question, "here").messages(), "here") == ids
    assert session.answerer.encoder.tokenizer.decode(session.encode(QUESTION, "here")) == ASKED
    assert capsys.readouterr().err == "data.system=Be exact., as the model was taught\n"


@pytest.mark.distributed
def test_every_folder_renders_as_the_run_did(taught, tmp_path):
    zero_to_hf.main([str(taught), str(tmp_path / "converted"), "--verify"])
    checkpoint = taught / "checkpoints" / "step-000002"
    for folder in (checkpoint / "hf", taught / "export", tmp_path / "converted"):
        assert read_format(folder) == TAUGHT
        tokenizer = AutoTokenizer.from_pretrained(folder)
        messages = TAUGHT.messages(QUESTION)
        assert tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == ASKED
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    assert {"hf/chat_format.json", "hf/chat_template.jinja"} < manifest["files"].keys()
    card = (taught / "export" / "README.md").read_text()
    assert "| system text | Be exact. |\n" in card
    assert "| end tokens | all, to a multiple of 4 tokens |\n" in card


@pytest.mark.distributed
def test_flags_take_its_place_and_it_is_said(taught, tmp_path, capsys):
    flags = ["--tasks", "builtin:arithmetic", "--protocol", "clean", "--limit", "1", "--steps", "4"]
    evaluate.main(["--model", str(taught / "export"), *flags, "--output", str(tmp_path / "taught")])
    assert "data.system=Be exact., as the model was taught\n" in capsys.readouterr().out
    other = ["--system", "", "--chat-template", str(tmp_path / "other.jinja")]
    (tmp_path / "other.jinja").write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}>")
    evaluate.main(["--model", str(taught / "export"), *flags, *other, "--output", str(tmp_path / "other")])
    printed = capsys.readouterr().out
    assert "data.system=none, instead of Be exact. that the model was taught\n" in printed
    assert "chat template=this, instead of another that the model was taught\n" in printed
    hashes = [
        json.loads((tmp_path / name / "results.json").read_text())["settings"]["tasks"]["builtin:arithmetic"]
        for name in ("taught", "other")
    ]
    assert hashes[0]["prompts_sha256"] != hashes[1]["prompts_sha256"]
    answerer, _ = with_flags(load_answerer(str(taught / "export")), None, str(tmp_path / "other.jinja"))
    assert answerer.encoder.tokenizer.decode(answerer.prompt_ids(QUESTION)) == "Be exact.Add 7 and 2.>"


@pytest.mark.distributed
def test_learnability_measures_rows_as_the_model_was_taught(taught, capsys):
    arguments = learnability.main.parser().parse_args([str(taught / "export"), "--rows", "9"])
    arguments.data = [str(CASE / "rows.jsonl")]
    run, _, _ = learnability.resolve(arguments)
    assert (run.data.system, run.data.pad_targets, run.data.pad_to_multiple) == ("Be exact.", "all", 4)
    assert f"as {taught / 'export'} was taught: data.system=Be exact., " in capsys.readouterr().out
    document = prepare(run).data.held_out[0]
    assert document.response_mask.sum() % 4 == 0
    arguments.overrides = ["data.system=null"]
    assert learnability.resolve(arguments)[0].data.system is None


@pytest.mark.distributed
def test_training_begins_from_it_in_its_own_format_and_says_so(taught, tmp_path, capsys):
    command = ["--deepspeed", str(REPOSITORY / "ds_configs" / "zero3.json"), "--dry-run", "eval.rows=4"]
    command += [
        "--model",
        str(taught / "export"),
        "--data",
        str(CASE / "rows.jsonl"),
        "--output",
        str(tmp_path / "new"),
    ]
    train.main(command)
    assert (
        f"{taught / 'export'} was trained with data.system=Be exact., data.pad_targets=all, data.pad_to_multiple=4; "
        "this run: data.system=none, data.pad_targets=one_eos, data.pad_to_multiple=1\n"
    ) in capsys.readouterr().out


@pytest.mark.distributed
def test_the_checkpoint_has_the_template_where_its_file_is_gone(taught, tmp_path, capsys):
    """It is the same by its hash; another text is refused."""
    output = shutil.copytree(taught, tmp_path / "run")
    template = taught.parent / "plain.jinja"
    command = ["--deepspeed", str(REPOSITORY / "ds_configs" / "zero3.json"), "--dry-run", "--output", str(output)]
    command += ["--resume", "auto"]
    template.unlink()
    with pytest.raises(SystemExit):
        train.main(command)
    kept = f"data.chat_template={output}/checkpoints/step-000002/hf/chat_template.jinja"
    assert (
        f"data.chat_template={template}: no such file; the checkpoint has its text: {kept}\n" in capsys.readouterr().err
    )
    train.main([*command, kept])
    assert "changes: data.chat_template: " in capsys.readouterr().out
    template.write_text(PLAIN.replace("###", "##"))
    with pytest.raises(SystemExit):
        train.main(command)
    assert "does not fit this run: chat template was" in capsys.readouterr().err
    template.write_text(PLAIN)


def test_the_clock_stands_where_it_stood(tiny_dir, tmp_path):
    """In a run, in what its checkpoints say, in a run that goes on, and when the model is asked."""
    template = VECTORS / "cases" / "template_clock" / "chat_template.jinja"
    data = {"path": str(CASE / "rows.jsonl"), "chat_template": str(template), "clock": "2026-01-31T12:00:05"}
    flags = {f"data.{key}": value for key, value in data.items()} | {"model.path": str(tiny_dir), "eval.rows": 0}
    run, problems = load_run_config(None, ["model.from_scratch=true"], flags)
    assert not problems
    prepared = prepare(run)
    taught = chat_format_of(prepared)
    assert (taught.clock, taught.template) == ("2026-01-31T12:00:05", template.read_text())
    plain = chat_format_of(
        prepare(run.model_copy(update={"data": run.data.model_copy(update={"chat_template": None})}))
    )
    assert plain.clock is None  # its template has no clock
    folder = shutil.copytree(tiny_dir, tmp_path / "model")
    write_format(folder, taught)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    encoder = make_encoder(prepared.config, tokenizer, "model", taught_format(folder, None, tokenizer))
    asked = [{"role": "user", "content": "Add 0 and 2."}]
    document = next(iter(prepared.data.reader.by_sample_id([0])))
    assert encoder.prompt_ids(asked) == document.ids[: document.response_mask.argmax()].tolist()


@pytest.mark.distributed
def test_a_run_s_clock_is_its_start_s_on_all_ranks_and_when_it_goes_on(tiny_dir, tmp_path):
    """A template that shows seconds: another time would be other tokens, and the checkpoint's position of no use."""
    cases = VECTORS / "cases" / "template_clock"
    output = tmp_path / "run"
    flags = ["--deepspeed", "ds_configs/zero3.json", "--output", output, "optim.steps=2"]
    named = ["--model", tiny_dir, "model.from_scratch=true", "eval.rows=4", "--data", cases / "rows.jsonl"]
    before = datetime.now().replace(microsecond=0)
    launch_train(*flags, *named, f"data.chat_template={cases / 'chat_template.jinja'}")
    clock = read_run(output)["run"]["data"]["clock"]
    assert before <= datetime.fromisoformat(clock) <= datetime.now()
    launch_train(*flags[:-1], "--resume", "auto", "optim.steps=3", num_ranks=1)
    for folder in (output, output / "checkpoints" / "step-000003"):
        assert read_run(folder)["run"]["data"]["clock"] == clock
    assert read_format(output / "export").clock == clock


def test_a_run_folder_is_no_model_folder(tmp_path):
    copy_run("full", tmp_path)
    with pytest.raises(ValueError, match=r"full: no config.json; .* This is a run: name its export, or make one with"):
        load_answerer(str(tmp_path / "full"))


def keep_no_format(checkpoint, template):
    """A checkpoint as it was before the format was kept: the base's template, and nothing else."""
    (checkpoint / "hf" / "chat_format.json").unlink()
    (checkpoint / "hf" / "chat_template.jinja").write_text(template)
    path = checkpoint / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"].pop("hf/chat_format.json")
    manifest["files"]["hf/chat_template.jinja"] = asdict(hash_file(checkpoint / "hf" / "chat_template.jinja"))
    path.write_text(json.dumps(manifest))
    (checkpoint / "manifest.sha256").unlink()  # there was none either


@pytest.mark.distributed
def test_a_checkpoint_from_before_it_was_kept(taught, tmp_path):
    """The run's record says all but the template's text, which is read where it was, and compared with its hash."""
    checkpoint = shutil.copytree(taught / "checkpoints" / "step-000002", tmp_path / "step-000002")
    keep_no_format(checkpoint, "{{ 'the base' }}")
    assert checkpoint_format(checkpoint) == TAUGHT
    prepare_conversion(checkpoint, ConversionOptions()).write(tmp_path / "export")
    assert read_format(tmp_path / "export") == TAUGHT
    template = taught.parent / "plain.jinja"
    for content, problem in ((f"{PLAIN} ", "has changed since"), (None, "is neither a name nor a file")):
        if content is None:
            template.unlink()
        else:
            template.write_text(content)
        with pytest.raises(ValueError, match=rf"chat template that it does not hold: .*{problem}.*Put the file back"):
            prepare_conversion(checkpoint, ConversionOptions())
    prepare_conversion(checkpoint, ConversionOptions(weights_only=True))
    template.write_text(PLAIN)


@pytest.mark.distributed
def test_an_average_needs_one_format(taught, tmp_path):
    checkpoint = taught / "checkpoints" / "step-000002"
    assert prepare_average([checkpoint, checkpoint], ConversionOptions()).chat_format == TAUGHT
    other = shutil.copytree(checkpoint, tmp_path / "step-000002")
    path = other / "hf" / "chat_format.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"system": None}))
    manifest = read_manifest(other)
    manifest.files["hf/chat_format.json"] = hash_file(path)
    write_manifest(other, manifest)
    with pytest.raises(ValueError, match=r"taught in another chat format than .* \(data.system\)"):
        prepare_average([checkpoint, other], ConversionOptions())


def test_adapters_carry_it_and_it_wins(tmp_path, monkeypatch, capsys):
    """An older run's adapters, put onto the base unmerged and merged, are asked as they were taught."""
    copy_run("lora", tmp_path)
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "lora" / "checkpoints" / "step-000003" / "run.json"
    record = json.loads(path.read_text())
    record["run"]["data"]["system"] = "Be exact."
    path.write_text(json.dumps(record))
    manifest = path.with_name("manifest.json")
    files = json.loads(manifest.read_text())
    files["files"]["run.json"] = asdict(hash_file(path))
    manifest.write_text(json.dumps(files))
    zero_to_hf.main(["lora", "adapters", "--lora", "split"])
    kept = read_format(tmp_path / "adapters")
    own = (tmp_path / "model" / "chat_template.jinja").read_text()
    assert kept == ChatFormat("Be exact.", template=own)
    (tmp_path / "model" / "chat_template.jinja").write_text(PLAIN)  # a base that is asked in another way
    answerer, lines = with_flags(load_answerer("model", "adapters"), None, None, "adapters")
    assert answerer.chat_format == kept
    assert lines == ["data.system=Be exact., as the model was taught", "chat format of the adapters in adapters"]
    capsys.readouterr()
    merge_lora.main(["model", "adapters", "merged"])
    printed = capsys.readouterr().out
    assert "chat format of the adapters, not the base's: data.system: Be exact.; chat template: this\n" in printed
    assert read_format(tmp_path / "merged") == kept
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert tokenizer.chat_template == own
    assert load_answerer("merged").prompt_ids(QUESTION) == answerer.prompt_ids(QUESTION)
