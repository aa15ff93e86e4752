"""Lists of objects in rows: as they are, as JSON text, from tables."""

import datetime
import json

import numpy as np
import pytest

from lift_ds.data.sources import Row
from lift_ds.data.text.objects import objects_of, plain
from lift_ds.data.text.records import detect_columns, read_conversation
from lift_ds.data.text.turns import RowRules

USER = {"role": "user", "content": "q"}
ANSWER = {"role": "assistant", "content": "a"}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {}}}


def read(**values):
    row = Row(values, "rows.jsonl:7")
    return read_conversation(row, detect_columns(row), RowRules())


def called(arguments):
    call = {"function": {"name": "weather", "arguments": arguments}}
    return read(messages=[USER, {"role": "assistant", "content": "", "tool_calls": [call]}])


TWICE = "the key 'a' stands twice in one object, at character 2 and character 10"


def test_a_key_that_stands_twice_in_json_text_is_an_error_in_every_column():
    twice = '{"a": 1, "a": 2}'
    messages = json.dumps([USER, ANSWER])[:-2] + ', "content": "b"}]'
    with pytest.raises(ValueError, match="rows.jsonl:7: a tool call needs .*" + TWICE):
        called(twice)
    with pytest.raises(ValueError, match="rows.jsonl:7: column 'tools': the key 'a' stands twice"):
        read(messages=[USER, ANSWER], tools=f"[{twice}]")
    with pytest.raises(ValueError, match="column 'messages' is no list of messages: the key 'content' stands twice"):
        read(messages=messages)


@pytest.mark.parametrize("text", ["", " \n", "null", "[]", "\ufeffnull\n"])
def test_json_text_that_says_nothing_is_no_tools(text):
    assert read(messages=[USER, ANSWER], tools=text).tools == ()


def test_json_text_may_begin_with_a_byte_order_mark():
    text = "\ufeff\n" + json.dumps([USER, ANSWER])
    assert read(messages=text).messages == (USER, ANSWER)
    assert called("\ufeff" + '{"a": 1}').messages[1]["tool_calls"][0]["function"]["arguments"] == {"a": 1}


@pytest.mark.parametrize("value", [datetime.date(2026, 1, 2), b"\xff"])
def test_what_json_has_not_is_no_argument(value):
    """Tables have such types; transformers would write `<date>` instead."""
    with pytest.raises(ValueError, match=f"rows.jsonl:7: tool_calls: .* is of type {type(value).__name__}, which JSON"):
        called({"day": [value]})


def test_numbers_of_tables_become_those_of_json():
    found = plain({"a": np.int64(3), "b": np.array([1, 2]), "c": (1.5, None), "d": None})
    assert json.dumps(found) == '{"a": 3, "b": [1, 2], "c": [1.5, null]}'


def test_a_tool_s_function_is_an_object():
    with pytest.raises(
        ValueError, match="rows.jsonl:7: column 'tools': the function of a tool is an object with a name"
    ):
        read(messages=[USER, ANSWER], tools=[{"type": "function", "function": "weather"}])


def test_objects_that_are_nested_too_deeply():
    with pytest.raises(ValueError, match="x:1: tools: it is nested too deeply"):
        objects_of("[" * 200_000, "tools", "x:1")
