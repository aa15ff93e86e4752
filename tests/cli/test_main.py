"""`lift-ds VERB`."""

import json
import sys
from configparser import ConfigParser

import pytest

from lift_ds.cli.main import VERBS, main
from lift_ds.cli.tool import warning_line
from tests.conftest import REPOSITORY, free_port, run


@pytest.fixture(autouse=True)
def called_lift_ds(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/lift-ds"])


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]])
def test_verbs_are_listed(words, capsys):
    main(words)
    printed = capsys.readouterr().out
    for verb, (_, purpose) in VERBS.items():
        assert f"\n  {verb} " in printed and purpose in printed


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_each_verb(verb, capsys):
    with pytest.raises(SystemExit) as ended:
        main([verb, "--help"])
    assert ended.value.code == 0
    assert f"usage: {'lm' if verb == 'lm-eval' else f'lift-ds {verb}'}" in capsys.readouterr().out


def test_every_command_is_a_verb():
    """The scripts that are installed one by one, and the tools of the repository that are the package's."""
    setup = ConfigParser()
    setup.read(REPOSITORY / "setup.cfg")
    entries = dict(line.split(" = ") for line in setup["options.entry_points"]["console_scripts"].strip().splitlines())
    assert entries.pop("lift-ds") == "lift_ds.cli.main:main"
    for script, target in entries.items():
        module, _ = VERBS[script.removeprefix("lift-ds-")]
        assert target == f"lift_ds.cli.{module}:main"
    for tool in (REPOSITORY / "tools").glob("*.py"):
        assert tool.stem.startswith("make_") or tool.stem in {module for module, _ in VERBS.values()}


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("trian", "error: lift-ds has no verb 'trian'; did you mean train? `lift-ds --help` lists all\n"),
        ("prepare_data", "error: lift-ds has no verb 'prepare_data'; did you mean prepare-data? "),
        ("xyz", "error: lift-ds has no verb 'xyz'; `lift-ds --help` lists all\n"),
    ],
)
def test_an_unknown_verb(word, message, capsys):
    with pytest.raises(SystemExit) as ended:
        main([word, "--json", "x"])
    assert ended.value.code == 2
    printed = capsys.readouterr()
    assert printed.err.startswith(message) and not printed.out


def test_scoring_starts_without_torch(tmp_path):
    row = {"question": "1200 + 34?", "generation": "<answer>1,234</answer>", "ground_truth": 1234.0}
    (tmp_path / "answers.jsonl").write_text(json.dumps(row) + "\n")
    code = "import sys; from lift_ds.cli.main import main; main(); print('torch' in sys.modules)"
    score = ["score", str(tmp_path / "answers.jsonl"), "--task", "gsm8k", "--scorer", "strict"]
    printed = run([sys.executable, "-c", code, *score]).stdout
    assert "100.0%" in printed and printed.endswith("False\n")


def test_exits_are_the_tools(tmp_path):
    """2 and one line where something is missing; arguments come from the command line."""
    done = run([sys.executable, "-m", "lift_ds.cli.main", "export", str(tmp_path), str(tmp_path / "out")], check=False)
    assert done.returncode == 2
    assert done.stdout.startswith("error: ") and "Traceback" not in done.stdout


@pytest.mark.distributed
@pytest.mark.parametrize(
    "launcher",
    [["torchrun", "--nproc_per_node", "2", "-m"], ["deepspeed", "--num_gpus", "2", "--module"]],
    ids=["torchrun", "deepspeed"],
)
def test_training_starts_under_a_launcher(launcher, tiny_dir, tmp_path):
    command = [launcher[0], "--master_port", str(free_port()), *launcher[1:], "lift_ds.cli.main", "train"]
    command += ["--deepspeed", "ds_configs/zero3.json", "--dry-run", "--model", str(tiny_dir)]
    done = run([*command, "model.from_scratch=true", "eval.rows=0", f"output={tmp_path / 'run'}"])
    assert "2 ranks, ZeRO-3" in done.stdout
    assert not (tmp_path / "run").exists()


def test_a_warning_is_one_line_without_its_place_in_the_code():
    line = warning_line("r1/checkpoints/latest is missing", UserWarning, "manifest.py", 155)
    assert line == "warning: r1/checkpoints/latest is missing\n"
    assert "manifest.py:155: FutureWarning: soon" in warning_line("soon", FutureWarning, "manifest.py", 155)
