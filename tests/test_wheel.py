"""What a user installs: what the wheel holds and needs, and the default command from it."""

import ast
import re
import sys
import sysconfig
import venv
import zipfile

import pytest

from tests.conftest import REPOSITORY, clean_environment, read_steps, run
from tests.extras import copy_tracked


@pytest.fixture(scope="module")
def wheel_path(tmp_path_factory):
    """A wheel of the tracked files, built as `pip install .` builds it."""
    source, output = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    copy_tracked(source)
    run([sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(output), str(source)])
    return next(output.glob("*.whl"))


@pytest.fixture(scope="module")
def wheel(wheel_path):
    return zipfile.ZipFile(wheel_path)


def test_the_wheel_has_everything(wheel):
    names = set(wheel.namelist())
    for path in (REPOSITORY / "lift_ds").rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            assert str(path.relative_to(REPOSITORY)) in names
    shared = {name.split("/share/lift_ds/")[1] for name in names if "/share/lift_ds/" in name}
    assert {"ds_configs/zero3.json", "ds_configs/zero2.json", "recipes/llada_8b_lift3_lora.yaml"} <= shared
    assert not any(name.startswith(("tests/", "benchmarks/")) for name in names)
    entry_points = next(name for name in names if name.endswith("entry_points.txt"))
    assert "lift-ds = lift_ds.cli.main:main" in wheel.read(entry_points).decode()
    assert "lift-ds-train = lift_ds.cli.train:main" in wheel.read(entry_points).decode()


def test_dependencies_are_declared(wheel):
    metadata = wheel.read(next(name for name in wheel.namelist() if name.endswith("METADATA"))).decode()
    required = set(re.findall(r"^Requires-Dist: ([A-Za-z0-9_.-]+)", metadata, re.MULTILINE))
    imported = set()
    for path in (REPOSITORY / "lift_ds").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                imported.add(node.module.split(".")[0])
    names = {
        "yaml": "pyyaml",
        "lift_ds": None,
        "pydantic_core": "pydantic",
        "math_verify": "math-verify",
        "lm_eval": "lm-eval",
        "liger_kernel": "liger-kernel",
        "wandb": None,  # where DeepSpeed's JSON switches its monitor on, which imports it first
    }
    outside = {names.get(name, name) for name in imported - set(sys.stdlib_module_names)} - {None}
    assert {name.lower() for name in outside} <= {name.lower() for name in required}
    assert {"datasets", "sentencepiece", "mpi4py", "rich"} <= required


def test_the_wheel_runs_the_default_command(wheel_path, tmp_path):
    """In a new environment that has the dependencies and not this checkout, in a folder that has neither."""
    environment = tmp_path / "environment"
    venv.create(environment, with_pip=False)
    packages = next((environment / "lib").iterdir()) / "site-packages"
    # The packages beside these tests, without what they themselves add to the path (this checkout, editable).
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    python = environment / "bin" / "python"
    variables = clean_environment(PATH=f"{environment / 'bin'}:/usr/bin:/bin", PYTHONPATH="")
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index"]
    run([*install, str(wheel_path)], env=variables)
    found = run([python, "-c", "import lift_ds; print(lift_ds.__file__)"], env=variables, cwd=tmp_path).stdout.strip()
    assert found == str(packages / "lift_ds" / "__init__.py")

    engine = environment / "share" / "lift_ds" / "ds_configs" / "zero3.json"
    small = ["optim.steps=2", "optim.global_batch=8", "data.builtin_rows=600", "eval.rows=4", "eval.solve_items=3"]
    run(["lift-ds", "train", "--deepspeed", str(engine), *small], env=variables, cwd=tmp_path)
    assert [step["step"] for step in read_steps(tmp_path / "runs" / "001")] == [1, 2]
    assert (tmp_path / "runs" / "001" / "export" / "model.safetensors").is_file()
