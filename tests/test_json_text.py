"""What is wrong with JSON text is one clear message; what is right is read as it is."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lift_ds.data.sources import Manifest, open_sources
from lift_ds.text_files import BadKeyError, find_repeated, parse_elements, parse_line, place

GOOD = {"prompt": "a", "response": "b"}
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=10,
)


def manifest_of(path):
    return Manifest(open_sources([str(path)], 0, "train", 1))


def read_rows(path):
    manifest = manifest_of(path)
    return [row for chunk in range(len(manifest.chunks)) for row in manifest.read(chunk)]


@given(VALUES, st.booleans())
def test_what_is_right_is_read(value, is_ascii):
    text = json.dumps(value, ensure_ascii=is_ascii)
    assert parse_line(f" {text}\r".encode()) == value


@given(VALUES, st.sampled_from([None, 1]))
def test_a_repeated_key_is_found_wherever_it_stands(value, indent):
    text = json.dumps([value, {"k\\": value, '"': 0}], indent=indent).replace('"\\""', '"k\\\\"')
    with pytest.raises(BadKeyError, match="'k.*' stands twice in one object"):
        parse_line(text.encode())
    key, first, second = find_repeated(text, 0, len(text))
    assert key == "k\\"
    assert first < second
    assert text[first:].startswith('"k\\\\":')
    assert text[second:].startswith('"k\\\\":')


def test_places():
    assert place('{"a": 1}', 1) == "character 2"
    assert place('[\n {"a": 1}]', 4) == "line 2 character 3"


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (
            '{"prompt": "a", "prompt": "c", "response": "b"}',
            "the key 'prompt' stands twice in one object, at character 2 and character 17; only one value can be "
            "meant, remove the other.",
        ),
        (
            '{"messages": [{"role": "user", "content": "\\"role\\": 1", "role": "assistant"}]}',
            "the key 'role' stands twice in one object, at character 16 and character 58; only one value can be "
            "meant, remove the other.",
        ),
        ('{"\\ud800k": 1}', "the key '\\ud800k' has a lone surrogate, which is no text; repair it."),
        ('{"a": 1, "k\\uDfff": 1}', "the key 'k\\udfff' has a lone surrogate, which is no text; repair it."),
    ],
)
def test_bad_keys_are_bad_rows(tmp_path, line, problem):
    """In lines and in lists, where characters are counted in the line of the file."""
    (tmp_path / "rows.jsonl").write_text(f"{json.dumps(GOOD)}\n{line}\n")
    good, bad = read_rows(tmp_path / "rows.jsonl")
    assert (good.values, good.problem) == (GOOD, None)
    assert (bad.values, bad.where, bad.problem) == ({}, f"{tmp_path}/rows.jsonl:2", problem)
    (tmp_path / "rows.json").write_text(f"[\n{json.dumps(GOOD)},\n{line} , 7,\n{json.dumps(GOOD)}\n]\n")
    good, bad, number, last = read_rows(tmp_path / "rows.json")
    assert good.values == last.values == GOOD
    assert number.problem.startswith("a int, not an object")
    assert bad.where == f"{tmp_path}/rows.json: element 1"
    assert bad.problem == problem.replace("character ", "line 3 character ")


def test_pairs_of_surrogates_and_numbers_that_are_none(tmp_path):
    assert parse_line(b'{"\\ud83d\\ude00": "\\ud83d\\ude00"}') == {"😀": "😀"}
    [(values, problem)] = parse_elements('[{"score": NaN}]')
    assert values["score"] != values["score"]
    assert problem is None


def test_a_list_is_read_in_every_unicode_encoding(tmp_path):
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"):
        (tmp_path / "rows.json").write_bytes(json.dumps([{"prompt": "ä"}], ensure_ascii=False).encode(encoding))
        assert [row.values for row in read_rows(tmp_path / "rows.json")] == [{"prompt": "ä"}]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.jsonl", json.dumps(GOOD).encode("utf-16") * 3, "rows.jsonl is text in UTF-16; save it as UTF-8"),
        ("rows.jsonl", json.dumps(GOOD).encode("utf-16-le") * 3, "rows.jsonl is text in UTF-16; save it as UTF-8"),
        ("rows.jsonl", json.dumps(GOOD, indent=1).encode(), "is one JSON text over several lines; write one object"),
        ("rows.jsonl", json.dumps([GOOD], indent=1).encode(), "is one JSON text over several lines; write one object"),
        ("rows.json", json.dumps(GOOD, indent=1).encode(), "rows.json: holds a dict; a .json file must hold a list"),
        ("rows.json", b'[\n{"a": 1},\n]', "rows.json: not JSON: .*Remove the comma before the closing bracket"),
        ("rows.json", b'{"a": 1}\n{"a": 2}\n', "rows.json: not JSON: .*One object a line belongs in a .jsonl file"),
    ],
)
def test_files_that_are_something_else(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        manifest_of(tmp_path / name)
