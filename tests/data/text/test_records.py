import pytest

from lift_ds.data.settings import ColumnsConfig as Columns
from lift_ds.data.sources import Row
from lift_ds.data.text.records import detect_columns, read_conversation
from lift_ds.data.text.turns import RowRules


def conversation(values, columns=None, system=None, **rules):
    row = Row(values, "rows.jsonl:7")
    read = read_conversation(row, columns or detect_columns(row), RowRules(system, **rules))
    return read.text if read.text is not None else [(turn["role"], turn["content"]) for turn in read.messages]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (
            {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
            [("user", "q"), ("assistant", "a")],
        ),
        (
            {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "r1_solution": "x"},
            [("user", "q"), ("assistant", "a")],
        ),
        ({"prompt": "q", "response": "a"}, [("user", "q"), ("assistant", "a")]),
        ({"question": "q", "answer": "a #### 3"}, [("user", "q"), ("assistant", "a #### 3")]),
        (
            {"question": "q", "thinking_trajectories": ["r"], "attempt": "a"},
            [("user", "q"), ("assistant", "<reasoning>\nr\n</reasoning>\n<answer>\na\n</answer>")],
        ),
        (
            {"question": "q", "deepseek_thinking_trajectory": "r", "deepseek_attempt": "a"},
            [("user", "q"), ("assistant", "<reasoning>\nr\n</reasoning>\n<answer>\na\n</answer>")],
        ),
        ({"text": "plain"}, "plain"),
    ],
)
def test_known_formats(values, expected):
    assert conversation(values) == expected


def test_mapping_with_paths_and_system_text():
    columns = Columns(prompt="q.text", reasoning="steps.1", answer="sol.0")
    values = {"q": {"text": "why"}, "steps": ["a", "b"], "sol": ["4"]}
    assert conversation(values, columns, "be brief") == [
        ("system", "be brief"),
        ("user", "why"),
        ("assistant", "<reasoning>\nb\n</reasoning>\n<answer>\n4\n</answer>"),
    ]


@pytest.mark.parametrize(
    ("values", "columns", "message"),
    [
        ({"a": 1}, None, r"rows.jsonl:7: columns \['a'\] are no known format"),
        ({"q": "x"}, Columns(prompt="q", response="r"), r"rows.jsonl:7: no column 'r'; the row has \['q'\]"),
        ({"q": "x", "r": ""}, Columns(prompt="q", response="r"), "must hold text"),
        ({"q": "x", "r": 3}, Columns(prompt="q", response="r"), "must hold text"),
        ({"q": "x", "r": ["a", "b"]}, Columns(prompt="q", response="r"), r"is a list of 2; name one entry, as r.0"),
        ({"q": "x", "r": ["a"]}, Columns(prompt="q", response="r.1"), "no column 'r.1'"),
        ({"m": []}, Columns(messages="m"), "must hold a list of messages"),
        ({"m": [{"role": "user", "content": "q"}]}, Columns(messages="m"), "last message is from 'user'"),
        ({"m": [{"role": "bot", "content": "q"}]}, Columns(messages="m"), "role 'bot'"),
        ({"m": [{"content": "q"}]}, Columns(messages="m"), "a message without 'role' and 'content'"),
        ({"m": [{"role": ["user"], "content": "q"}]}, Columns(messages="m"), "message role"),
        ({"q": None, "r": "a"}, Columns(prompt="q", response="r"), "must hold text"),
    ],
)
def test_rows_that_do_not_fit(values, columns, message):
    with pytest.raises(ValueError, match=message):
        conversation(values, columns)


def test_combinations_of_columns():
    assert Columns(prompt="q", response="r").named() == {"prompt": "q", "response": "r"}
    with pytest.raises(ValueError, match="do not make a format"):
        Columns(prompt="q")
