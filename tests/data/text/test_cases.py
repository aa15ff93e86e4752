"""The inputs of `tests/data/cases`: what a run learns of each, or what it says."""

import json
import re

import pytest
from transformers import AutoTokenizer

from lift_ds.config.loading import load_run_config
from lift_ds.data.reader import RowReader
from lift_ds.data.sources import Manifest, open_groups, open_sources
from lift_ds.data.survey.rows import check_first_rows
from lift_ds.data.text.chat import ChatEncoder
from lift_ds.data.text.turns import RowRules
from lift_ds.models.families import read_config
from lift_ds.training.inputs import make_encoder
from lift_ds.training.readers import open_reader
from tests.conftest import BASE, VECTORS

CASES = VECTORS / "cases"
USER, ASSISTANT, END = (
    "<|start_header_id|>user<|end_header_id|>\n\n",
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "<|eot_id|>",
)


def reader_of(case, template=None, **rules):
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    tokenizer.chat_template = template or tokenizer.chat_template
    manifest = Manifest(open_sources([str(CASES / case)], 0, "train", 10))
    return RowReader(manifest, ChatEncoder(tokenizer, 1, 4000, pad_targets="none"), None, RowRules(**rules))


def first_row(reader):
    """Its text without headers, and what is learned of it."""
    document = next(iter(reader.by_sample_id([0])))
    decode = reader.encoder.tokenizer.decode
    text = decode(document.ids).removeprefix("<|startoftext|>")
    for part in (USER, ASSISTANT):
        text = text.replace(part, "|")
    return text.replace(END, ""), decode(document.ids[document.response_mask]).removesuffix(END)


@pytest.mark.parametrize(
    ("case", "text", "learned"),
    [
        ("alpaca_input/rows.jsonl", "|Write the number after this one.\n0|1", "1"),
        ("content_blocks/rows.jsonl", "|Add 0 and 2.|2", "2"),
        ("conversations_role_content/rows.jsonl", "|Add 0 and 2.|2", "2"),
        ("dict_of_lists/rows.jsonl", "|Add 0 and 2.|2", "2"),
        ("json_string/rows.jsonl", "|Add 0 and 2.|2", "2"),
        ("prompt_completion_chat/rows.jsonl", "|Add 0 and 2.|2", "2"),
        ("prompt_completion_text/rows.jsonl", "|Add 0 and 2.|2", "2"),
        (
            "system_column/rows.jsonl",
            "<|start_header_id|>system<|end_header_id|>\n\nYou are clerk number 0; answer in capitals.|Where is box 0?|"
            "BOX 0 IS ON SHELF TWO.",
            "BOX 0 IS ON SHELF TWO.",
        ),
    ],
)
def test_formats_that_people_have(case, text, learned):
    reader = reader_of(case)
    assert first_row(reader) == (text, learned)
    found = check_first_rows(reader, 2000)
    assert found.num_good == reader.manifest.num_rows
    assert found.unused_lines() == []


def test_rows_of_ids_and_labels():
    document = next(iter(reader_of("input_ids_labels/rows.jsonl").by_sample_id([0])))
    assert document.ids.tolist() == [5, 6, 7, 8, 9]
    assert document.response_mask.tolist() == [False, False, True, True, True]


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("tool_calls/rows.jsonl", ":1: the chat template leaves out the tool 'get_weather'"),
        ("tool_calls_none/rows.jsonl", ":1: the chat template leaves out the tool call of message 2, 'get_weather'"),
        ("reasoning_content/rows.jsonl", ":1: the chat template leaves out the thoughts of message 2, 'I take 0"),
        ("empty_assistant/rows.jsonl", ":2: an assistant's turn without text; remove the row or the turn"),
    ],
)
def test_what_would_be_lost_stops_a_run(case, message):
    with pytest.raises(ValueError, match=re.escape(f"{CASES / case}{message}")):
        check_first_rows(reader_of(case), 2000)


def test_the_remedy_for_thoughts_learns_them():
    """As the error of the case before says: data.reasoning=think."""
    reader = reader_of("reasoning_content/rows.jsonl", reasoning="think")
    assert first_row(reader)[1] == "<think>\nI take 0 and count two on: 1, 2.\n</think>\n\n2"


def test_a_template_that_takes_tools_learns_the_calls():
    template = (
        "{% for tool in tools or [] %}{{ tool | tojson }}\n{% endfor %}"
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}"
        "{% for call in m.tool_calls or [] %}{{ call.function | tojson }}{% endfor %}{{ '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    reader = reader_of("tool_calls/rows.jsonl", template)
    learned = [reader.encoder.tokenizer.decode(row.ids[row.response_mask]) for row in reader.by_sample_id([0, 1])]
    assert learned == [
        '{"name": "get_weather", "arguments": {"town": "town 0"}}\n',
        '{"name": "get_weather", "arguments": {"town": "town 1"}}\n',
    ]
    assert check_first_rows(reader_of("tool_calls_none/rows.jsonl", template), 2000).unused_lines() == [
        f"not used of {CASES / 'tool_calls_none' / 'rows.jsonl'}: messages.tool_call_id (60 times)"
    ]


def test_answers_that_are_skipped_by_the_half_stop_a_run():
    reader = reader_of("empty_assistant/rows.jsonl")
    reader.skip_bad = True
    with pytest.raises(
        ValueError, match="30 of the first 60 rows would be skipped, more than data.max_skipped=0.05"
    ) as e:
        check_first_rows(reader, 2000, 0.05)
    assert "30 of them like this one: " in str(e.value)
    assert "rows.jsonl:2: an assistant's turn without text" in str(e.value)
    assert check_first_rows(reader, 2000, 0.5).num_bad == 30


REMEDY = re.compile(r"(data\.[a-z_.]+)=('\[.*?\]'|[a-z0-9]+)(?=[ ,.;]|$)")
CHAT = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]


@pytest.mark.parametrize(
    ("row", "overrides", "learned"),
    [
        ({"messages": [CHAT[0], CHAT[1] | {"thinking": "t"}]}, [], "<think>\nt\n</think>\n\na"),
        ({"messages": [CHAT[0] | {"images": ["cat.png"]}, CHAT[1]]}, [], "a"),
        ({"messages": CHAT, "functions": [{"name": "weather"}], "weight": 2}, [], "a"),
        ({"q": "q", "r": "a", "system": "Shout."}, ["data.columns.prompt=q", "data.columns.response=r"], "a"),
        ({"prompt": "q", "response": "a", "tools": [{"name": "weather"}]}, [], "a"),
        ({"messages": [*CHAT, CHAT[0], CHAT[1] | {"weight": 0}]}, ["data.train_on=last"], "a"),
    ],
)
def test_the_remedies_that_errors_name_work(row, overrides, learned, tmp_path):
    """Followed as they stand, one after the other, until the row is learned; placeholders in capitals are not."""
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n")
    settings = [f"data.path={path}", *overrides]
    for _ in range(4):
        run, problems = load_run_config(None, settings)
        assert not problems
        encoder = make_encoder(run.data, AutoTokenizer.from_pretrained(BASE), read_config(BASE))
        reader = open_reader(run.data, encoder, open_groups(run.data.source_list(), 0, "train", 1))
        try:
            assert check_first_rows(reader, 10, run.data.max_skipped).num_good == (learned is not None)
            break
        except ValueError as error:
            followed = [(key, value.strip("'")) for key, value in REMEDY.findall(str(error))]
            assert followed, error
            for key, value in followed:
                before = [setting for setting in settings if setting.startswith(f"{key}=")]
                settings = [setting for setting in settings if setting not in before]
                ignored = [setting.partition("[")[2] for setting in before if key == "data.ignore"]
                settings.append(f"{key}={value}" if not ignored else f"{key}={value[:-1]},{ignored[0]}")
    if learned is not None:
        (document,) = reader.by_sample_id([0])
        assert encoder.tokenizer.decode(document.ids[document.response_mask]).startswith(learned)
