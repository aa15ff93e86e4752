"""Rows as documents, bad ones and mixtures included, and what a run opens."""

import json

import pytest
from transformers import AutoTokenizer

from lift_ds.config.loading import ConfigError, load_run_config
from lift_ds.config.run import RunConfig
from lift_ds.data.batch import Document
from lift_ds.data.order.dealing import BatchRule
from lift_ds.data.order.lanes import Lanes, locate
from lift_ds.data.order.loader import StepLoader
from lift_ds.data.order.stream import PackStream
from lift_ds.data.reader import BadRowError, RowReader, Skipped
from lift_ds.data.settings import ColumnsConfig, SourceConfig
from lift_ds.data.sources import Manifest, open_groups, open_sources
from lift_ds.data.survey.rows import check_first_rows
from lift_ds.data.text.chat import ChatEncoder, TooLongError
from lift_ds.models.families import read_config
from lift_ds.training.draws import make_noise_rule
from lift_ds.training.inputs import open_data

BAD_LINES = {
    2: (b'{"prompt": ', "not JSON"),
    3: (b"[1]", "a list, not an object"),
    4: (b'{"prompt": "\xff", "response": "a"}', "not JSON: 'utf-8' codec"),
    5: (b'{"prompt": "q"}', "no column 'response'"),
    6: (b'{"prompt": "q", "response": " "}', "column 'response' must hold text"),
    7: (b'{"prompt": "q", "response": "\\ud800"}', "lone surrogate"),
}


@pytest.fixture(scope="module")
def tokenizer(tiny_dir):
    return AutoTokenizer.from_pretrained(tiny_dir)


@pytest.fixture
def bad_file(tmp_path):
    """Lines 1 and 9 are good, 8 is long, the others are bad."""
    good = b'{"prompt": "q", "response": "a"}'
    long = json.dumps({"prompt": "q", "response": "word " * 200}).encode()
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n".join([good, *(line for line, _ in BAD_LINES.values()), long, good]) + b"\n")
    return path


def make_reader(path, tokenizer, columns=None, **settings):
    manifest = Manifest(open_sources([str(path)], 0, "train", 10))
    return RowReader(manifest, ChatEncoder(tokenizer, 1, 64), columns, **settings)


def test_each_bad_row_is_located_and_spoils_no_other(bad_file, tokenizer):
    reader = make_reader(bad_file, tokenizer)
    for line, (_, problem) in BAD_LINES.items():
        with pytest.raises(BadRowError) as caught:
            reader.document(locate(reader.manifest, 0, line - 1))
        assert str(caught.value).startswith(f"{bad_file}:{line}: ")
        assert problem in str(caught.value)
    with pytest.raises(TooLongError, match="rows.jsonl:8: "):
        reader.document(locate(reader.manifest, 0, 7))
    for line in (1, 9):
        assert reader.document(locate(reader.manifest, 0, line - 1)).where == f"{bad_file}:{line}"


def test_wrong_roles_and_rewriting_templates_are_bad_rows(tmp_path, tokenizer):
    path = tmp_path / "chats.jsonl"
    path.write_text(json.dumps({"messages": [{"role": "bot", "content": "x"}]}) + "\n")
    reader = make_reader(path, tokenizer)
    with pytest.raises(BadRowError, match="chats.jsonl:1: message role 'bot'"):
        reader.document(locate(reader.manifest, 0, 0))
    path.write_text('{"prompt": "q", "response": "a"}\n')
    raising = AutoTokenizer.from_pretrained(tokenizer.name_or_path)
    raising.chat_template = (
        "{% for turn in messages %}{% if turn['content'] == 'q' %}{{ raise_exception('no such turn') }}{% endif %}"
        "<{{ turn['role'] }}>{{ turn['content'] }}\n{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    reader = make_reader(path, raising)
    with pytest.raises(BadRowError, match="chats.jsonl:1: TemplateError: no such turn"):
        reader.document(locate(reader.manifest, 0, 0))


def test_what_is_skipped_is_what_the_config_says(bad_file, tokenizer):
    skips_both = make_reader(bad_file, tokenizer, skip_bad=True, skip_long=True)
    found = [next(skips_both.read([locate(skips_both.manifest, 0, row)])) for row in range(9)]
    kinds = [each if isinstance(each, Skipped) else Document for each in found]
    assert kinds == [Document, *[Skipped.BAD] * 6, Skipped.LONG, Document]
    keeps_long = make_reader(bad_file, tokenizer, skip_bad=True)
    with pytest.raises(TooLongError):
        next(keeps_long.read([locate(keeps_long.manifest, 0, 7)]))
    keeps_bad = make_reader(bad_file, tokenizer, skip_long=True)
    with pytest.raises(BadRowError):
        next(keeps_bad.read([locate(keeps_bad.manifest, 0, 1)]))
    assert next(keeps_bad.read([locate(keeps_bad.manifest, 0, 7)])) is Skipped.LONG


def test_columns_are_detected_from_the_first_row_that_can_be_read(tmp_path, tokenizer):
    path = tmp_path / "rows.jsonl"
    path.write_text('nonsense\n{"question": "q", "answer": "a"}\n')
    with pytest.raises(BadRowError, match="rows.jsonl:1: not JSON"):
        make_reader(path, tokenizer)
    assert make_reader(path, tokenizer, skip_bad=True).columns == [ColumnsConfig(prompt="question", response="answer")]
    path.write_text("nonsense\n")
    with pytest.raises(BadRowError, match="rows.jsonl:1: not JSON"):
        make_reader(path, tokenizer, skip_bad=True)


def test_each_group_has_its_columns(tmp_path, tokenizer):
    for name, row in (
        ("a", {"q": "one", "r": "two"}),
        ("b", {"text": "plain"}),
        ("c", {"prompt": "p", "response": "r"}),
    ):
        (tmp_path / f"{name}.jsonl").write_text((json.dumps(row) + "\n") * 300)
    sources = [
        SourceConfig(path=str(tmp_path / "a.jsonl"), columns=ColumnsConfig(prompt="q", response="r")),
        SourceConfig(path=str(tmp_path / "b.jsonl")),
        SourceConfig(path=str(tmp_path / "c.jsonl")),
    ]
    manifest = Manifest(open_groups(sources, 0, "train", 10))
    encoder = ChatEncoder(tokenizer, 1, 64)
    reader = RowReader(manifest, encoder, None)
    assert [list(columns.named()) for columns in reader.columns] == [
        ["prompt", "response"],
        ["text"],
        ["prompt", "response"],
    ]
    learned = [
        tokenizer.decode(document.ids[document.response_mask])
        for document in reader.by_sample_id([0, 299, 300, 599, 600])
    ]
    assert [text.split("<|")[0] for text in learned] == ["two", "two", "plain", "plain", "r"]
    with pytest.raises(BadRowError, match="b.jsonl:1: no column 'q'"):
        fallback = RowReader(manifest, encoder, ColumnsConfig(prompt="q", response="r"))
        list(fallback.by_sample_id([0, 300]))


def test_a_step_counts_bad_rows(bad_file, tokenizer):
    reader = make_reader(bad_file, tokenizer, skip_bad=True, skip_long=True)
    lanes = Lanes(reader.manifest, set(), num_lanes=3, window_chunks=1, seed=1)
    rule = make_noise_rule(RunConfig().objective, 1, 9)
    loader = StepLoader(PackStream(lanes, reader, None), rule, 9, BatchRule(9), 0, 1, 1)
    step = loader.make_step(0, loader.state)  # an epoch of the 9 rows
    assert (step.num_bad_rows, step.num_skipped) == (6, 1)
    assert sum(number >= 0 for batch in step.micro_batches for number in batch.sample_ids) == 2


def run_config(*overrides):
    config, problems = load_run_config(None, list(overrides))
    if problems:
        raise ConfigError(problems)
    return config


def open_run(tiny_dir, tokenizer, tmp_path, *overrides):
    eval_rows = [] if any(override.startswith("eval.rows=") for override in overrides) else ["eval.rows=0"]
    run = run_config(f"output={tmp_path / 'run'}", *eval_rows, "data.max_length=64", *overrides)
    return open_data(run, tokenizer, read_config(tiny_dir))


def test_the_first_rows_are_counted(bad_file, tokenizer, tiny_dir, tmp_path):
    data = open_run(tiny_dir, tokenizer, tmp_path, f"data.path={bad_file}", "data.on_bad_row=skip", "data.on_long=skip")
    found = check_first_rows(data.reader, 2000)
    assert (found.num_good, found.num_bad, found.num_long) == (2, 6, 1)
    assert str(found) == "9 checked (6 bad, 1 too long: skipped)"
    assert str(check_first_rows(data.reader, 1)) == "1 checked"
    strict = open_run(tiny_dir, tokenizer, tmp_path, f"data.path={bad_file}")
    with pytest.raises(BadRowError, match="rows.jsonl:2: not JSON"):
        check_first_rows(strict.reader, 2000)


def test_a_column_that_no_row_has_is_an_error_although_bad_rows_are_skipped(tokenizer, tiny_dir, tmp_path):
    for name, key in (("a", "prompt"), ("b", "wrong")):
        (tmp_path / f"{name}.jsonl").write_text((json.dumps({key: "q", "response": "r"}) + "\n") * 50)
    columns = "columns: {prompt: prompt, response: response}"
    mixture = f"[{{path: {tmp_path}/a.jsonl, {columns}}}, {{path: {tmp_path}/b.jsonl, {columns}}}]"
    data = open_run(tiny_dir, tokenizer, tmp_path, f"data.sources={mixture}", "data.on_bad_row=skip")
    with pytest.raises(ValueError, match=r"b.jsonl: none of the first 10 rows can be used: .*b.jsonl:1: no column"):
        check_first_rows(data.reader, 20)


def test_the_remedies_for_skipped_first_rows_help(tokenizer, tiny_dir, tmp_path):
    """Line 1 is bad and the other nine are good: all of the first row, half of the first two."""
    good = '{"prompt": "q", "response": "r"}\n'
    (tmp_path / "rows.jsonl").write_text("nonsense\n" + good * 9)
    reader = open_run(tiny_dir, tokenizer, tmp_path, f"data.path={tmp_path}/rows.jsonl", "data.on_bad_row=skip").reader
    for limit in (0.05, 1.0):
        with pytest.raises(
            ValueError, match="none of the first 1 rows can be used: .* look at more .* data.check_rows"
        ):
            check_first_rows(reader, 1, limit)
    with pytest.raises(ValueError, match=r"1 of the first 2 rows would be skipped, .* set data.max_skipped=1"):
        check_first_rows(reader, 2, 0.05)
    assert str(check_first_rows(reader, 2, 1.0)) == "2 checked (1 bad: skipped)"
    assert str(check_first_rows(reader, 10, 0.1)) == "10 checked (1 bad: skipped)"


def test_most_held_out_rows_are_not_skipped_in_silence(tokenizer, tiny_dir, tmp_path):
    """Three of the four rows of `eval.path` have another column."""
    good, other = ({"prompt": "q", "response": "r"}, {"prompt": "q", "completion": "r"})
    for name, rows in (("a", [good] * 20), ("b", [good, other, other, other])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    paths = [f"data.path={tmp_path}/a.jsonl", f"eval.path={tmp_path}/b.jsonl", "eval.rows=4", "data.on_bad_row=skip"]
    with pytest.raises(ValueError, match=r"b.jsonl: 3 of the first 4 rows would be skipped, .*b.jsonl:2: no column"):
        open_run(tiny_dir, tokenizer, tmp_path, *paths)
    assert len(open_run(tiny_dir, tokenizer, tmp_path, *paths, "data.max_skipped=1").held_out) == 1


def test_a_column_is_not_named_and_left_out(tokenizer, tiny_dir, tmp_path):
    row = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "system": "Shout."}
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n")
    named = ["data.columns.messages=messages", "data.columns.system=system", "data.ignore=[system]"]
    source = f"{{path: {path}, columns: {{messages: messages, system: system}}}}"
    for overrides in ([f"data.path={path}", *named], [f"data.sources=[{source}]", named[-1]]):
        with pytest.raises(
            ConfigError, match="data.columns names system, and data.ignore leaves it out; remove it from"
        ):
            run_config(*overrides)
    reader = open_run(tiny_dir, tokenizer, tmp_path, f"data.path={path}", named[-1]).reader
    assert "Shout." not in tokenizer.decode(reader.document(locate(reader.manifest, 0, 0)).ids)


def test_a_run_keeps_its_indexes_in_its_folder(tokenizer, tiny_dir, tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text('{"prompt": "q", "response": "r"}\n' * 40)
    overrides = [f"data.path={tmp_path}/a.jsonl", f"eval.path={tmp_path}/b.jsonl", "eval.rows=4"]
    data = open_run(tiny_dir, tokenizer, tmp_path, *overrides)
    assert not (tmp_path / "run").exists()  # other ranks may still be choosing its name
    assert len(data.held_out) == 4
    for manifest in data.manifests:
        manifest.save_indexes()
    assert len(list((tmp_path / "run" / "index").glob("*.json"))) == 2
    again = open_run(tiny_dir, tokenizer, tmp_path, *overrides)
    assert again.reader.manifest.digest == data.reader.manifest.digest


def test_sources_in_the_config():
    mixture = "data.sources=[{path: a.jsonl, weight: 2, columns: {text: t}}, {path: [b.jsonl, c.jsonl], weight: 0.5}]"
    first, second = run_config(mixture).data.source_list()
    assert (first.paths(), first.weight, first.columns.text) == (["a.jsonl"], 2.0, "t")
    assert (second.paths(), second.weight) == (["b.jsonl", "c.jsonl"], 0.5)
    assert run_config("data.path=a.jsonl").data.source_list() == [SourceConfig(path="a.jsonl")]
    assert run_config("data.path=a.jsonl", "data.sources=null").data.source_list()[0].path == "a.jsonl"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["data.path=a.jsonl", "data.sources=[{path: b.jsonl}]"],
            "data.path and data.sources are both set; remove one",
        ),
        (["data.sources=[{path: a, weight: 1}, {path: b}]"], "data.sources: b has no weight, others have"),
        (["data.sources=[]"], r"data.sources=\[\]: at least one entry"),
        (["data.sources=[{path: a, weight: 0}]"], "data.sources.0.weight=0: input should be greater than 0"),
        (["data.sources=[{weight: 1}]"], "data.sources.0.path.* field required"),
        (["data.sources=[{path: a, wait: 1}]"], "data.sources.0.wait: unknown key"),
        (["data.on_bad_row=ignore"], "data.on_bad_row='ignore': input should be 'error' or 'skip'"),
    ],
)
def test_wrong_sources_in_the_config(overrides, message):
    with pytest.raises(ConfigError, match=message):
        run_config(*overrides)
