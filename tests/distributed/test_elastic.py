"""The same documents and noise for every number of real ranks, and for a resume between any two of them."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.conftest import run_script
from tests.distributed.elastic import CUTS, NUM_STEPS, SETTINGS

pytestmark = pytest.mark.distributed


def launch(mode, folder, world):
    run_script("tests/distributed/elastic.py", mode, folder, num_ranks=world, timeout=600)


def check(worlds, tiny_dir, folder):
    """Every pair of worlds, every cut, jsonl and parquet, with and without packing, against the first world's run."""
    shutil.copytree(tiny_dir, folder / "model")
    lengths = np.random.default_rng(0).integers(1, 24, 150)
    rows = [{"prompt": f"q {n}", "response": "word " * int(length)} for n, length in enumerate(lengths)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pq.write_table(pa.Table.from_pylist(rows), folder / "rows.parquet", row_group_size=16)
    for mode in ("save", "continue"):
        for world in worlds:
            launch(mode, folder, world)
    num_compared = 0
    for file, capacity in SETTINGS:
        name = f"{file}-{capacity}"
        expected = json.loads((folder / f"digests-{worlds[0]}-{name}-0.json").read_text())
        assert len(expected) == NUM_STEPS and all(len(documents) >= 12 for documents in expected.values())
        for world in worlds:
            assert json.loads((folder / f"digests-{world}-{name}-0.json").read_text()) == expected
            for before in worlds:
                for cut in CUTS:
                    found = json.loads((folder / f"digests-{world}-{name}-from-{before}-{cut}.json").read_text())
                    assert found == {step: each for step, each in expected.items() if int(step) >= cut}
                    num_compared += 1
    return num_compared


def test_a_sample_of_worlds(tiny_dir, tmp_path):
    assert check([2, 3], tiny_dir, tmp_path) == 4 * 3 * len(SETTINGS)


def test_ranks_that_stop_fail_or_vanish_keep_no_other_waiting(tiny_dir, tmp_path):
    shutil.copytree(tiny_dir, tmp_path / "model")
    rows = [{"prompt": f"q {n}", "response": "word " * (1 + n % 20)} for n in range(150)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run_script("tests/distributed/links.py", tmp_path, num_ranks=2, timeout=300)
    found = [json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in (0, 1)]
    assert found[0]["stop"] == found[1]["stop"] == "closed"
    assert found[0]["error"] == "3 steps"  # the failing step is there, and the ranks agree not to take it
    assert found[1]["error"] == "ValueError: row 7 is bad, after 2 steps"
    assert found[0]["end"] == found[1]["end"] == "5 steps"
    assert found[0]["gone"].startswith("RuntimeError: another rank has left without a word")


@pytest.mark.slow
def test_every_pair_of_worlds(tiny_dir, tmp_path):
    worlds = [1, 2, 3, 4, 5, 7, 8]
    assert check(worlds, tiny_dir, tmp_path) == len(worlds) ** 2 * 3 * len(SETTINGS)
