"""Rows of a prompt file: what is said of them, and what is refused."""

import pytest

from lift_ds.cli.generate import read_prompt

SYSTEM, USER = {"role": "system", "content": "Shout."}, {"role": "user", "content": "q"}
ANSWER = {"role": "assistant", "content": "a"}


@pytest.mark.parametrize(
    ("row", "messages"),
    [
        ({"prompt": "q"}, [USER]),
        ({"question": "q", "answer": "a", "system": "Shout."}, [SYSTEM, USER]),
        ({"messages": [SYSTEM, USER, ANSWER, USER]}, [SYSTEM, USER, ANSWER, USER]),
        ({"messages": [{"from": "human", "value": "q"}]}, [USER]),
        ({"prompt": [USER], "system": ""}, [USER]),
    ],
)
def test_what_a_row_says(row, messages):
    assert read_prompt(row, "rows.jsonl:3").messages() == messages


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "q", "tools": [{"name": "weather"}]}, "'tools' would not be said"),
        ({"prompt": "q", "images": ["cat.png"]}, "'images' would not be said"),
        ({"messages": [USER, ANSWER]}, "the last message is from 'assistant'; the model answers a user's"),
        ({"messages": "q"}, "a JSON object with the text of a prompt or question, or messages, is needed"),
        ({"text": "q"}, "a JSON object with the text of a prompt or question, or messages, is needed"),
        ({"prompt": 3}, "a JSON object with the text of a prompt"),
    ],
)
def test_what_would_not_be_said_is_refused(row, message):
    with pytest.raises(ValueError, match=f"rows.jsonl:3: {message}"):
        read_prompt(row, "rows.jsonl:3")
