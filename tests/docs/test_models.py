"""docs/models.md: its example runs, and its table names every family."""

import re

from lift_ds.models.families import FAMILIES
from tests.conftest import REPOSITORY, VECTORS

PAGE = (REPOSITORY / "docs" / "models.md").read_text(encoding="utf-8")
IN_TABLE = {
    "llada": "LLaDA-8B", "llada-llama": "under Llama's names", "Dream": "Dream,", "a2d-llama": "Adapted Llama",
    "a2d-qwen2": "Qwen2", "a2d-qwen3": "Qwen3 (A2D)", "llada-moe": "LLaDA-MoE", "sdar": "SDAR",
    "llada2_moe": "LLaDA2.0",
}  # fmt: skip


def test_the_example():
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    names = {"FOLDER": str(VECTORS / "sdar_tiny")}
    exec(code, names)
    assert names["loss"].item() > 0
    assert len(names["ids"]) == 28 and 1 <= len(names["answer"]) <= 16  # 26 tokens in blocks of 4
    assert names["ids"][:10].equal(names["clean_ids"][0, :10])


def test_the_table_names_every_family():
    table = PAGE.split("\n\n")[1]
    assert IN_TABLE.keys() == FAMILIES.keys()
    assert all(words in table for words in IN_TABLE.values())
