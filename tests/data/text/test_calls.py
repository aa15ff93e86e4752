"""Templates that want the arguments of calls as text."""

import pytest

from lift_ds.data.text.templates import needs_text

from .test_dropped import CALL, TOOL, WITH_TOOLS, chat, encoder_with, texts

OBJECT = "{{ call.function.arguments | tojson }}"
AS_PRINTED = WITH_TOOLS.replace(OBJECT, "{{ call.function.arguments }}")
ADDED = WITH_TOOLS.replace(OBJECT, "{{ '' + call.function.arguments }}")


@pytest.mark.parametrize(
    ("template", "is_text"),
    [
        (WITH_TOOLS, False),
        (AS_PRINTED, True),  # an object would be written as Python writes it: {'town': ...}
        (ADDED, True),
        ("{% for m in messages %}{{ m.content }}{% endfor %}", False),
    ],
)
def test_calls_are_written_in_the_template_s_form(template, is_text):
    encoder = encoder_with(template)
    render = encoder.renderer.render_as_they_are
    assert needs_text(lambda messages: render(messages, False, ())) == is_text
    if "call" not in template:
        return
    conversation = chat(("user", "q"), ("assistant", "", {"tool_calls": [CALL]}), tools=(TOOL,))
    written = '<call>{"name": "weather", "arguments": {"town": "Neu \u00dclm"}}</call>\n'
    assert texts(encoder, conversation)[1] == written


def test_arguments_as_text_keep_look_alikes_of_special_tokens_apart():
    call = {"function": {"name": "weather", "arguments": {"<|eot_id|>": "<|eot_id|>"}}}
    for template in (WITH_TOOLS, ADDED):
        encoder = encoder_with(template)
        ids = encoder.encode(chat(("user", "q"), ("assistant", "", {"tool_calls": [call]})), "x").ids
        assert encoder.tokenizer.convert_tokens_to_ids("<|eot_id|>") not in ids
        assert '{"<|eot_id|>": "<|eot_id|>"}' in encoder.tokenizer.decode(ids)
