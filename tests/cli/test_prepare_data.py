"""The look at a data set before a run: counts by arithmetic, located problems, and tokens that train the same."""

import io
import json
import shutil
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from transformers import AutoTokenizer

from lift_ds.cli.prepare_data import is_override, main
from lift_ds.config.loading import load_run_config
from lift_ds.data.order.dealing import BatchRule
from lift_ds.data.survey.display import show_row
from lift_ds.data.survey.statistics import describe_lengths, find_duplicates, ids_for_share, padding_waste
from lift_ds.data.text.chat import Tokens
from lift_ds.models.families import read_config
from lift_ds.training.inputs import open_data
from tests.conftest import run


def write_jsonl(path, rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def chat(number):
    return {"prompt": f"What is {number} + 1?", "response": "one more, " * (number % 7) + f"{number + 1}."}


def call(*arguments):
    """The exit code of the tool."""
    try:
        main([str(each) for each in arguments])
    except SystemExit as stopped:
        return stopped.code
    return 0


def open_run(path, model, folder, *overrides):
    keys = [f"data.path={path}", f"output={folder}", "eval.rows=0", *overrides]
    config, problems = load_run_config(None, keys)
    assert not problems
    return open_data(config, AutoTokenizer.from_pretrained(model), read_config(model))


def documents_of(data):
    return list(data.reader.by_sample_id(range(data.num_rows)))


@pytest.fixture
def mixed(tmp_path):
    """Ten lines: 1 to 6 are good (4 and 6 as 1), 7 is no JSON, 8 has no response, 9 is long, 10 is good."""
    rows = [chat(1), chat(2), chat(3), chat(1), chat(5), chat(1), "nonsense", {"prompt": "q"}]
    rows += [{"prompt": "q", "response": "word " * 300}, chat(6)]
    return write_jsonl(tmp_path / "rows.jsonl", rows)


def test_what_a_run_would_refuse_is_no_success(tiny_dir, tmp_path, capsys):
    """Training needs one of the first rows, whatever share of them may be skipped."""
    path = write_jsonl(tmp_path / "rows.jsonl", ["nonsense", chat(1), chat(2)])
    flags = [path, "--model", tiny_dir, "data.on_bad_row=skip", "data.max_skipped=1"]
    assert call(*flags, "data.check_rows=1") == 1
    assert "100.0% of the first rows would be skipped, and a run needs one that can be used" in capsys.readouterr().out
    assert call(*flags, "data.check_rows=2") == 0


def test_counts_locations_and_exit_codes(mixed, tiny_dir, tmp_path, capsys):
    report_path = tmp_path / "report.json"
    flags = [mixed, "--model", tiny_dir, "data.max_length=128", "--json", report_path]
    assert call(*flags) == 1  # both reasons stop a run
    assert call(*flags, "data.on_bad_row=skip") == 1
    assert call(*flags, "data.on_long=skip") == 1
    capsys.readouterr()
    skips = ["data.on_bad_row=skip", "data.on_long=skip"]
    assert call(*flags, *skips) == 1
    assert "30.0% of the first rows would be skipped, more than data.max_skipped=0.05" in capsys.readouterr().out
    assert call(*flags, *skips, "data.max_skipped=0.3") == 0
    printed = capsys.readouterr().out
    assert f"{mixed}:7: not JSON" in printed
    assert f"{mixed}:8: no column 'response'" in printed
    assert "rows: 10: 7 good, 2 bad, 1 too long" in printed
    assert f"{mixed}:1, {mixed}:4, {mixed}:6" in printed
    report = json.loads(report_path.read_text())
    assert [(each["where"], each["kind"]) for each in report["problems"]] == [
        (f"{mixed}:7", "bad"),
        (f"{mixed}:8", "bad"),
        (f"{mixed}:9", "long"),
    ]
    assert report["duplicates"] == {
        "groups": 1,
        "surplus_rows": 2,
        "locations": [[f"{mixed}:{line}" for line in (1, 4, 6)]],
    }


def test_the_numbers_are_those_of_the_documents_of_a_run(tiny_dir, tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", [chat(number) for number in range(60)])
    report_path = tmp_path / "report.json"
    flags = ["--micro-batch", 2, "optim.global_batch=4", "data.max_length=128", "--json", report_path]
    assert call(path, "--model", tiny_dir, *flags) == 0
    report = json.loads(report_path.read_text())
    documents = documents_of(open_run(path, tiny_dir, tmp_path / "run"))
    lengths = [len(each.ids) for each in documents]
    targets = [int(each.response_mask.sum()) for each in documents]
    assert report["lengths"]["row"]["min"] == min(lengths)
    assert report["lengths"]["target"]["max"] == max(targets)
    assert report["lengths"]["prompt"]["mean"] == pytest.approx((sum(lengths) - sum(targets)) / 60)
    assert report["tokens"] == {
        "all": sum(lengths),
        "targets": sum(targets),
        "target_share": pytest.approx(sum(targets) / sum(lengths)),
    }
    assert report["coverage"]["used"] == len({int(token) for each in documents for token in each.ids})
    assert report["coverage"]["used_in_targets"] == len(
        {int(token) for each in documents for token in each.ids[each.response_mask]}
    )
    padded = 0
    for start in range(0, 60, 4):
        step = sorted(lengths[start : start + 4], reverse=True)
        padded += 2 * step[0] + 2 * step[2]
    assert report["padding"]["waste"] == pytest.approx(1 - sum(lengths) / padded)
    packing = report["packing"]
    assert packing["pack_length"] == 128
    assert packing["fill"] == pytest.approx(sum(lengths) / (128 * packing["packs"]))
    assert sum(lengths) / 128 <= packing["packs"] < 60


def test_statistics_by_hand():
    """1 2 3 8 9 16 17 tokens; ids 6, 3 and 1 times; steps of 4 rows in forwards of 2."""
    lengths = np.array([1, 2, 3, 8, 9, 16, 17])
    found = describe_lengths(lengths)
    assert found["histogram"] == {"0": 1, "1": 2, "3": 2, "4": 2}
    assert found["percentiles"] == {"5": 1, "25": 2, "50": 8, "75": 16, "95": 17, "99": 17}
    assert found["mean"] == 8
    assert describe_lengths(lengths[:0]) == {}
    counts = np.array([3, 0, 6, 1])
    assert [ids_for_share(counts, share) for share in (0.5, 0.6, 0.9, 0.99)] == [1, 1, 2, 3]
    assert ids_for_share(np.zeros(4, dtype=int), 0.9) == 0
    padded = 2 * 8 + 2 * 2 + 2 * 17 + 1 * 9  # steps 8 3 | 2 1 and 17 16 | 9
    assert padding_waste(lengths, 4, BatchRule(2)) == pytest.approx(1 - 56 / padded)
    hashes = np.array([4, 9, 4, 7, 9, 4], dtype=np.uint64)
    groups = find_duplicates(hashes, np.arange(10, 16))
    assert [each.tolist() for each in groups] == [[10, 12, 15], [11, 14]]
    assert find_duplicates(hashes[:0], np.arange(0)) == []


def test_first_rows_are_shown_with_their_targets(tiny_dir, tmp_path, capsys):
    path = write_jsonl(tmp_path / "rows.jsonl", [{"prompt": "say \x1b[31mhi", "response": "hi"}])
    assert call(path, "--model", tiny_dir, "data.pad_targets=all", "data.pad_to_multiple=8") == 0
    printed = capsys.readouterr().out
    assert "good row 1 of" in printed
    assert (
        "say \\x1b[31mhi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n«hi<|eot_id|><|endoftext|>»"
        in printed
    )
    assert "«<|endoftext|>" in printed  # the filler is a stretch of its own
    borders = [line for line in printed.splitlines() if line.startswith("  token ")]
    ids = AutoTokenizer.from_pretrained(tiny_dir).convert_tokens_to_ids(
        ["<|startoftext|>", "<|eot_id|>", "<|endoftext|>"]
    )
    start, end_of_turn, end = ids
    assert borders[0].startswith(f"  token 0: | {start} '<|startoftext|>' ")
    assert f" {end_of_turn} '<|eot_id|>' {end} '<|endoftext|>' | {end} '<|endoftext|>' " in borders[2]
    assert borders[3].endswith(f"{end} '<|endoftext|>' |")


def test_on_a_terminal_targets_are_green_and_have_no_marks(tiny_dir):
    tokenizer = AutoTokenizer.from_pretrained(tiny_dir)
    ids = np.array(tokenizer("say yes").input_ids)
    learned = np.arange(len(ids)) == len(ids) - 1
    terminal = Console(file=io.StringIO(), force_terminal=True, color_system="standard")
    show_row(terminal, "a row", Tokens(ids, learned, np.zeros(len(ids), dtype=bool)), tokenizer)
    printed = terminal.file.getvalue()
    assert f"\x1b[1;32m{tokenizer.decode(ids[-1:])}\x1b[0m" in printed
    assert "«" not in printed


def test_tokens_that_were_written_train_the_same(tiny_dir, tmp_path):
    """Two sources, of which the first fills a row group and a bit; with a worker process too."""
    first = write_jsonl(tmp_path / "a.jsonl", [chat(number) for number in range(1003)])
    turns = [{"role": role, "content": f"{role} says"} for role in ("user", "assistant")]
    second = write_jsonl(tmp_path / "b.jsonl", [{"messages": turns * (1 + number % 3)} for number in range(40)])
    mixture = f"data.sources=[{{path: {first}, weight: 1}}, {{path: {second}, weight: 3}}]"
    settings = ["data.system=Be brief.", "data.pad_targets=all", "data.pad_to_multiple=16"]
    for name, workers in (("one", 0), ("two", 1)):
        assert call("--model", tiny_dir, mixture, *settings, "--write", tmp_path / name, "--workers", workers) == 0
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    names = ["prepared.json", "source-00-00000.parquet", "source-01-00000.parquet"]
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == names
    for name in names[1:]:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert pq.ParquetFile(tmp_path / "one" / names[1]).num_row_groups == 2
    kept = json.loads((tmp_path / "one" / "prepared.json").read_text())
    assert [each["rows"] for each in kept["shards"]] == [1003, 40]
    assert [each["weight"] for each in kept["sources"]] == [1.0, 3.0]
    assert kept["settings"]["data.pad_to_multiple"] == 16
    config, _ = load_run_config(None, [mixture, "eval.rows=0", *settings])
    raw = documents_of(open_data(config, AutoTokenizer.from_pretrained(tiny_dir), read_config(tiny_dir)))
    ready = documents_of(open_run(tmp_path / "one", tiny_dir, tmp_path / "run", *settings))
    assert len(raw) == len(ready) == 1043
    for before, after in zip(raw, ready, strict=True):
        assert before.sample_id == after.sample_id
        for name in ("ids", "response_mask", "filler_mask"):
            mine, other = getattr(before, name), getattr(after, name)
            assert mine.dtype == other.dtype
            assert np.array_equal(mine, other)


def test_shards_are_cut_at_their_size(tiny_dir, tmp_path):
    """Random letters: 1,000 rows of about 1,900 ids of 2 bytes or less exceed 1 MiB, so every row group is a file."""
    draw = np.random.default_rng(0)
    rows = [{"text": "".join(map(chr, draw.integers(97, 123, 2300)))} for _ in range(2100)]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    folder = tmp_path / "out"
    folder.mkdir()
    assert call(path, "--model", tiny_dir, "--write", folder, "--shard-mib", 1) == 0
    shards = sorted(folder.glob("*.parquet"))
    assert [pq.ParquetFile(shard).metadata.num_rows for shard in shards] == [1000, 1000, 100]
    assert all(shard.stat().st_size < 2 << 20 for shard in shards)


def test_another_tokenizer_or_other_settings_are_said(tiny_dir, tmp_path):
    path, folder = write_jsonl(tmp_path / "rows.jsonl", [chat(1), chat(2)]), tmp_path / "out"
    assert call(path, "--model", tiny_dir, "--write", folder) == 0
    with pytest.warns(UserWarning, match="data.pad_targets='one_eos'; this run's 'none' does not change them"):
        open_run(folder, tiny_dir, tmp_path / "run", "data.pad_targets=none")
    other = tmp_path / "other"
    shutil.copytree(tiny_dir, other)
    described = json.loads((other / "tokenizer.json").read_text())
    vocabulary = described["model"]["vocab"]
    last, before_last = sorted(vocabulary, key=vocabulary.get)[-2:]
    vocabulary[last], vocabulary[before_last] = vocabulary[before_last], vocabulary[last]
    (other / "tokenizer.json").write_text(json.dumps(described))
    with pytest.raises(ValueError, match="its tokens were made with the tokenizer of .*; this model's has"):
        open_run(folder, other, tmp_path / "run")
    assert call(folder, "--model", other) == 2
    (folder / "prepared.json").write_text("{}")
    with pytest.raises(ValueError, match="prepared.json: is damaged"):
        open_run(folder, tiny_dir, tmp_path / "run")
    (folder / "prepared.json").unlink()
    assert len(documents_of(open_run(folder, other, tmp_path / "run"))) == 2


def test_nothing_is_written_over_or_written_by_halves(mixed, tiny_dir, tmp_path, capsys):
    folder = tmp_path / "out"
    assert call(mixed, "--model", tiny_dir, "--write", folder, "data.on_long=skip") == 1  # bad rows are errors
    assert "not written; set data.on_bad_row" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.jsonl"]
    skips = ["data.on_bad_row=skip", "data.on_long=skip", "data.max_skipped=1", "data.max_length=128"]
    assert call(mixed, "--model", tiny_dir, "--write", folder, *skips) == 0
    assert json.loads((folder / "prepared.json").read_text())["rows"] == {"all": 10, "good": 7, "bad": 2, "too_long": 1}
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert call(mixed, "--model", tiny_dir, "--write", folder, *skips) == 2
    assert "exists and is not an empty folder" in capsys.readouterr().err
    assert before == {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_dry_run_says_what_and_does_nothing(mixed, tiny_dir, tmp_path, capsys):
    folder, report = tmp_path / "out", tmp_path / "report.json"
    assert call(mixed, "--model", tiny_dir, "--write", folder, "--json", report, "--dry-run") == 0
    printed = capsys.readouterr().out
    for part in (f"{mixed}: 10 rows, columns {{'prompt': 'prompt'", "data.pad_targets: 'one_eos'", str(folder)):
        assert part in printed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.jsonl"]


def test_wrong_arguments_are_told_at_once(mixed, tiny_dir, tmp_path, capsys):
    assert call(mixed, "--micro-batch", 0, "data.max_lenght=9") == 2
    told = capsys.readouterr().err
    for part in ("3 problems", "--model is needed", "--micro-batch=0: at least 1", "did you mean data.max_length?"):
        assert part in told
    assert call("--model", tiny_dir) == 2
    assert "no data: name files" in capsys.readouterr().err
    assert call(tmp_path / "nowhere.jsonl", "--model", tiny_dir) == 2
    assert "no such file" in capsys.readouterr().err
    lengths = ["data.max_length=64", "data.pack_length=32"]
    assert call(mixed, "--model", tiny_dir, *lengths) == 2
    assert "data.pack_length=32 is less" in capsys.readouterr().err
    nothing = write_jsonl(tmp_path / "nothing.jsonl", ["nonsense"])
    assert call(nothing, "--model", tiny_dir) == 1
    assert f"{nothing}:1: not JSON" in capsys.readouterr().err


def test_paths_may_have_an_equals_sign():
    assert [is_override(each) for each in ("data.max_length=9", "seed=3", "year=2025/a.parquet", "a.jsonl")] == [
        True,
        True,
        False,
        False,
    ]


def test_the_script_needs_no_deepspeed(mixed, tiny_dir):
    code = (
        "import runpy, sys; sys.modules['deepspeed'] = None; "
        f"sys.argv = ['prepare_data.py', {str(mixed)!r}, '--model', {str(tiny_dir)!r}, '--dry-run']; "
        "runpy.run_path('tools/prepare_data.py', run_name='__main__')"
    )
    assert "would read:" in run([sys.executable, "-c", code]).stdout
