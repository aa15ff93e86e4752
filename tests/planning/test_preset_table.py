"""The table of presets in docs/cluster.md is what `tools/plan.py` says."""

import json
import re

import pytest

from tests.conftest import REPOSITORY, run_script

ROW = re.compile(r"\| .* \| `(\w+\.json)` \| (?:(\d+) x )?8 \| ([\d.]+) \| (\d+) \|")
FULL = ["model.gradient_checkpointing=true"]
LORA = ["--config", "launchers/recipes/llada_8b_lift3_lora.yaml"]


def rows():
    text = (REPOSITORY / "docs" / "cluster.md").read_text()
    return [match.groups() for match in ROW.finditer(text)]


def test_every_preset_for_gpus_is_in_the_table():
    of_cpus = {"debug_cpu.json", "zero2_micro16.json"}
    assert {name for name, *_ in rows()} | of_cpus == {path.name for path in (REPOSITORY / "ds_configs").iterdir()}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "nodes", "gib", "host"), rows(), ids=lambda value: str(value))
def test_a_row(name, nodes, gib, host, tmp_path):
    figures = tmp_path / "plan.json"
    options = LORA if name.startswith("lora_") else FULL
    printed = run_script(
        "tools/plan.py", "--model", "8b", "--nodes", nodes or "1", "--ds", f"ds_configs/{name}", "--json", figures,
        *options, "optim.global_batch=64",
    ).stdout  # fmt: skip
    found = json.loads(figures.read_text())
    assert (f"{found['peak_GiB']:.1f}", f"{found['host_GiB_a_node']:.0f}") == (gib, host)
    assert f" receives {found['wire_GiB_a_step']:.1f} GiB a step, {found['wire_seconds']:.2f} s" in printed
