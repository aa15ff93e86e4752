"""What two real ranks do before training: fetching, indexing and checking, each once."""

from collections import Counter

import pytest
from safetensors.torch import save_file

from lift_ds.models.families import read_config
from lift_ds.models.weights import NewWeights
from tests.conftest import SMALL, latest, run_script

# A hub that has both, and a line in a file for each call of what is slow.
COUNTED = """
import os
from pathlib import Path
from lift_ds.cli import train
from lift_ds.data.sources import json_files, listing
from lift_ds.models import weights
from lift_ds.training import inputs

def note(line):
    with Path({log!r}).open("a") as file:
        file.write(f"{{os.environ['RANK']}} {{line}}\\n")

def count(module, name):
    real = getattr(module, name)
    def counted(*given, **named):
        note(name)
        return real(*given, **named)
    setattr(module, name, counted)

def prepare(*given):
    prepared = real(*given)
    data = prepared.data
    order = [[ref.sample_id for ref, _ in data.stream.lanes.peek(lane, 3)] for lane in range(2)]
    held_out = [(document.sample_id, document.ids.tolist()) for document in data.held_out]
    note(f"has {{data.reader.manifest.digest}} {{order}} {{data.reader.columns}} {{held_out}}")
    return prepared

real, train.prepare = train.prepare, prepare
weights.snapshot_download = lambda path, allow_patterns: {model!r}
listing.resolve_hub = lambda text, *_: [text.removeprefix("hub:")]
for module, name in (
    (weights, "snapshot_download"), (listing, "resolve_hub"), (json_files.JsonLines, "scan"),
    (train, "check_first_rows"), (inputs, "check_first_rows"),
):
    count(module, name)
train.main()
"""


def write_rows(path, count=40):
    path.write_text("".join(f'{{"prompt": "why {n}", "response": "so {n}"}}\n' for n in range(count)))


def start(tmp_path, tiny_dir, *settings, num_ranks=2, check=True):
    """Starts a run with a model and rows of the hub; what was printed, and the lines that were noted."""
    for name in ("rows", "apart"):
        write_rows(tmp_path / f"{name}.jsonl")
    model, script, log = tmp_path / "model", tmp_path / "script.py", tmp_path / "log"
    model.mkdir()
    for path in tiny_dir.iterdir():
        (model / path.name).write_bytes(path.read_bytes())
    new = NewWeights(read_config(model), 0)
    save_file({name: new.tensor(name).contiguous() for name in new.shapes()}, model / "model.safetensors")
    script.write_text(COUNTED.format(log=str(log), model=str(model)))
    log.touch()
    arguments = latest(*SMALL, "--model", "of/hub", "--output", tmp_path / "run", "model.from_scratch=false", *settings)
    given = ["--data", f"hub:{tmp_path / 'rows.jsonl'}", f"eval.path=hub:{tmp_path / 'apart.jsonl'}"]
    done = run_script(script, *arguments, *given, num_ranks=num_ranks, check=check)
    return done, log.read_text().splitlines()


@pytest.mark.distributed
def test_it_is_done_once_for_two_ranks(tiny_dir, tmp_path):
    """Rank 0 fetches the config and then the weights, lists and indexes rows and held-out ones, and checks both."""
    done, noted = start(tmp_path, tiny_dir, "optim.steps=1", "eval.solve_items=0", "checkpoint.save_every=0")
    calls = Counter(line for line in noted if " has " not in line)
    assert calls == {f"0 {name}": 2 for name in ("snapshot_download", "resolve_hub", "scan", "check_first_rows")}
    found = dict(line.split(" has ") for line in noted if " has " in line)
    assert set(found) == {"0", "1"}
    assert found["0"] == found["1"]
    assert "40 rows, 40 checked" in done.stdout
    assert done.stdout.count("not used of") <= 1


@pytest.mark.distributed
def test_what_rank_0_finds_in_the_first_rows_is_said_once(tiny_dir, tmp_path):
    """Rank 1 does not look at the rows, and ends with the same error."""
    settings = ["data.columns={prompt: prompt, response: nothing}"]
    done, noted = start(tmp_path, tiny_dir, *settings, check=False)
    assert done.returncode == 2
    assert done.stdout.count("error") == 1
    assert "nothing" in done.stdout
    assert [line for line in noted if line.startswith("1 ")] == []
    assert not (tmp_path / "run").exists()


@pytest.mark.distributed
def test_a_dry_run_needs_nobody(tiny_dir, tmp_path):
    """Two ranks do all of it, each for itself; the weights are not fetched."""
    done, noted = start(tmp_path, tiny_dir, "--dry-run")
    assert done.stdout.count("40 rows, 40 checked") == 1
    times = {"snapshot_download": 1, "resolve_hub": 2, "scan": 2, "check_first_rows": 2}
    calls = Counter(line for line in noted if " has " not in line)
    assert calls == {f"{rank} {name}": count for rank in (0, 1) for name, count in times.items()}
