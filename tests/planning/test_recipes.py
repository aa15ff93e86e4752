"""Recipes for large models: each plans to what it says, with the JSON that its first comment names, and is checked."""

import json
import re

import pytest

from lift_ds.config.loading import load_run_config
from tests.conftest import REPOSITORY, run_script
from tests.models.block_vectors import write_folder

FOLDER = REPOSITORY / "launchers" / "recipes"
STATED = re.compile(r"# tools/plan\.py: (\d+) (?:to (\d+) )?GiB a GPU")
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml") if STATED.search(path.read_text()))


SIZES = {"llada_8b": "8b", "dream_7b": "dream-7b", "sdar_8b": "sdar-8b", "llada2_mini": "llada2-mini"}
IN_BLOCKS = {"sdar_8b": "sdar_tiny", "llada2_mini": "llada2_tiny"}


def engine_json(text):
    return re.search(r"--deepspeed (\S+)", text)[1]


def test_all_large_models_state_their_memory():
    assert {name.partition("_lift3")[0] for name in NAMES} == set(SIZES) and len(NAMES) == 6


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_fits_as_it_says(name, tmp_path):
    text, figures = (FOLDER / f"{name}.yaml").read_text(), tmp_path / "plan.json"
    run, problems = load_run_config(FOLDER / f"{name}.yaml", [])
    assert not problems
    run_script(
        "tools/plan.py", "--model", SIZES[name.partition("_lift3")[0]], "--nodes", str(run.runtime.nodes or 1),
        "--ds", engine_json(text), "--config", FOLDER / f"{name}.yaml", "--json", figures,
    )  # fmt: skip
    low, high = (int(each) for each in (STATED.search(text)[1], STATED.search(text)[2] or STATED.search(text)[1]))
    found = json.loads(figures.read_text())
    assert found["fits"] and low <= round(found["peak_GiB"]) <= high


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_dry_runs(name, tiny_dir, tmp_path):
    """Everything but the weights and the machines."""
    folder, small = tiny_dir, IN_BLOCKS.get(name.partition("_lift3")[0])
    if small is not None:
        folder = write_folder(small, tiny_dir, tmp_path / "model", max_position_embeddings=2048)
    text, rows = (FOLDER / f"{name}.yaml").read_text(), tmp_path / "rows.jsonl"
    row = {"question": "q", "thinking_trajectories": ["because"], "attempt": "4"}
    rows.write_text((json.dumps(row if "question" in text else {"prompt": "q", "response": "4"}) + "\n") * 80)
    done = run_script(
        "launchers/train.py", "--deepspeed", engine_json(text), "--dry-run", "--config", FOLDER / f"{name}.yaml",
        "--model", folder, "--data", rows, "model.from_scratch=true", "data.max_length=2048",
    )  # fmt: skip
    assert "80 rows, 80 checked" in done.stdout and "; longest allowed 2,048" in done.stdout
    assert f"nodes: {load_run_config(FOLDER / f'{name}.yaml', [])[0].runtime.nodes or 'null'}" in done.stdout
