"""The commands that README and docs give, and the pages themselves."""

import io
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lift_ds.cli import evaluate, generate
from tests.conftest import REPOSITORY, clean_environment, free_port, launch_train, read_steps, run, run_script
from tests.file_map import PAGE, ROOMS, page

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
DOCS = {
    path.relative_to(REPOSITORY): path.read_text(encoding="utf-8")
    for path in sorted((REPOSITORY / "docs").rglob("*.md"))
}
RECORDER = """#!/bin/sh
echo "${0##*/} $*" >> calls
if [ "$1 $2" = "-m venv" ]; then mkdir -p "$3/bin"; cp "$0" "$3/bin/pip"; cp "$0" "$3/bin/python"; fi
"""


@pytest.mark.parametrize(
    "script",
    [
        "launchers/train.py",
        "tools/zero_to_hf.py",
        "tools/inspect_checkpoint.py",
        "tools/average_checkpoints.py",
        "tools/reshard.py",
        "tools/merge_lora.py",
        "tools/score.py",
        "tools/generate.py",
        "tools/make_diffusion_model.py",
        "tools/make_base_tokenizer.py",
    ],
)
def test_help(script):
    printed = run_script(script, "--help").stdout
    assert "usage:" in printed
    if script.endswith("train.py"):
        for key in ("optim.steps", "optim.lr", "objective.method", "checkpoint.save_every", "eval.solve_items"):
            assert key in printed


def commands(section_word):
    """The shell commands of all pages' code blocks that contain a word, each once; continued lines are joined."""
    pages = (README, *DOCS.values())
    blocks = [block for page in pages for block in re.findall(r"```bash\n(.*?)```", page, re.DOTALL)]
    lines = [line.split("  #")[0].strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return list(dict.fromkeys(line for line in lines if section_word in line and not line.startswith("#")))


def run_readme(command):
    """Runs a command of the page that begins with `python`."""
    interpreter, *arguments = command.split()
    assert interpreter == "python"
    return run_script(*arguments)


TRAINING_ON_DATA = [command for command in commands("launchers/train.py") if "--data" in command]


def test_readme_begins_with_the_two_commands():
    first_block = re.search(r"```bash\n(.*?)```", README, re.DOTALL).group(1)
    assert [line.split()[:2] for line in first_block.strip().splitlines()] == [["make", "train"], ["make", "test"]]


def test_readme_is_short_and_its_links_lead_somewhere():
    assert len(README.splitlines()) <= 150
    for path, text in {Path("README.md"): README, **DOCS}.items():
        for target in re.findall(r"\]\(([^)#:]+)\)", text.replace("\n", " ")):
            assert (REPOSITORY / path.parent / target).exists(), f"{path}: {target}"


def test_every_table_of_results_says_when_where_and_how_it_was_measured():
    """Commit, date, machine and command, once for each section that has a table."""
    line = re.compile(r"\*Measured at `([0-9a-f]{7})`, 20\d\d-\d\d-\d\d, on [^:]+:\*\s`([^`]+)`")
    results = {path: text for path, text in DOCS.items() if path.parent.name == "results"}
    makefile = (REPOSITORY / "Makefile").read_text()
    assert results
    for path, text in results.items():
        assert not re.search(r"an earlier order|not measured again|out of date|stale", text), path
        for section in re.split(r"^## ", text, flags=re.MULTILINE):
            if "| --- |" in section and "Not measured yet" not in text:
                found = line.search(section)
                assert found, f"{path}: {section.splitlines()[0]}"
                script = re.search(r"benchmarks/\w+\.(py|sh)", found[2])
                target = re.match(r"make ([\w-]+)", found[2])
                is_target = target and re.search(rf"^{target[1]}\b.*:", makefile, re.MULTILINE)
                assert is_target or (script and (REPOSITORY / script[0]).is_file()), found[2]


def test_a_make_target_runs_every_file_with_slow_tests():
    makefile = (REPOSITORY / "Makefile").read_text()
    run = {
        path
        for name in re.findall(r"tests/[\w/.]+", makefile)
        for path in [REPOSITORY / name, *(REPOSITORY / name).glob("*.py")]
    }
    slow = {path for path in (REPOSITORY / "tests").rglob("test_*.py") if "pytest.mark.slow" in path.read_text()}
    assert len(slow) > 15 and slow - run - {Path(__file__)} == set()


def test_the_map_of_the_files_is_that_of_their_docstrings():
    assert PAGE.read_text() == page(), "write it anew: python -m tests.file_map"


def test_readme_names_every_room():
    listed = README.split("## Where things are")[1].split("\n## ")[0]
    assert not [name for name in ROOMS if f"{name}/" not in listed]
    for folder in ("ds_configs", "launchers", "launchers/recipes"):
        assert not [path.name for path in (REPOSITORY / folder).glob("*.*") if path.name not in listed]


@pytest.mark.distributed
def test_the_default_command(tmp_path):
    """`deepspeed launchers/train.py --deepspeed ds_configs/zero3.json` with fewer steps and items, on one slot."""
    command = "deepspeed launchers/train.py --deepspeed ds_configs/zero3.json"
    assert command in commands("launchers/train.py")
    output = tmp_path / "run"
    reduced = ["optim.steps=3", "eval.solve_items=6", "eval.rows=6", f"output={output}"]
    launcher, *arguments = command.split()
    port = ["--master_port", str(free_port())]  # 29500, the launcher's own choice, may be taken
    done = run([launcher, *port, *arguments, *reduced], timeout=600)
    assert "1 rank (all slots that the launcher found" in done.stdout
    assert "Held-out items, before -> after" in done.stdout
    assert len(read_steps(output)) == 3
    assert (output / "export" / "model.safetensors").is_file()
    assert "license: mit\n" in (output / "export" / "README.md").read_text()  # the base's, by way of the checkpoint


@pytest.mark.distributed
@pytest.mark.parametrize("number", range(len(TRAINING_ON_DATA)))
def test_readme_commands_with_data(number, tiny_dir, tmp_path):
    """Every README command that reads a data file runs, with a small file and model of ours in place of the user's."""
    command = TRAINING_ON_DATA[number]
    data = tmp_path / "rows.jsonl"
    rows = [
        {
            "question": f"What is {n} + 1?",
            "generation": f"It is {n + 1}.",
            "messages": [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": f"{n}!"}],
        }
        for n in range(60)
    ]
    if "llada_8b_lift3_lora" in command:  # the recipe maps the columns of s1K
        rows = [
            {"question": f"{n} + 1?", "thinking_trajectories": [f"{n}, then one"], "attempt": "1"} for n in range(60)
        ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = re.sub(r"--data \S+", f"--data {data}", command)
    command = re.sub(r"--model \S+", "", command)
    command = re.sub(r"--hostfile \S+", "", command)
    arguments = command.split()
    place = arguments.index("launchers/train.py")
    reduced = ["optim.steps=2", "eval.rows=4", "optim.global_batch=4", f"output={tmp_path / 'run'}"]
    reduced += ["model.from_scratch=true", f"model.path={tiny_dir}"]
    done = launch_train(*arguments[place + 1 :], *reduced, num_ranks=1)
    assert "step 2/2" in done.stdout


def test_readme_python(tmp_path, tiny_dir):
    """The API example, with a small model in place of the built-in base."""
    launch_train(
        "--deepspeed", "ds_configs/zero3.json", "--model", tiny_dir, "model.from_scratch=true", "optim.steps=1",
        "eval.rows=0", "data.builtin_rows=100", f"output={tmp_path / 'run'}", num_ranks=1,
    )  # fmt: skip
    export = [command for command in commands("tools/zero_to_hf.py") if "runs/001" in command]
    assert len(export) == 1
    run_readme(export[0].replace("runs/001", str(tmp_path / "run")).replace("export_folder", str(tmp_path / "model")))
    (inspect,) = commands("tools/inspect_checkpoint.py")
    assert "step" in run_readme(inspect.replace("runs/001", str(tmp_path / "run"))).stdout
    report = [command for command in commands("tools/learnability.py") if "runs/001" in command]
    assert len(report) == 1
    run_readme(report[0].replace("runs/001", str(tmp_path / "run")) + " --rows 4")
    assert (tmp_path / "run" / "learnability" / "learnability.html").is_file()
    shutil.copytree(tmp_path / "run", tmp_path / "other", ignore=shutil.ignore_patterns("checkpoints", "export"))
    reports = commands("tools/report.py")
    assert len(reports) == 2
    for name, place in (("001", "run"), ("002", "other")):
        reports = [command.replace(f"runs/{name}", str(tmp_path / place)) for command in reports]
    for command in reports:
        run_readme(command.replace("lift_against_vanilla.html", str(tmp_path / "page.html")))
    assert "Training loss" in (tmp_path / "run" / "report.html").read_text()
    assert "2 runs: run, other" in (tmp_path / "page.html").read_text()
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL).group(1)
    code = code.replace("builtin:base", str(tmp_path / "model"))
    printed = run([sys.executable, "-c", code + "\nprint(float(loss) > 0, ids.shape[1] - prompt.shape[1])"]).stdout
    assert printed.strip().endswith("True 48")


def test_readme_watch():
    """Without a terminal each command prints one page; runs of an older version stand for the reader's."""
    found = commands("tools/watch.py")
    assert len(found) == 2
    for command in found:
        for name, ours in (("runs/001", "full"), ("runs/002", "lora")):
            command = command.replace(name, str(REPOSITORY / "tests" / "data" / "runs_857c343" / ours))
        printed = run([sys.executable, *command.split()[1:]]).stdout
        assert printed.count(" 3 / 6 ") == command.count("runs_857c343")


def test_readme_look_at_data(tmp_path):
    """The rows of the command, and then its tokens, which give the same counts."""
    (tmp_path / "rows.jsonl").write_text('{"prompt": "3+4?", "response": "It is 7."}\n' * 3)
    (command,) = commands("tools/prepare_data.py")
    for name in ("rows.jsonl", "report.json", "tokens/"):
        command = command.replace(name, str(tmp_path / name))
    assert "«" in run_readme(command).stdout
    report = json.loads((tmp_path / "report.json").read_text())
    again = ["tools/prepare_data.py", tmp_path / "tokens", "--model", "builtin:base", "--json"]
    run_script(*again, tmp_path / "again.json")
    found = json.loads((tmp_path / "again.json").read_text())
    assert found["rows"] == report["rows"] and found["lengths"] == report["lengths"]


def test_readme_generate(tmp_path, monkeypatch, capsys):
    """The commands, with the built-in base in place of a run's export; the chat gets one line."""
    (tmp_path / "rows.jsonl").write_text('{"prompt": "3+4?"}\n')
    monkeypatch.setattr("sys.stdin", io.StringIO("3+4?\n"))
    found = commands("tools/generate.py")
    assert len(found) == 3
    for command in found:
        for name in ("rows.jsonl", "answers.jsonl"):
            command = command.replace(name, str(tmp_path / name))
        arguments = shlex.split(command.replace("runs/001/export", "builtin:base"))
        generate.main(arguments[2:])
    assert json.loads((tmp_path / "answers.jsonl").read_text())["question"] == "3+4?"
    assert "forwards" in capsys.readouterr().out


def test_readme_evaluate(tmp_path, monkeypatch, capsys):
    """The commands, with the built-in base in place of models and small files in place of the hub."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "rows.jsonl").write_text('{"question": "3+4?", "ground_truth": 7}\n')
    builtin, on_hub, compared, harness = commands("tools/evaluate.py")
    assert "--harness" in harness
    for number, command in enumerate((builtin, on_hub)):
        arguments = shlex.split(command.split("tools/evaluate.py")[1])
        arguments = ["builtin:base" if "/" in each and "evaluations" not in each else each for each in arguments]
        if command is on_hub:
            arguments += [f"--data={task}={tmp_path / 'rows.jsonl'}" for task in ("gsm8k", "math500")]
        small = ["--limit", "1", "--threshold", "0.5", "--gen-length", "32", "--block-length", "32"]
        for folder in ("base", "tuned"):
            evaluate.main([*arguments, *small, "--output", str(tmp_path / f"{folder}{number}")])
    for name in ("base", "tuned"):
        compared = compared.replace(f"evaluations/{name}", str(tmp_path / f"{name}1"))
    evaluate.main(shlex.split(compared.replace("flips.html", str(tmp_path / "flips.html")))[2:])
    assert "0 of 1 flipped" in (tmp_path / "flips.html").read_text()
    assert "McNemar" in capsys.readouterr().out


def test_readme_score(tmp_path):
    """The command of the page, on one right answer."""
    row = {"question": "1200 + 34?", "generation": "<answer>1,234</answer>", "ground_truth": 1234.0}
    (tmp_path / "answers.jsonl").write_text(json.dumps(row) + "\n")
    (command,) = commands("tools/score.py")
    for name in ("answers.jsonl", "score.json"):
        command = command.replace(name, str(tmp_path / name))
    assert "100.0%" in run_readme(command).stdout
    assert json.loads((tmp_path / "score.json").read_text())["correct"] == 1


def test_dry_run_of_the_8b_recipe(tiny_dir, tmp_path):
    """Everything but the weights: recipe, JSON, columns, template."""
    data = tmp_path / "s1k.jsonl"
    row = {"question": "q", "thinking_trajectories": ["because"], "attempt": "4"}
    data.write_text((json.dumps(row) + "\n") * 40)
    for stage in ("zero2", "zero3"):
        done = run_script(
            "launchers/train.py", "--deepspeed", f"ds_configs/{stage}.json", "--dry-run",
            "--config", "launchers/recipes/llada_8b_lift3_lora.yaml",
            "--model", tiny_dir, "--data", data, "model.from_scratch=true", "data.max_length=2048",
        )  # fmt: skip
        assert "40 rows, 40 checked; columns {'prompt': 'question'" in done.stdout
        assert "rank: 128" in done.stdout
        assert f"ZeRO-{stage[-1]} on 1 rank of 1 node" in done.stdout and "; longest allowed 2,048" in done.stdout
        assert not (REPOSITORY / "runs" / "llada_8b_lift3_lora").exists()


def test_multi_node_files_parse():
    from deepspeed.launcher.runner import fetch_hostfile

    assert fetch_hostfile(str(REPOSITORY / "launchers" / "hostfile.example")) == {f"node{n}": 8 for n in (1, 2, 3, 4)}
    lines = (REPOSITORY / "launchers" / "deepspeed_env.example").read_text().splitlines()
    assert lines and all(re.fullmatch(r"[A-Z_]+=\S+", line) for line in lines)  # which DeepSpeed splits at "="
    for script in ("launchers/train.slurm", ".ci/run"):
        subprocess.run(["bash", "-n", script], cwd=REPOSITORY, check=True)


def slurm_command(folder, **variables):
    """What `launchers/train.slurm` has srun start, told by a stand-in for Slurm's commands."""
    for name, line in {"scontrol": "echo node1", "srun": 'printf "%s " "$@"'}.items():
        (folder / name).write_text(f"#!/bin/sh\n{line}\n")
        (folder / name).chmod(0o755)
    slurm = {"SUBMIT_DIR": str(REPOSITORY), "JOB_NODELIST": "node1", "JOB_ID": "1", "GPUS_PER_NODE": "8"}
    environment = clean_environment(**{f"SLURM_{name}": value for name, value in slurm.items()}, **variables)
    environment["PATH"] = f"{folder}:{environment['PATH']}"
    return run(["bash", "launchers/train.slurm", "optim.steps=7"], env=environment, check=False)


def test_slurm_takes_the_preset_that_its_recipe_names(tmp_path):
    recipe = "launchers/recipes/llada_8b_lift3_lora.yaml"
    started = slurm_command(tmp_path).stdout
    assert f"--deepspeed ds_configs/lora_zero2.json --config {recipe} checkpoint.resume=auto optim.steps=7" in started
    assert f"--deepspeed x.json --config {recipe} " in slurm_command(tmp_path, DS_JSON="x.json").stdout
    other = "launchers/recipes/pretrain_base.yaml"
    assert (
        f"--deepspeed ds_configs/zero2_micro16.json --config {other} " in slurm_command(tmp_path, RECIPE=other).stdout
    )
    (tmp_path / "bare.yaml").write_text("model:\n  path: builtin:base\n")
    failed = slurm_command(tmp_path, RECIPE=str(tmp_path / "bare.yaml"))
    assert failed.returncode != 0
    assert "bare.yaml names no --deepspeed in its comments: set DS_JSON" in failed.stdout


def test_errors_come_before_training_and_all_at_once(tmp_path):
    bad = tmp_path / "zero.json"
    bad.write_text(json.dumps({"zero_optimization": {"stage": 3}, "train_batch_size": 7, "gradient_cliping": 1.0}))
    command = ["launchers/train.py", "--deepspeed", bad, "optim.stepz=3", "optim.lr=fast"]
    done = run_script(*command, check=False)
    assert done.returncode == 2
    assert "Traceback" not in done.stdout
    for part in ("3 problems", "did you mean optim.steps?", "optim.lr='fast'", "did you mean gradient_clipping?"):
        assert part in done.stdout
    bad.write_text(json.dumps({"zero_optimization": {"stage": 3}, "train_batch_size": 7}))
    conflict = run_script(*command[:3], check=False)
    assert conflict.returncode == 2
    assert "train_batch_size=7 but optim.global_batch gives 64" in conflict.stdout
    everything = ["launchers/train.py", "--deepspeed", "ds_configs/zero3.json", "--model", "no/model"]
    everything += ["--data", "a.jsonl", "--data", "b.txt", "data.columns.prompt=q"]
    missing = run_script(*everything, check=False)
    for part in (
        "4 problems",
        "model.path='no/model'",
        "'a.jsonl': no such file",
        "'b.txt': no such file",
        "data.columns",
    ):
        assert part in missing.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "nowhere.jsonl"], "no such file"),
        (["--data", "{tmp}/empty.jsonl"], "empty.jsonl is empty"),
        (["--data", "{tmp}/rows.jsonl", "data.columns.prompt=q"], "do not make a format"),
        (
            ["--data", "{tmp}/rows.jsonl", "data.columns.prompt=q", "data.columns.response=x"],
            "rows.jsonl:1: no column 'x'",
        ),
        (["--data", "{tmp}/long.jsonl", "data.max_length=30"], "long.jsonl:2: the prompt alone has"),
        (["--model", "nobody/nothing"], "fetching it as a hub name failed"),
        (["--deepspeed", "nowhere.json"], "cannot be read"),
        (["--config", "nowhere.yaml"], "cannot be read"),
        (["model.kernels=liger"], "model.kernels=liger: it needs a GPU, not cpu; allowed here: auto, eager."),
    ],
)
def test_bad_input_is_one_clear_error(arguments, message, tiny_dir, tmp_path):
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "rows.jsonl").write_text('{"q": "why", "r": "so"}\n' * 9)
    long = {"prompt": "a " * 99, "response": "b"}
    (tmp_path / "long.jsonl").write_text('{"prompt": "a", "response": "b"}\n' + json.dumps(long) + "\n")
    command = ["--deepspeed", "ds_configs/zero3.json", "--model", tiny_dir]
    command += ["model.from_scratch=true", "eval.rows=0", *(argument.format(tmp=tmp_path) for argument in arguments)]
    done = launch_train(*command, f"output={tmp_path / 'run'}", num_ranks=None, check=False)
    assert done.returncode == 2
    assert message in done.stdout
    assert "Traceback" not in done.stdout
    assert not (tmp_path / "run").exists()


def test_make_below_a_path_with_a_space(tmp_path):
    """It sets up and starts; `deepspeed`, whose first line names its Python, could not be started there."""
    folder = tmp_path / "für alle"
    folder.mkdir()
    for name in ("Makefile", "setup.cfg", "constraints.txt"):
        shutil.copy(REPOSITORY / name, folder)
    (folder / "recorder").write_text(RECORDER)
    (folder / "recorder").chmod(0o755)
    environment = clean_environment()
    environment.pop("MAKEFLAGS", None)  # of the `make test` that runs this, whose variables would hold here too
    run(["make", "train", "PYTHON=./recorder", "ARGS=--dry-run"], cwd=folder, env=environment)
    pip = "pip install --quiet --constraint constraints.txt "
    assert (folder / "calls").read_text().splitlines() == [
        "recorder -m venv .venv",
        f"{pip}torch setuptools wheel",
        f"{pip}--no-build-isolation --editable .[test]",
        "python -m deepspeed.launcher.runner --num_gpus 2 launchers/train.py"
        " --deepspeed ds_configs/zero3.json --dry-run",
    ]


def test_the_upload_command_is_one_that_the_hub_knows(tmp_path):
    """It gets as far as the network: a flag that is not known would end it with status 2 before."""
    (command,) = commands("hf upload")
    words = command.replace("export_folder", str(tmp_path)).split()
    done = run(words, env=clean_environment(HF_HUB_OFFLINE="1", HF_TOKEN="none"), check=False)
    assert done.returncode == 1 and "offline mode is enabled" in done.stdout
