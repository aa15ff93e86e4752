"""A template's clock stands still, is part of what tokens are made with, and chance is refused."""

from datetime import datetime

import pytest
from transformers import AutoTokenizer

from lift_ds.data.text.chat import ChatEncoder
from lift_ds.data.text.prepared import changed_settings, token_settings
from lift_ds.data.text.records import Conversation
from lift_ds.data.text.templates import has_clock, stop_clock
from lift_ds.data.text.turns import RowRules
from tests.conftest import BASE, VECTORS

NOON = datetime(2026, 1, 31, 12, 0, 5)
CLOCK_TEMPLATE = (VECTORS / "cases" / "template_clock" / "chat_template.jinja").read_text()
TURNS = ({"role": "user", "content": "q"}, {"role": "assistant", "content": "a"})


@pytest.mark.parametrize(
    ("call", "shown"),
    [
        ("strftime_now('%d %b %Y')", '"31 Jan 2026"'),
        ('strftime_now( "%H:%M:%S" )', '"12:00:05"'),
        ("strftime_now(format='a \"day\"')", '"a \\"day\\""'),
        ("x if strftime_now is defined else y", "x if strftime_now is defined else y"),
    ],
)
def test_the_clock_is_replaced_by_what_it_shows(call, shown):
    assert stop_clock("{{ " + call + " }}", NOON) == "{{ " + shown + " }}"


@pytest.mark.parametrize("use", ["strftime_now(pattern)", "strftime_now('%d' + x)", "['a', 'b'] | random", "lipsum()"])
def test_what_cannot_stand_still_is_refused(use):
    with pytest.raises(
        ValueError, match="the chat template (asks for the time|draws by chance).*data.chat_template=FILE"
    ):
        stop_clock("{{ " + use + " }}", NOON)


def encoder_at(clock):
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    tokenizer.chat_template = CLOCK_TEMPLATE
    return ChatEncoder(tokenizer, 1, 400, clock=clock)


def test_rows_and_prompts_show_the_run_s_time():
    encoder = encoder_at(NOON)
    text = encoder.tokenizer.decode(encoder.encode(Conversation(TURNS), "x").ids)
    assert "Now: 31 Jan 2026 12:00:05<|eot_id|>" in text
    prompt = encoder.tokenizer.decode(encoder.prompt_ids([TURNS[0]]))
    assert text.startswith(prompt)
    assert encoder.tokenizer.chat_template == CLOCK_TEMPLATE  # what is exported still has its clock


def test_the_time_is_part_of_the_settings_where_the_template_shows_it():
    before, after = (token_settings(encoder_at(clock), RowRules()) for clock in (NOON, NOON.replace(second=6)))
    assert before["data.clock"] == "2026-01-31T12:00:05"
    assert changed_settings(before, after) == ["data.clock"]
    plain = ChatEncoder(AutoTokenizer.from_pretrained(BASE), 1, 400, clock=NOON)
    assert "data.clock" not in token_settings(plain, RowRules())
    assert changed_settings(before | {"other": 3}, token_settings(plain, RowRules())) == ["chat template", "data.clock"]
    assert not has_clock(plain.renderer.template)
