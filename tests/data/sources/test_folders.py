"""Folders are read by their own lists of files, or one split of them; what is not read is said once."""

import json
import shutil
import warnings
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict

from lift_ds.data.sources import Manifest, open_sources

CASE = Path(__file__).parents[1] / "cases" / "arrow_cache_indices"


def rows_of(name, count=3):
    return [{"prompt": f"{name} {number}", "response": "r"} for number in range(count)]


def write(folder, names):
    """Files of rows that say which file they are of; README.md and lists are given by their text."""
    for name, text in names.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if text is not None:
            path.write_text(text)
        elif name.endswith(".parquet"):
            pq.write_table(pa.Table.from_pylist(rows_of(name)), path)
        else:
            path.write_text("".join(json.dumps(row) + "\n" for row in rows_of(name)))
    return folder


@pytest.fixture(params=["local", "memory"])
def folder_at(request, tmp_path):
    """Puts a folder where it is read from: this machine, or a remote file system."""
    filesystem = fsspec.filesystem("memory")

    def place(folder):
        if request.param == "local":
            return str(folder)
        for path in folder.rglob("*"):
            if path.is_file():
                filesystem.pipe_file(f"/bucket/{path.relative_to(folder)}", path.read_bytes())
        return "memory://bucket"

    yield place
    if filesystem.exists("/bucket"):
        filesystem.rm("/bucket", recursive=True)


def read(path, split="train"):
    """Files that rows came from, in order, and the warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        manifest = Manifest(open_sources([str(path)], 0, split, 1))
    rows = [row for chunk in range(len(manifest.chunks)) for row in manifest.read(chunk)]
    return [row.values for row in rows], [str(warning.message) for warning in caught]


def files_read(path, split="train"):
    rows, said = read(path, split)
    return list(dict.fromkeys(row["prompt"].rpartition(" ")[0] for row in rows)), said


def card(*configs):
    return f"---\nlicense: mit\nconfigs:\n{''.join(configs)}---\n# A data set\n"


CONFIG = """- config_name: {name}
  data_files:
  - split: train
    path: {train}
  - split: test
    path: {test}
"""
PLAIN = CONFIG.format(name="default", train="data/train-*", test="[rest/a.jsonl, rest/b.jsonl]")


def test_the_case(folder_at):
    """The caches of map and shuffle lie beside the rows: 60 rows are read, not more."""
    rows, [said] = read(folder_at(CASE))
    assert len(rows) == 60
    assert "cache-1111802b78a30b76.arrow" in said
    assert "data-00000" not in said


def test_caches_of_globs_and_of_folders_without_a_list(tmp_path):
    folder = shutil.copytree(CASE, tmp_path / "saved")
    (folder / "state.json").unlink()
    for path in (folder, f"{folder}/*.arrow"):
        rows, [said] = read(path)
        assert len(rows) == 60
        assert "cache-1111802b78a30b76.arrow" in said
    rows, said = read(folder / "cache-1111802b78a30b76.arrow")
    assert set(rows[0]) == {"indices"}
    assert said == []


def test_what_datasets_leaves_itself(tmp_path):
    Dataset.from_list(rows_of("saved", 20)).save_to_disk(tmp_path / "saved")
    loaded = Dataset.load_from_disk(tmp_path / "saved")
    loaded.map(lambda row: {"response": row["prompt"]}).filter(lambda row: True).shuffle(seed=1)
    assert len(list((tmp_path / "saved").glob("cache-*.arrow"))) == 3
    rows, [said] = read(tmp_path / "saved")
    assert rows == rows_of("saved", 20)
    assert said.count("cache-") == 3


def test_splits_of_a_saved_dict(tmp_path, folder_at):
    parts = {name: Dataset.from_list(rows_of(name)) for name in ("train", "test", "rest")}
    DatasetDict(parts).save_to_disk(tmp_path / "saved")
    place = folder_at(tmp_path / "saved")
    assert files_read(place)[0] == ["train"]
    assert files_read(place, "test")[0] == ["test"]
    assert files_read(f"{place}/rest")[0] == ["rest"]
    [said] = files_read(place)[1]
    assert "read is the split 'train'" in said
    assert "rest/data-00000-of-00001.arrow, test/data-00000-of-00001.arrow" in said


def test_a_saved_dict_without_the_wanted_split(tmp_path):
    DatasetDict({name: Dataset.from_list(rows_of(name)) for name in ("one", "two")}).save_to_disk(tmp_path)
    with pytest.raises(ValueError, match="no split 'train'; there are: one, two. Name the files of one"):
        read(tmp_path)
    shutil.rmtree(tmp_path / "two")
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["two"]}')
    with pytest.raises(ValueError, match="two: no state.json, though dataset_dict.json names it"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"_data_files": [{"filename": "gone.arrow"}]}, "gone.arrow missing, but listed in state.json"),
        (
            {"_data_files": [{"filename": "a.jsonl"}], "_indices_data_files": [{"filename": "indices.arrow"}]},
            "chosen by an indices file of an old version of `datasets`.*flatten_indices",
        ),
    ],
)
def test_lists_that_cannot_be_followed(tmp_path, folder_at, state, message):
    place = folder_at(write(tmp_path / "saved", {"a.jsonl": None, "state.json": json.dumps(state)}))
    with pytest.raises(ValueError, match=message):
        read(place)
    (tmp_path / "saved" / "state.json").write_text("{")
    with pytest.raises(ValueError, match=r"state.json: not JSON"):
        read(folder_at(tmp_path / "saved"))


def test_lists_in_folders_below(tmp_path):
    shutil.copytree(CASE, tmp_path / "one")
    write(tmp_path, {"two/source-00-00000.jsonl": None, "two/old.jsonl": None, "three/state.json": "{}"})
    (tmp_path / "two" / "prepared.json").write_text('{"shards": [{"name": "source-00-00000.jsonl"}]}')
    rows, [said] = read(tmp_path)
    assert len(rows) == 60 + 3
    assert "one/cache-1111802b78a30b76.arrow, two/old.jsonl" in said


HUB = {"data/train-00000-of-00002.parquet": None, "data/train-00001-of-00002.parquet": None}
TRAINING = list(HUB)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ([*HUB, "data/test-00000-of-00001.parquet"], TRAINING),
        ([*HUB, "data/train_extra-00000-of-00001.parquet"], TRAINING),
        (["train-00000-of-00001.parquet", "test-00000-of-00001.parquet"], ["train-00000-of-00001.parquet"]),
        (["train/a.jsonl", "train/b.jsonl", "test/a.jsonl"], ["train/a.jsonl", "train/b.jsonl"]),
        (["train.jsonl", "dev.jsonl", "notes.jsonl"], ["train.jsonl"]),
        (["my_training.jsonl", "my-eval 1.jsonl"], ["my_training.jsonl"]),
        (["test.jsonl"], ["test.jsonl"]),
        (["a.jsonl", "trainer.jsonl", "testimony.jsonl"], ["a.jsonl", "testimony.jsonl", "trainer.jsonl"]),
        (["part-00000-of-00002.parquet", "part-00001-of-00002.parquet"], "all"),
        (["data/part-00000-of-00002.parquet", "data/part-00001-of-00002.parquet"], "all"),
        (["in/a.jsonl", "b.jsonl", ".hidden.jsonl", ".cache/c.jsonl"], ["b.jsonl", "in/a.jsonl"]),
    ],
)
def test_names_tell_splits(tmp_path, folder_at, names, expected):
    place = folder_at(write(tmp_path / "set", dict.fromkeys(names)))
    expected = sorted(names) if expected == "all" else expected
    found, said = files_read(place)
    assert found == expected
    left = [name for name in names if name not in expected and not name.startswith(".")]
    assert len(said) == bool(left)
    assert all(name in said[0] for name in left)


def test_held_out_rows_are_of_the_test_split(tmp_path):
    write(tmp_path, {"train.jsonl": None, "test.jsonl": None})
    assert files_read(tmp_path, "test")[0] == ["test.jsonl"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["dev.jsonl", "test.jsonl"],
            "no split 'train'; there are: validation, test. Name the files of one",
        ),
        (["rows.jsonl", "test.jsonl"], "test.jsonl: named as test; rows.jsonl: named as no split. Name the files"),
    ],
)
def test_splits_are_not_mixed(tmp_path, folder_at, names, message):
    with pytest.raises(ValueError, match=message):
        read(folder_at(write(tmp_path / "set", dict.fromkeys(names))))


FILES = {"data/train-a.jsonl": None, "data/train-b.jsonl": None, "rest/a.jsonl": None, "rest/b.jsonl": None}


@pytest.mark.parametrize(
    ("configs", "split", "expected"),
    [
        ([PLAIN], "train", ["data/train-a.jsonl", "data/train-b.jsonl"]),
        ([PLAIN], "test", ["rest/a.jsonl", "rest/b.jsonl"]),
        ([PLAIN, CONFIG.format(name="other", train="x", test="y")], "test", ["rest/a.jsonl", "rest/b.jsonl"]),
        (["- config_name: only\n  data_files: rest/*.jsonl\n"], "train", ["rest/a.jsonl", "rest/b.jsonl"]),
        (["- config_name: only\n  data_files: ['rest/b.jsonl', '**/train-a.*']\n"], "train",
         ["rest/b.jsonl", "data/train-a.jsonl"]),
        (["- config_name: only\n  data_dir: rest\n"], "train", ["rest/a.jsonl", "rest/b.jsonl"]),
        (["- config_name: only\n"], "train", ["data/train-a.jsonl", "data/train-b.jsonl"]),
        ([CONFIG.format(name="a", train="rest/a.jsonl", test="gone"), "  default: true\n",
          CONFIG.format(name="b", train="rest/b.jsonl", test="y")], "train", ["rest/a.jsonl"]),
    ],
)  # fmt: skip
def test_cards(tmp_path, folder_at, configs, split, expected):
    place = folder_at(write(tmp_path / "set", {**FILES, "README.md": card(*configs)}))
    found, [said] = files_read(place, split)
    assert found == expected
    assert all(name in said for name in FILES if name not in expected)


@pytest.mark.parametrize("split", ["train", "test"])
def test_cards_are_read_as_datasets_reads_them(tmp_path, split):
    folder = write(tmp_path / "set", {**FILES, "README.md": card(PLAIN)})
    assert sorted(files_read(folder, split)[0]) == sorted(files_read(f"hub:{folder}@{split}")[0])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (card(CONFIG.format(name="a", train="x", test="y"), CONFIG.format(name="b", train="x", test="y")),
         "README.md: cannot be followed: several configs: a, b; name one, as hub:FOLDER:a"),
        (card(CONFIG.format(name="a", train="gone-*", test="rest/*")), "no data file 'gone-.', though README.md lists"),
        (card("- data_files: rest/*\n"), "README.md: cannot be followed: KeyError.'config_name'"),
        (card("- [\n"), "README.md: cannot be followed: "),
        (card(PLAIN).replace("split: train", "split: other"), "no split 'train'; there are: other, test"),
    ],
)  # fmt: skip
def test_cards_that_cannot_be_followed(tmp_path, folder_at, text, message):
    place = folder_at(write(tmp_path / "set", {**FILES, "README.md": text}))
    with pytest.raises(ValueError, match=message):
        read(place)


@pytest.mark.parametrize("text", ["# Rows of mine\n", "---\nconfigs\n---\n", "---\nlicense: [\n---\n", "---\n\n---\n"])
def test_a_readme_that_is_no_card(tmp_path, text):
    write(tmp_path, {"a.jsonl": None, "README.md": text})
    assert files_read(tmp_path) == (["a.jsonl"], [])


def test_links_to_folders_are_followed(tmp_path):
    write(tmp_path, {"elsewhere/b.jsonl": None, "set/a.jsonl": None})
    (tmp_path / "set" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set" / "round").symlink_to(tmp_path / "set")
    assert files_read(tmp_path / "set") == (["set/a.jsonl", "elsewhere/b.jsonl"], [])
