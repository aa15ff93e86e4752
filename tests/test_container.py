"""The container file, read: nothing here can build it."""

import re

from tests.conftest import REPOSITORY

TEXT = (REPOSITORY / "launchers" / "Containerfile").read_text()


def instructions():
    """(instruction, arguments) with continued lines joined and comments left out."""
    lines = [line for line in TEXT.splitlines() if line.strip() and not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ").splitlines()
    return [tuple(line.split(maxsplit=1)) for line in joined]


def arguments_of(name):
    return [arguments for instruction, arguments in instructions() if instruction == name]


def test_its_base_is_pinned_and_its_cuda_is_the_one_that_is_checked():
    (base,) = arguments_of("FROM")
    major = re.fullmatch(r"nvidia/cuda:(\d+)\.\d+\.\d+-devel-\w+\.\w+", base)[1]
    assert f"split('.')[0] == '{major}'" in TEXT


def test_packages_come_through_the_constraints_and_leave_no_caches():
    runs = arguments_of("RUN")
    installs = [part for run in runs for part in run.split("&&") if "pip install" in part]
    assert len(installs) == 2
    assert all("--no-cache-dir" in each and "--constraint constraints.txt" in each for each in installs)
    assert all("rm -rf /var/lib/apt/lists" in run for run in runs if "apt-get update" in run)
    assert "torch==" in (REPOSITORY / "constraints.txt").read_text()


def test_what_it_copies_is_there_and_nothing_is_fetched_otherwise():
    copied = [path for arguments in arguments_of("COPY") for path in arguments.split()[:-1]]
    assert not [path for path in copied if not (REPOSITORY / path).exists()]
    setup = (REPOSITORY / "setup.cfg").read_text()
    assert {"setup.cfg", "pyproject.toml", "constraints.txt", "lift_ds"} <= set(copied)
    for name in re.findall(r"^(?:long_description = file: |license_files = )(\S+)", setup, re.MULTILINE):
        assert name in copied
    assert not arguments_of("ADD") and "curl" not in TEXT and "wget" not in TEXT


def test_it_runs_without_root_and_holds_no_key():
    names = [name for name, _ in instructions()]
    assert arguments_of("USER") == ["trainer"] and names.index("USER") > max(
        place for place, name in enumerate(names) if name in ("RUN", "COPY")
    )
    assert "ssh-keygen" not in TEXT.split("FROM ")[1]


def test_its_commands_stand_in_the_docs():
    page = (REPOSITORY / "docs" / "cluster.md").read_text()
    for line in re.findall(r"^#     (docker .*)$", TEXT, re.MULTILINE):
        assert line in page
