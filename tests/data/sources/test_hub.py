"""Hub data sets; local folders stand for repositories, as `datasets` allows."""

import json

import datasets
import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lift_ds.data.sources import FILE_KINDS, Manifest, Retry, open_sources
from lift_ds.data.sources.hub import HubName, parse_hub_name, resolve_hub

FAST = Retry(tries=5, delay_seconds=0.001)
ROWS = [{"prompt": f"question {number}", "response": f"answer {number}"} for number in range(2500)]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache"


def read_all(path):
    manifest = Manifest(open_sources([path], 0, "train", 10, FAST))
    return [row.values for chunk in range(len(manifest.chunks)) for row in manifest.read(chunk)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hub:owner/name", HubName("owner/name", None, "train")),
        ("hub:owner/name:main", HubName("owner/name", "main", "train")),
        ("hub:owner/name@test", HubName("owner/name", None, "test")),
        ("hub:owner/name:main@test", HubName("owner/name", "main", "test")),
    ],
)
def test_names(text, expected):
    assert parse_hub_name(text) == expected


@pytest.mark.parametrize("text", ["hub:", "hub::main", "hub:a/b:", "hub:a/b@", "hub:@test"])
def test_malformed_names(text):
    with pytest.raises(ValueError, match=r"must be hub:owner/name\[:config\]\[@split\]"):
        parse_hub_name(text)


def test_parquet_is_read_by_our_own_reader(tmp_path):
    repository = tmp_path / "repository"
    (repository / "data").mkdir(parents=True)
    for split, rows in (("train-0", ROWS[:2000]), ("train-1", ROWS[2000:]), ("test-0", ROWS[:5])):
        pq.write_table(pa.Table.from_pylist(rows), repository / "data" / f"{split}.parquet", row_group_size=500)
    manifest = Manifest(open_sources([f"hub:{repository}"], 0, "train", 10, FAST))
    assert [chunk.num_rows for chunk in manifest.chunks] == [500] * 5
    assert read_all(f"hub:{repository}") == ROWS
    assert read_all(f"hub:{repository}@test") == ROWS[:5]
    with pytest.raises(ValueError, match=r"no split 'dev'; there are: (train, test|test, train)"):
        read_all(f"hub:{repository}@dev")
    with pytest.raises(ValueError, match=r"zzz.*Check the name, the config"):
        read_all(f"hub:{repository}:zzz")


def test_configs(tmp_path):
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n"
        "- config_name: easy\n  data_files: easy.jsonl\n"
        "- config_name: hard\n  data_files: hard.jsonl\n---\n"
    )
    for name, rows in (("easy", ROWS[:3]), ("hard", ROWS[3:7])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_all(f"hub:{tmp_path}:hard@train") == ROWS[3:7]
    with pytest.raises(ValueError, match="easy"):
        read_all(f"hub:{tmp_path}")


@pytest.mark.parametrize("is_list", [True, False])
def test_json_files_hold_lists_or_lines(tmp_path, is_list):
    lines = "".join(json.dumps(row) + "\n" for row in ROWS[:700])
    (tmp_path / "train.json").write_text(json.dumps(ROWS[:700]) if is_list else lines)
    assert read_all(f"hub:{tmp_path}") == ROWS[:700]


def test_other_formats_are_streamed_once(tmp_path, cache, caplog):
    repository = tmp_path / "repository"
    repository.mkdir()
    text = "prompt,response\n" + "".join(f"{row['prompt']},{row['response']}\n" for row in ROWS)
    (repository / "train.csv").write_text(text)
    assert read_all(f"hub:{repository}") == ROWS
    assert read_all(f"hub:{repository}") == ROWS
    assert [record.getMessage().count("it is streamed once into") for record in caplog.records] == [1]
    (folder,) = [path for path in (cache / "lift_ds").iterdir() if path.is_dir()]
    (shard,) = folder.glob("*.parquet")
    assert pq.read_metadata(shard).num_row_groups == 3
    (repository / "train.csv").write_text(text + "new,row\n")
    assert read_all(f"hub:{repository}")[-1] == {"prompt": "new", "response": "row"}


def test_options_that_reshape_rows_are_left_to_datasets(tmp_path):
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files: train.json\n  field: data\n---\n"
    )
    (tmp_path / "train.json").write_text(json.dumps({"data": ROWS[:5]}))
    assert read_all(f"hub:{tmp_path}") == ROWS[:5]


def test_large_sets_make_several_shards(tmp_path, monkeypatch):
    monkeypatch.setattr("lift_ds.data.sources.hub.SHARD_ROWS", 2000)
    (tmp_path / "train.csv").write_text("n\n" + "".join(f"{number}\n" for number in range(4500)))
    files = resolve_hub(f"hub:{tmp_path}", FAST, set(FILE_KINDS), tmp_path / "streamed")
    assert [pq.read_metadata(file).num_rows for file in files] == [2000, 2000, 500]
    assert [row["n"] for file in files for row in pq.read_table(file).to_pylist()] == list(range(4500))


def test_a_set_that_datasets_cannot_read_leaves_nothing_behind(tmp_path, cache):
    repository = tmp_path / "repository"
    repository.mkdir()
    (repository / "train.csv").write_text("a,b\n1,2\n3,4,5,6\n")
    for _ in range(2):
        with pytest.raises(ValueError, match="cannot be read as a hub data set"):
            read_all(f"hub:{repository}")
    assert not [path for path in (cache / "lift_ds").iterdir() if path.is_dir()]


def test_no_such_folder(tmp_path):
    with pytest.raises(ValueError, match="Check the name, the config and your access"):
        read_all(f"hub:{tmp_path / 'nothing'}")


def test_a_hub_that_does_not_answer(monkeypatch, caplog):
    """As with HF_HUB_OFFLINE=1, which is read when the libraries are imported."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConnectionError, match="hub:owner/name: no answer after 2 tries.*name a copy on a local disk"):
        read_all("hub:owner/name")
    assert [record.getMessage().count("try 2 of 2") for record in caplog.records if record.name.startswith("lift")] == [
        1
    ]
