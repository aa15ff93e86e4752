"""The chat format of a folder: what is written is what transformers renders with and what is read again."""

import json
import shutil
from dataclasses import replace

import pytest
from transformers import AutoTokenizer

from lift_ds.data.settings import DataConfig
from lift_ds.data.text.chat_format import (
    CHAT_FORMAT_FILE,
    ChatFormat,
    format_of_settings,
    read_format,
    stored_template,
    template_text,
    write_format,
)
from tests.conftest import BASE

PLAIN = "{% for m in messages %}{{ '### ' + m['role'] + ':\n' + m['content'] }}{% endfor %}"
FULL = ChatFormat(
    "Be brief.", "2026-01-02T03:04:05", "<reasoning>, <answer>", train_on="last", pad_targets="all", pad_to_multiple=48,
    template=PLAIN,
)  # fmt: skip
TALK = [{"role": "user", "content": "Add 1 and 2."}]


@pytest.fixture(params=["in its file", "in the config", "named ones", "nowhere"])
def folder(request, tmp_path):
    """A tokenizer whose own template stands in one of the places where it may."""
    for path in BASE.glob("tokenizer*.json"):
        shutil.copy(path, tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    if request.param == "in its file":
        (tmp_path / "chat_template.jinja").write_text("{{ 'own' }}")
    elif request.param == "in the config":
        config["chat_template"] = "{{ 'own' }}"
    elif request.param == "named ones":
        config["chat_template"] = [
            {"name": "tool_use", "template": "t"},
            {"name": "default", "template": "{{ 'own' }}"},
        ]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    return tmp_path


def test_transformers_renders_with_what_was_written(folder):
    own = template_text(AutoTokenizer.from_pretrained(folder))
    assert stored_template(folder) == own
    assert own in ("{{ 'own' }}", None)
    write_format(folder, FULL)
    assert read_format(folder) == FULL
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.apply_chat_template(TALK, tokenize=False) == "### user:\nAdd 1 and 2."
    config = json.loads((folder / "tokenizer_config.json").read_text())
    assert config.get("chat_template", PLAIN) == PLAIN  # older versions of transformers read it there


def test_the_folders_own_template_stays_as_it_is(folder):
    own = stored_template(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    write_format(folder, ChatFormat(template=own))
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.name != CHAT_FORMAT_FILE} == before
    assert read_format(folder) == ChatFormat(template=own)


def test_none_and_what_cannot_be_read(tmp_path):
    assert read_format(tmp_path) is None
    for content in ("", "[]", '{"system": "s", "voice": "deep"}'):
        (tmp_path / CHAT_FORMAT_FILE).write_text(content)
        with pytest.raises(ValueError, match=rf"^{tmp_path}/chat_format.json: no readable chat format"):
            read_format(tmp_path)


def test_the_system_text_goes_before_a_conversation_without_one():
    system = {"role": "system", "content": "Be brief."}
    assert FULL.messages(TALK) == [system, *TALK]
    own = [{"role": "system", "content": "Be long."}, *TALK]
    assert FULL.messages(own) == own
    assert ChatFormat().messages(TALK) == TALK


def test_a_configs_format():
    data = DataConfig(system="Be brief.", pad_targets="all", pad_to_multiple=8).model_dump()
    wrapped = {"prompt": "question", "reasoning": "thoughts", "answer": "attempt"}
    found = format_of_settings(data, [{"prompt": "p", "response": "r"}, wrapped], PLAIN)
    expected = ChatFormat("Be brief.", wrapping="<reasoning>, <answer>", template=PLAIN)
    assert found == replace(expected, pad_targets="all", pad_to_multiple=8)
    assert format_of_settings(data | {"reasoning": "tags"}, [], PLAIN) == replace(found, reasoning="tags")
    assert format_of_settings(data, [{"prompt": "p", "answer": None}], None).wrapping is None
    with_clock = PLAIN + "{{ strftime_now('%d') }}"
    clocks = [format_of_settings(data | {"clock": "2026-01-02"}, [], text).clock for text in (with_clock, PLAIN, None)]
    assert clocks == ["2026-01-02", None, None]


def test_differences():
    other = ChatFormat("Be brief.", pad_targets="none", template="another")
    assert FULL.differences(other, "clock", "wrapping", "train_on") == [
        ("data.pad_targets", "all", "none"),
        ("data.pad_to_multiple", "48", "1"),
        ("chat template", "another", "this"),
    ]
