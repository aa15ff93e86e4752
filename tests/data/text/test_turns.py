"""Keys of messages and rows that change what is said or learned: read, or refused by name."""

import re

import pytest
import yaml

from lift_ds.data.settings import ColumnsConfig as Columns
from lift_ds.data.sources import Row
from lift_ds.data.text.records import detect_columns, read_conversation, unused_keys
from lift_ds.data.text.turns import RowRules

USER = {"role": "user", "content": "q"}
ANSWER = {"role": "assistant", "content": "a"}
CALL = {"type": "function", "function": {"name": "weather", "arguments": '{"town": "Ulm", "day": null}'}}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {}}}


def read(values, columns=None, **rules):
    row = Row(values, "rows.jsonl:7")
    return read_conversation(row, columns or detect_columns(row), RowRules(**rules))


def turn(**keys):
    return read({"messages": [USER, ANSWER | keys]}).messages[1]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("function_call", {"name": "weather"}),
        ("functions", [TOOL]),
        ("images", ["cat.png"]),
        ("audio", {"id": 3}),
        ("refusal", "I will not."),
    ],
)
def test_a_key_that_would_be_lost_is_refused_and_its_remedy_works(key, value):
    values = {"messages": [USER, ANSWER | {key: value}]}
    with pytest.raises(ValueError, match=f"rows.jsonl:7: key '{key}' holds .* data.ignore='\\[{key}\\]'") as caught:
        read(values)
    (remedy,) = re.findall(r"data\.ignore='(\[.*?\])'", str(caught.value))
    assert read(values, ignore=frozenset(yaml.safe_load(remedy))).messages == (USER, ANSWER)


def test_keys_that_hold_nothing_are_harmless():
    nothing = {"tool_calls": None, "function_call": None, "reasoning_content": "", "images": [], "weight": None}
    assert turn(**nothing) == ANSWER
    row = {"messages": [USER, ANSWER], "tools": None, "system": "", "images": [], "train": True, "weight": 1}
    assert read(row).messages == (USER, ANSWER)


def test_tool_calls_reach_the_template_with_their_arguments_as_an_object():
    call = {"type": "function", "function": {"name": "weather", "arguments": {"town": "Ulm", "day": None}}}
    answer = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    result = {"role": "tool", "content": "rain", "tool_call_id": "c0", "name": "weather"}
    found = read({"messages": [USER, answer, result, ANSWER], "tools": '[{"name": "weather"}]'})
    assert found.messages[1] == {"role": "assistant", "content": "", "tool_calls": [call]}
    assert found.messages[2] == result
    assert found.tools == ({"name": "weather"},)
    for broken in ({"function": {"arguments": {}}}, {"function": {"name": "f", "arguments": "town"}}, {"name": 3}):
        with pytest.raises(ValueError, match="rows.jsonl:7: a tool call needs a function with a name"):
            turn(tool_calls=[broken])
    with pytest.raises(ValueError, match="a user's message has tool_calls; only an assistant's may"):
        read({"messages": [USER | {"tool_calls": [CALL]}, ANSWER]})


def test_nulls_that_tables_put_into_objects_are_no_arguments():
    call = {"id": None, "function": {"name": "weather", "arguments": {"town": "Ulm", "city": None}}}
    assert turn(tool_calls=[call])["tool_calls"] == [{"function": {"name": "weather", "arguments": {"town": "Ulm"}}}]


@pytest.mark.parametrize("key", ["reasoning_content", "thinking", "reasoning"])
def test_thoughts_go_where_the_config_says(key):
    values = {"messages": [USER, ANSWER | {key: "t"}]}
    found = {rule: read(values, reasoning=rule).messages[1] for rule in ("template", "think", "tags", "none")}
    assert found == {
        "template": ANSWER | {"reasoning_content": "t"},
        "think": {"role": "assistant", "content": "<think>\nt\n</think>\n\na"},
        "tags": {"role": "assistant", "content": "<reasoning>\nt\n</reasoning>\n<answer>\na\n</answer>"},
        "none": ANSWER,
    }


def test_thoughts_under_two_keys_must_agree():
    assert turn(thinking="t", reasoning="t") == ANSWER | {"reasoning_content": "t"}
    with pytest.raises(ValueError, match="rows.jsonl:7: thinking and reasoning must hold one text"):
        turn(thinking="t", reasoning="u")


def test_turns_of_weight_0_are_context():
    other = {"role": "assistant", "content": "b"}
    for weight in ({"weight": 0}, {"weight": 0.0}, {"train": False}, {"trainable": False}, {"loss": False}):
        found = read({"messages": [USER, ANSWER | weight, USER | {"weight": 0}, other | {"weight": 1}]})
        assert found.messages == (USER, ANSWER, USER, other)
        assert found.context == {1}
    for wrong in ({"weight": 0.5}, {"train": "yes"}):
        with pytest.raises(ValueError, match="a turn is learned .* or not"):
            turn(**wrong)
    with pytest.raises(ValueError, match="train=True at a user's turn; only the assistant's are learned"):
        read({"messages": [USER | {"train": True}, ANSWER]})
    with pytest.raises(ValueError, match="rows.jsonl:7: no turn of the assistant is learned"):
        turn(weight=0)


def test_content_may_be_blocks_of_text():
    blocks = [{"type": "text", "text": "a "}, {"type": "text", "text": "b"}]
    assert turn(content=blocks) == {"role": "assistant", "content": "a b"}
    for block in ({"type": "image_url", "image_url": "cat.png"}, "a", {"type": "text"}):
        with pytest.raises(ValueError, match="rows.jsonl:7: a assistant's message has a content block of type"):
            turn(content=[block])
    with pytest.raises(ValueError, match="a user's message has NoneType content"):
        read({"messages": [{"role": "user", "content": None, "name": "Ann"}, ANSWER]})


@pytest.mark.parametrize("content", ["", " \n", None, []])
def test_an_assistant_s_turn_without_text_is_a_bad_row(content):
    with pytest.raises(ValueError, match="rows.jsonl:7: an assistant's turn without text"):
        turn(content=content)
    with pytest.raises(ValueError, match="rows.jsonl:7: an assistant's turn without text"):
        read({"messages": [USER, {"role": "assistant", "content": content}, USER, ANSWER]})


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ('[{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]', (USER, ANSWER)),
        ({"role": ["user", "assistant"], "content": ["q", "a"]}, (USER, ANSWER)),
        ('{"from": ["human", "gpt"], "value": ["q", "a"]}', (USER, ANSWER)),
        ([{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], (USER, ANSWER)),
    ],
)
def test_lists_of_messages_come_in_several_forms(messages, expected):
    assert read({"messages": messages}).messages == expected


def test_forms_that_are_broken():
    with pytest.raises(ValueError, match=r"its lists \['content', 'role'\] differ in length"):
        read({"messages": {"role": ["user"], "content": ["q", "a"]}})
    with pytest.raises(ValueError, match="rows.jsonl:7: column 'messages' is no list of messages: Expecting"):
        read({"messages": '[{"role": "user",'})


def test_prompt_and_completion_may_be_messages():
    system = {"role": "system", "content": "s"}
    found = read({"prompt": [system, USER, ANSWER, USER], "completion": [{"role": "assistant", "content": "b"}]})
    assert [message["content"] for message in found.messages] == ["s", "q", "a", "q", "b"]
    assert found.context == {2}  # answers of the prompt are not learned
    assert read({"prompt": "q", "completion": [ANSWER]}).messages == (USER, ANSWER)


def test_columns_are_joined():
    rows = {"instruction": "Write the next number.", "input": "3", "output": "4"}
    assert read(rows).messages[0]["content"] == "Write the next number.\n3"
    for nothing in ({"input": ""}, {"input": None}):
        assert read(rows | nothing).messages[0]["content"] == "Write the next number."
    assert read({"instruction": "i", "output": "o"}).messages[0]["content"] == "i"
    columns = Columns(prompt=["a", "b.text"], response=["c", "d"])
    found = read({"a": "1", "b": {"text": "2"}, "c": "3", "d": "4"}, columns)
    assert [message["content"] for message in found.messages] == ["1\n2", "3\n4"]
    with pytest.raises(ValueError, match="column 'a' must hold text"):
        read({"a": "", "b": {"text": "2"}, "c": "3"}, columns)
    with pytest.raises(ValueError, match="an empty list names no column"):
        Columns(prompt=[], response="r")


def test_a_row_s_system_text_comes_before_the_config_s():
    row = {"system": "Capitals.", "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "A"}]}
    first = [read(row | more, system="Be brief.").messages[0] for more in ({}, {"system": None}, {"system": ""})]
    assert [message["content"] for message in first] == ["Capitals.", "Be brief.", "Be brief."]
    chat = {"messages": [{"role": "system", "content": "Own."}, USER, ANSWER]}
    assert [m["content"] for m in read(chat, system="Be brief.").messages] == ["Own.", "q", "a"]
    with pytest.raises(ValueError, match="column 'system' holds a system text, and the messages begin with one"):
        read(chat | {"system": "Another."})
    assert read({"prompt": "q", "response": "a", "system_prompt": "S"}).messages[0]["content"] == "S"


@pytest.mark.parametrize("key", ["system", "tools", "reasoning_content", "images", "history", "functions"])
def test_columns_that_a_mapping_leaves_out_are_refused_where_they_count(key):
    columns = Columns(prompt="q", response="r")
    row = {"q": "q", "r": "a", key: ["x"]}
    with pytest.raises(ValueError, match=f"rows.jsonl:7: key '{key}' holds"):
        read(row, columns)
    assert read(row, columns, ignore=frozenset([key])).messages == (USER, ANSWER)


def test_rows_have_no_weight():
    for key in ("weight", "train", "trainable"):
        with pytest.raises(ValueError, match=f"rows.jsonl:7: column '{key}' holds"):
            read({"text": "plain", key: 0})
        assert read({"text": "plain", key: 0}, ignore=frozenset([key])).text == "plain"


def test_what_is_not_used_is_listed():
    row = {
        "messages": [USER | {"id": 3, "name": "Ann"}, ANSWER | {"score": 0.5, "note": ""}],
        "source": "web",
        "empty": None,
        "tools": [TOOL],
    }
    found = Row(row, "rows.jsonl:7")
    columns = detect_columns(found)
    assert columns.named() == {"messages": "messages", "tools": "tools"}
    assert sorted(unused_keys(found, columns)) == ["messages.id", "messages.name", "messages.score", "source"]
    prompts = Row({"prompt": "q", "response": "a", "input": "lost"}, "rows.jsonl:7")
    assert list(unused_keys(prompts, detect_columns(prompts))) == ["input"]


def test_a_block_of_text_may_hold_nothing_else_that_counts():
    block = {"type": "text", "text": "q", "image_url": None}
    assert read({"messages": [USER | {"content": [block]}, ANSWER]}).messages[0] == USER
    pictured = [USER | {"content": [block | {"image": "cat.png"}]}, ANSWER]
    with pytest.raises(ValueError, match="a user's message: key 'image' holds 'cat.png', which would not be used"):
        read({"messages": pictured})
    assert read({"messages": pictured}, ignore=frozenset(["image"])).messages[0] == USER


def test_a_row_s_loss_is_a_number_that_was_measured():
    row = {"messages": [USER, ANSWER], "loss": 2.5}
    assert list(unused_keys(Row(row, "x"), detect_columns(Row(row, "x")))) == ["loss"]
    with pytest.raises(ValueError, match=r"loss=2.5: a turn is learned .* data.ignore='\[loss\]'"):
        turn(loss=2.5)
    assert turn(loss=None) == ANSWER


def test_what_is_left_out_is_no_column_of_a_known_format():
    rows = {
        "system": {"messages": [USER, ANSWER], "system": "S"},
        "tools": {"messages": [USER, ANSWER], "tools": [TOOL]},
        "input": {"instruction": "q", "input": "more", "output": "a"},
        "messages": {"messages": [ANSWER, ANSWER], "prompt": "q", "response": "a"},
    }
    for ignored, values in rows.items():
        row = Row(values, "x")
        found = read_conversation(row, detect_columns(row, frozenset([ignored])), RowRules(ignore=frozenset([ignored])))
        assert (found.messages, found.tools) == ((USER, ANSWER), ())
    with pytest.raises(ValueError, match=r"x: columns \['answer'\] are no known format"):
        detect_columns(Row({"question": "q", "answer": "a"}, "x"), frozenset(["question"]))
