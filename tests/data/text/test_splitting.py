"""Rendered chats cut at the answers, and what is said where that cannot be; published templates' habits in small."""

import pytest

from lift_ds.data.text.records import Conversation
from lift_ds.data.text.rendering import split_at_answers

from .test_dropped import PLAIN, chat, encoder_with, texts

# Mistral's: no header; what closes a user's turn invites the answer.
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }}[/INST]"
    "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
# Qwen3's: empty thoughts in the last answer only.
QWEN3 = (
    "{% for m in messages %}<{{ m.role }}>"
    "{% if m.role == 'assistant' and loop.last %}<think></think>{% endif %}{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
# DeepSeek-R1's: the invitation opens thoughts that the answer does not.
OPENS_THOUGHTS = PLAIN.replace("<assistant>{% endif", "<assistant><think>{% endif")
FOUR = chat(("user", "q"), ("assistant", "a"), ("user", "r"), ("assistant", "b"))


def test_a_template_without_a_header_before_answers():
    encoder = encoder_with(MISTRAL)
    assert encoder.renderer.invitation == ""
    whole, learned = texts(encoder, FOUR)
    start, end = encoder.tokenizer.bos_token, encoder.tokenizer.eos_token
    assert whole == f"{start}[INST] q[/INST] a{end}[INST] r[/INST] b{end}"
    assert learned == f" a{end} b{end}"


def test_the_remedy_for_earlier_turns_that_change_helps():
    with pytest.raises(
        ValueError, match="rows.jsonl:7: .* rewrites earlier turns when turn 4 .*data.train_on=last, or"
    ):
        texts(encoder_with(QWEN3), FOUR)
    whole, learned = texts(encoder_with(QWEN3, train_on="last"), FOUR)
    assert learned == "<think></think>b\n"
    assert whole == "<user>q\n<assistant>a\n<user>r\n<assistant><think></think>b\n"


def test_a_remedy_that_would_not_help_is_not_named():
    """The last turn is not learned; or the template changes turns whatever is learned."""
    context = Conversation(FOUR.messages, context=frozenset([3]))
    counts = "{{ messages | length }}" + PLAIN
    for template, conversation in ((QWEN3, context), (counts, FOUR)):
        with pytest.raises(ValueError, match="rewrites earlier turns .* name a template that does not") as caught:
            texts(encoder_with(template), conversation)
        assert "train_on" not in str(caught.value)


@pytest.mark.parametrize("train_on", ["all", "last"])
def test_an_answer_that_is_none_to_the_invitation(train_on):
    with pytest.raises(
        ValueError, match="rows.jsonl:7: the chat template invites an answer with '<assistant><think>', "
    ):
        texts(encoder_with(OPENS_THOUGHTS, train_on=train_on), FOUR)
    # where each answer has thoughts, it is one
    thought = chat(("user", "q"), ("assistant", "<think>hm</think>a"))
    assert texts(encoder_with(OPENS_THOUGHTS), thought)[1] == "hm</think>a\n"


def test_what_stands_behind_the_last_learned_turn_is_context():
    pieces = split_at_answers(lambda count, invite: "qarb"[: count + 0], [1], 4, "x")
    assert pieces == [("q", False), ("a", True), ("rb", False)]


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("{% for tool in tools %}{{ tool }}{% endfor %}" + PLAIN, "TypeError: 'NoneType' object is not iterable"),
        ("{{ messages | length }}", "it leaves out a user's text"),
    ],
)
def test_a_template_for_no_plain_chats_is_an_error_of_chats_alone(template, problem):
    encoder = encoder_with(template)
    with pytest.raises(ValueError) as caught:
        texts(encoder, FOUR)
    assert str(caught.value).startswith("rows.jsonl:7: ") and problem in str(caught.value)
    assert len(encoder.encode(Conversation(text="plain"), "x").ids)
