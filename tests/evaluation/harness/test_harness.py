"""The harness's own tasks files and command, offline, on one and two processes."""

import json
import sys
from functools import partial

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model

import lift_ds.cli.lm_eval_model  # noqa: F401 (makes the model known)
from lift_ds.cli import evaluate, evaluate_run
from lift_ds.cli import lm_eval as command
from lift_ds.data.tasks import MIXTURES
from lift_ds.evaluation.asking.answering import load_answerer
from lift_ds.evaluation.harness import run as harness
from lift_ds.evaluation.harness.language_model import DiffusionLM
from lift_ds.evaluation.harness.settings import HarnessSettings
from lift_ds.ranks.shares import Alone
from tests.conftest import REPOSITORY, free_port, run, run_script
from tests.evaluation.harness.job import run_tasks

LOCAL = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
fewshot_split: test
metadata: {{version: 1}}
"""
FILES = {
    "tiny_answers": """
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
num_fewshot: 2
generation_kwargs: {until: ["</answer>"], max_gen_toks: 48, do_sample: false}
metric_list: [{metric: exact_match}]
""",
    "tiny_choices": """
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: choices
doc_to_target: gold
num_fewshot: 2
metric_list: [{metric: acc}, {metric: exact_match}]
""",
    "tiny_words": """
output_type: loglikelihood
doc_to_text: "{{question}} "
doc_to_target: "{{answer}}"
num_fewshot: 0
metric_list: [{metric: perplexity}, {metric: acc}]
""",
    "tiny_texts": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{question}}"
metric_list: [{metric: bits_per_byte}]
""",
}


@pytest.fixture(scope="module")
def task_dir(tmp_path_factory):
    """Task files over five held-out items of the built-in tasks, with examples that are drawn at random."""
    folder = tmp_path_factory.mktemp("tasks")
    items = [MIXTURES["countdown/3"].item(0, "test", place) for place in range(5)]
    rows = [
        {
            "question": item.question,
            "answer": item.response.split("<answer>")[1].split("</answer>")[0],
            "choices": [item.response, item.response.replace("+", "-"), "1"],
            "gold": 0,
        }
        for item in items
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, text in FILES.items():
        (folder / f"{name}.yaml").write_text(LOCAL.format(name=name, rows=folder / "rows.jsonl") + text)
    return folder


@pytest.fixture(scope="module")
def base():
    return load_answerer("builtin:base")


@pytest.fixture(scope="module")
def alone(task_dir, base):
    """Results of one process with one thread, as the launched ones have."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    found = run_tasks(base, Alone(), task_dir)
    torch.set_num_threads(threads)
    return json.loads(json.dumps(found, default=str))


def test_tasks_give_results_and_errors(alone):
    results, samples = alone["results"], alone["samples"]
    assert set(results) == set(FILES)
    assert [sample["doc_id"] for sample in samples["tiny_choices"]] == list(range(5))
    assert any(sample["resps"][0][0] for sample in samples["tiny_answers"])
    assert not any("</answer>" in sample["resps"][0][0] for sample in samples["tiny_answers"])
    for sample in samples["tiny_choices"]:
        first, second, short = sample["standard_errors"]
        assert first > 0 and second > 0  # longer than the 3 tokens whose masks are all computed
        assert short == 0
        logliks = [float(response[0][0]) for response in sample["resps"]]
        assert sample["acc"] == float(max(logliks) == logliks[0])
    assert all("standard_errors" not in sample for sample in samples["tiny_answers"])
    said = alone["config"]["likelihoods"]
    assert said["num_requests"] == 5 * 3 + 5 + 5
    assert 5 <= said["num_exact_bounds"] < 25
    assert said["largest_standard_error"] > said["mean_standard_error"] > 0


def launch(task_dir, output, *arguments):
    """What two ranks find."""
    run_script("-m", "tests.evaluation.harness.job", task_dir, output, *arguments, num_ranks=2)
    return json.loads(output.read_text())


@pytest.mark.distributed
def test_two_processes_give_equal_results(task_dir, alone, tmp_path):
    """Bit for bit, with examples drawn at random and shares that do not divide."""
    found = launch(task_dir, tmp_path / "two.json")
    assert found["config"]["num_processes"] == 2
    assert found["results"] == alone["results"]
    assert found["samples"] == alone["samples"]


@pytest.mark.slow
def test_the_command_knows_the_model(task_dir, tmp_path, monkeypatch, capsys):
    """`lift-ds-lm-eval` with strings only, on a task file; likelihoods go to a file with their errors."""
    monkeypatch.setattr(sys, "argv", [])
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    arguments = ["--model", "lift_ds", "--tasks", "tiny_choices", "--include_path", str(task_dir), "--limit", "1"]
    arguments += ["--batch_size", "8", "--apply_chat_template", "--model_args"]
    command.main([*arguments, f"pretrained=builtin:base,mc_num=8,estimates={tmp_path / 'e.jsonl'},progress={tmp_path}"])
    shown = capsys.readouterr().out
    assert "|tiny_choices|" in shown.replace(" ", "")
    lines = [json.loads(line) for line in (tmp_path / "e.jsonl").read_text().splitlines()]
    assert [line["choice"] for line in lines] == [0, 1, 2]
    assert lines[0]["standard_error"] > 0
    assert (tmp_path / "0.jsonl").stat().st_size
    command.main([*arguments, f"pretrained=builtin:base,mc_num=8,estimates={tmp_path / 'e.jsonl'},progress={tmp_path}"])
    assert lines == [json.loads(line) for line in (tmp_path / "e.jsonl").read_text().splitlines()]


def test_the_harness_makes_the_model_from_strings(tmp_path):
    """As its command does: it always says `cuda:0` and a batch size, and what stands in `--model_args` goes first."""
    given = {"batch_size": "8", "max_batch_size": None, "device": "cuda:0"}
    make = get_model("lift_ds").create_from_arg_string
    lm = make("pretrained=builtin:base,mc_num=9,batch_size=5,dtype=bfloat16", given)
    assert (lm.settings.mc_num, lm.settings.batch_size, lm.max_length) == (9, 5, 2048)
    assert (lm.dtype, lm.device.type) == (torch.bfloat16, "cuda" if torch.cuda.is_available() else "cpu")
    (tmp_path / "plain.jinja").write_text("{% for message in messages %}{{ message['content'] }}!{% endfor %}")
    lm = get_model("lift_ds").create_from_arg_obj(
        {"pretrained": "builtin:base", "chat_template": str(tmp_path / "plain.jinja")}, given
    )
    assert lm.settings.batch_size == 8
    assert lm.apply_chat_template([{"role": "user", "content": "Hi"}]) == "Hi!"
    for arguments, message in (
        ("pretrained=builtin:base,mc_numb=9", "mc_numb is unknown, did you mean mc_num?"),
        ("pretrained=no/model", "no such folder"),
        ("pretrained=builtin:base,batch_size=auto", "batch_size='auto'"),
    ):
        with pytest.raises(ValueError, match=message):
            make(arguments, given)
    with pytest.raises(ValueError, match="--device mps: each process takes the GPU of its number"):
        make("pretrained=builtin:base", given | {"device": "mps"})


def test_errors_end_the_command_with_2(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", [])
    with pytest.raises(SystemExit) as stopped:
        command.main(["--local_rank=0", "run", "--model", "lift_ds", "--tasks", "x", "--log_samples"])
    assert stopped.value.code == 2
    assert "error: Specify --output_path" in capsys.readouterr().err


def test_our_own_command(task_dir, tmp_path, monkeypatch, capsys):
    """`tools/evaluate.py --harness` gives what `run_harness` gives, and takes its flags only."""
    monkeypatch.setattr(evaluate_run, "run_harness", partial(harness.run_harness, include_defaults=False))
    flags = ["--harness", "--model", "builtin:base", "--tasks", "tiny_words", "--include-path", str(task_dir)]
    flags += ["--batch-size", "3", "--mc-num", "12", "--threshold", "0.9", "--output", str(tmp_path / "out")]
    evaluate.main([*flags, "--apply-chat-template"])
    assert "tiny_words" in capsys.readouterr().out
    for more, message in (
        (["--samples", "2", "--protocol", "clean"], "--samples, --protocol: no flag of --harness"),
        (["--json", "x.json"], "--json: no flag of --harness"),
        ([], "harness.json exists; remove it, or name another --output"),
        (
            ["--output", str(task_dir / "tiny_words.yaml" / "out")],
            "cannot be written: Not a directory; name a place that can",
        ),
    ):
        with pytest.raises(SystemExit):
            evaluate.main([*flags, *more])
        captured = capsys.readouterr()
        assert message in captured.err
        assert "tiny_words,none" not in captured.out
    found = json.loads((tmp_path / "out" / "harness.json").read_text())
    assert found["results"]["tiny_words"]["perplexity,none"] > 1
    assert all(len(sample["standard_errors"]) == 1 for sample in found["samples"]["tiny_words"])


@pytest.mark.slow
def test_a_cut_off_run_goes_on(task_dir, alone, base, tmp_path, monkeypatch, caplog):
    """Cut in the middle of a line on two processes, it goes on alone; what other weights computed is not taken."""
    launch(task_dir, tmp_path / "two.json", "--progress", str(tmp_path / "kept"))
    paths = [tmp_path / "kept" / f"{rank}.jsonl" for rank in range(2)]
    counts = [len(path.read_text().splitlines()) for path in paths]
    assert min(counts) > 3
    for path in paths:
        path.write_bytes(path.read_bytes()[:-7])
    forwards = []
    encode = base.model.encode
    monkeypatch.setattr(base.model, "encode", lambda *given: (forwards.append(1), encode(*given))[1])

    def again(identity):
        forwards.clear()
        return json.loads(json.dumps(run_tasks(base, Alone(), task_dir, tmp_path / "kept", identity), default=str))

    found = again("base")
    assert found["config"]["num_batches_kept"] == sum(counts) - 2
    assert (found["results"], found["samples"]) == (alone["results"], alone["samples"])
    assert 0 < len(forwards) < 40
    assert again("base")["config"]["num_batches_kept"] == sum(counts)
    assert not forwards
    assert again("other")["config"]["num_batches_kept"] == 0
    (tmp_path / "kept" / "1.jsonl").write_bytes(b"\0\0\n[]\n" + paths[0].read_bytes()[:400])
    assert again("base")["config"]["num_batches_kept"] < sum(counts)
    assert "1.jsonl: 2 lines are broken, the first is line 1; they are computed again" in caplog.text


def test_progress_belongs_to_weights_and_one_run(base, tmp_path):
    settings = HarnessSettings(progress=str(tmp_path / "kept"))
    with pytest.raises(ValueError, match="needs an identity of the weights"):
        DiffusionLM(base, Alone(), settings)
    first = DiffusionLM(base, Alone(), settings, identity="base")
    with pytest.raises(ValueError, match="another evaluation is writing here"):
        DiffusionLM(base, Alone(), settings, identity="base")
    first.batches.close()
    DiffusionLM(base, Alone(), settings, identity="base")


class OtherMachine(Alone):
    """The first of two ranks, the second of which asks something else."""

    world_size = 2

    def gather_objects(self, mine):
        return [mine, "other"] if isinstance(mine, str) else [mine, {}]


def test_ranks_that_ask_something_else_are_told(base):
    lm = DiffusionLM(base, OtherMachine(), HarnessSettings())
    with pytest.raises(ValueError, match="rank 1 was given other requests than rank 0"):
        lm.loglikelihood([Instance("loglikelihood", {}, ("a", " b"), 0)])


def test_unknown_tasks_are_refused(task_dir, base):
    with pytest.raises(ValueError, match="tasks no_such_task: no such task"):
        harness.run_harness(
            base, Alone(), HarnessSettings(), ["tiny_words", "no_such_task"], include_path=task_dir,
            include_defaults=False,
        )  # fmt: skip


def test_without_the_harness_the_extra_is_named(tmp_path):
    """In an interpreter that does not see the environment's packages lm_eval cannot be found."""
    script = "from lift_ds.evaluation.harness.run import require_harness as r; import sys; sys.path = []; r()"
    done = run([sys.executable, "-c", script], check=False)
    assert "RuntimeError: lm-evaluation-harness is not installed: pip install 'lift_ds[eval]'" in done.stdout


def test_requests_at_the_edge(base):
    """Nothing to do; an empty continuation, which is certain; equal requests; an empty text."""
    lm = DiffusionLM(base, Alone(), HarnessSettings())
    assert lm.generate_until([]) == lm.loglikelihood([]) == lm.loglikelihood_rolling([]) == []

    def ask(*arguments):
        return Instance("loglikelihood", {}, arguments, 0)

    certain, without_context, one, same = lm.loglikelihood([ask("a", ""), ask("", "b"), ask("a", " b"), ask("a", " b")])
    assert certain == (0.0, True)
    assert one == same
    assert without_context[0] < 0
    nothing, text = lm.loglikelihood_rolling([ask(""), ask("3+4=7")])
    assert nothing == 0.0 > text
    assert text == pytest.approx(lm.loglikelihood([ask("", "3+4=7")])[0][0], abs=1e-4)


class TwoRanks(Alone):
    world_size = 2


def test_what_the_harness_may_not_ask(base):
    lm = DiffusionLM(base, TwoRanks(), HarnessSettings())
    with pytest.raises(ValueError, match="--use_cache: with one process only, here are 2"):
        lm.set_cache_hook(None)
    with pytest.raises(ValueError, match="give the flag alone, and chat_template=llada in"):
        lm.chat_template("llada")
    assert lm.chat_template(True) == base.encoder.tokenizer.chat_template
    with pytest.raises(ValueError, match="max_length=9999: the model was made for 2048"):
        DiffusionLM(base, Alone(), HarnessSettings(max_length=9999))


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize(
    "launcher",
    [
        ["torchrun", "--nproc_per_node", "2", "--master_port", "{port}", "-m"],
        ["deepspeed", "--num_gpus", "2", "--master_port", "{port}", "--module"],
    ],
    ids=lambda launcher: launcher[0],
)
def test_launchers(launcher, task_dir, tmp_path):
    """The command under each launcher; the results of both processes together are written once."""
    start = [part.format(port=free_port()) for part in launcher]
    arguments = ["--model", "lift_ds", "--model_args", "pretrained=builtin:base,mc_num=8"]
    arguments += ["--tasks", "tiny_choices", "--include_path", str(task_dir), "--output_path", str(tmp_path)]
    done = run([*start, "lift_ds.cli.lm_eval", *arguments])
    (path,) = tmp_path.glob("*/results_*.json")
    assert json.loads(path.read_text())["config"]["num_processes"] == 2
    assert done.stdout.count("|tiny_choices|") == 1


@pytest.mark.slow
@pytest.mark.distributed
def test_a_model_that_is_cut_over_the_ranks(task_dir, alone, tmp_path):
    """ZeRO-3, all matrices gathered in all forwards: both ranks must run the same; answers and estimates stay."""
    settings = json.loads((REPOSITORY / "ds_configs" / "zero3.json").read_text())
    for name in ("stage3_param_persistence_threshold", "stage3_max_reuse_distance", "stage3_max_live_parameters"):
        settings["zero_optimization"][name] = 0
    (tmp_path / "zero.json").write_text(json.dumps(settings))
    found = launch(task_dir, tmp_path / "cut.json", "--deepspeed", str(tmp_path / "zero.json"))
    for task, samples in alone["samples"].items():
        for one, other in zip(samples, found["samples"][task], strict=True):
            assert one.get("standard_errors") == pytest.approx(other.get("standard_errors"), abs=1e-3)
            if task == "tiny_answers":
                assert one["resps"] == other["resps"]
            elif task != "tiny_texts":
                values = [[float(response[0][0]) for response in each["resps"]] for each in (one, other)]
                assert values[0] == pytest.approx(values[1], abs=1e-3)
