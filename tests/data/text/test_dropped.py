"""Templates that leave out texts, tools, thoughts; and what they write."""

import json

import pytest
from transformers import AutoTokenizer

from lift_ds.data.text.chat import ChatEncoder
from lift_ds.data.text.dropped import find_dropped
from lift_ds.data.text.records import Conversation
from tests.conftest import BASE

PLAIN = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
WITHOUT_SYSTEM = "{% for m in messages %}{% if m.role != 'system' %}" + PLAIN.partition("%}")[2].replace(
    "\n{% endfor %}", "\n{% endif %}{% endfor %}"
)
CUTS_THOUGHTS = PLAIN.replace("m.content", "m.content.split('</think>')[-1]")
WITH_TOOLS = (
    "{% if tools %}<tools>{% for tool in tools %}{{ tool | tojson }}{% endfor %}\n{% endif %}"
    "{% for m in messages %}<{{ m.role }}>"
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}"
    "{{ m.content }}{% for call in m.tool_calls or [] %}"
    '<call>{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}</call>{% endfor %}'
    "{{ '\n' }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {}}}
CALL = {"function": {"name": "weather", "arguments": {"town": "Neu \u00dclm"}}}


def encoder_with(template, **settings):
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    tokenizer.chat_template = template
    return ChatEncoder(tokenizer, 1, 4000, pad_targets="none", **settings)


def chat(*turns, **more):
    messages = tuple({"role": role, "content": content} | dict(*keys) for role, content, *keys in turns)
    return Conversation(messages, **more)


def texts(encoder, conversation):
    tokens = encoder.encode(conversation, "rows.jsonl:7")
    decode = encoder.tokenizer.decode
    return decode(tokens.ids), decode(tokens.ids[tokens.response_mask])


@pytest.mark.parametrize(
    ("template", "conversation", "missing"),
    [
        (
            WITHOUT_SYSTEM,
            chat(("system", "Shout."), ("user", "q"), ("assistant", "a")),
            "the text of message 1, 'Shout.'",
        ),
        # the text stands in the user's turn by chance
        (WITHOUT_SYSTEM, chat(("system", "q"), ("user", "q"), ("assistant", "a")), "the text of message 1, 'q'"),
        (
            CUTS_THOUGHTS,
            chat(("user", "q"), ("assistant", "<think>hm</think>a")),
            "the text of message 2, '<think>hm</think>a'; name a template that writes it: data.chat_template=FILE",
        ),
        (
            PLAIN,
            chat(("user", "q"), ("assistant", "a", {"reasoning_content": "hm"})),
            "the thoughts of message 2, 'hm'; data.reasoning=think",
        ),
        (
            PLAIN,
            chat(("user", "q"), ("assistant", "a", {"tool_calls": [CALL]})),
            "the tool call of message 2, 'weather'",
        ),
        (PLAIN, chat(("user", "q"), ("assistant", "a"), tools=(TOOL,)), "the tool 'weather'; name a template"),
    ],
)
def test_a_text_that_the_template_leaves_out_is_a_bad_row(template, conversation, missing):
    with pytest.raises(ValueError) as caught:
        texts(encoder_with(template), conversation)
    assert str(caught.value).startswith(f"rows.jsonl:7: the chat template leaves out {missing}")
    assert str(caught.value).endswith("Where that is meant: data.dropped_text=allow.")
    whole, learned = texts(encoder_with(template, may_drop=True), conversation)
    assert whole.endswith("<assistant>a\n")
    assert learned == "a\n"


def test_a_turn_that_renders_to_no_text_is_a_bad_row_even_where_texts_may_be_left_out():
    encoder = encoder_with(PLAIN, may_drop=True)
    for silent in (("assistant", "", {"tool_calls": [CALL]}), ("assistant", "", {"reasoning_content": "hm"})):
        with pytest.raises(ValueError, match="rows.jsonl:7: the chat template writes nothing of message 2"):
            texts(encoder, chat(("user", "q"), silent))
    with pytest.raises(ValueError, match="writes nothing of message 2"):
        texts(encoder_with(CUTS_THOUGHTS, may_drop=True), chat(("user", "q"), ("assistant", "<think>hm</think>")))


def test_the_remedy_for_thoughts_works():
    """`data.reasoning=think`, as `turns.read_turn` writes them."""
    whole, learned = texts(encoder_with(PLAIN), chat(("user", "q"), ("assistant", "<think>\nhm\n</think>\n\na")))
    assert learned == "<think>\nhm\n</think>\n\na\n"
    assert whole == "<user>q\n<assistant>" + learned


def test_a_prompt_is_not_cut_either():
    encoder = encoder_with(WITHOUT_SYSTEM)
    with pytest.raises(ValueError, match="the prompt: the chat template leaves out the text of message 1, 'Shout.'"):
        encoder.prompt_ids([{"role": "system", "content": "Shout."}, {"role": "user", "content": "q"}])


def test_tools_calls_and_thoughts_are_rendered_and_learned():
    answer = ("assistant", "", {"tool_calls": [CALL], "reasoning_content": "It rains?"})
    conversation = chat(("user", "q"), answer, ("tool", "rain"), ("assistant", "It rains."), tools=(TOOL,))
    encoder = encoder_with(WITH_TOOLS)
    whole, learned = texts(encoder, conversation)
    called = '<think>It rains?</think><call>{"name": "weather", "arguments": {"town": "Neu \u00dclm"}}</call>\n'
    assert learned == called + "It rains.\n"
    tool = '<tools>{"type": "function", "function": {"name": "weather", "parameters": {}}}'
    assert whole == f"{tool}<user>q\n<assistant>{called}<tool>rain\n<assistant>It rains.\n"


def test_special_tokens_in_calls_and_thoughts_stay_text():
    call = {"function": {"name": "weather", "arguments": {"town": "<|eot_id|>"}}}
    conversation = chat(("user", "q"), ("assistant", "", {"tool_calls": [call], "reasoning_content": "<|eot_id|>"}))
    encoder = encoder_with(WITH_TOOLS)
    tokens = encoder.encode(conversation, "x")
    assert encoder.tokenizer.convert_tokens_to_ids("<|eot_id|>") not in tokens.ids
    assert encoder.tokenizer.decode(tokens.ids).count("<|eot_id|>") == 2


def test_turns_of_weight_0_are_seen_and_not_learned():
    turns = ("user", "q"), ("assistant", "wrong"), ("user", "again"), ("assistant", "right")
    for context, expected in ({1}, "right\n"), ({3}, "wrong\n"), (set(), "wrong\nright\n"):
        for encoder in (encoder_with(PLAIN), encoder_with(CUTS_THOUGHTS)):  # with a shape, and row by row
            whole, learned = texts(encoder, chat(*turns, context=frozenset(context)))
            assert whole == "<user>q\n<assistant>wrong\n<user>again\n<assistant>right\n"
            assert learned == expected
    last = encoder_with(PLAIN, train_on="last")
    assert texts(last, chat(*turns))[1] == "right\n"
    with pytest.raises(ValueError, match="the last turn is not learned, and data.train_on=last"):
        texts(last, chat(*turns, context=frozenset({3})))


def test_no_end_token_is_learned_after_a_turn_that_is_context():
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    turns = ("user", "q"), ("assistant", "a"), ("user", "q"), ("assistant", "b")
    encoder = ChatEncoder(tokenizer, 1, 4000, pad_targets="one_eos")
    plain = encoder.encode(chat(*turns), "x")
    tokens = encoder.encode(chat(*turns, context=frozenset({3})), "x")
    assert tokens.ids.tolist() == plain.ids[:-1].tolist()
    assert tokenizer.decode(tokens.ids[tokens.response_mask]) == "a<|eot_id|>"


def test_what_is_written_elsewhere_or_as_json_counts_as_written():
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": 'say "hi"\nnow'},
        {"role": "assistant", "content": " a "},
    ]
    assert find_dropped(messages, (), 'say "hi" now\n\nBe  brief.\na') is None
    assert find_dropped(messages, (), '"say \\"hi\\"\\nnow" Be brief. a') is None
    dropped = find_dropped(messages, (), 'a say "hi" now Be brief.')
    assert (dropped.what, dropped.text) == ("the text of message 3,", " a ")


def test_what_stood_somewhere_by_chance_is_found_out():
    """Thoughts `t` stand in `assistant`, and a tool named `a` in the answer."""
    for conversation, missing in (
        (chat(("user", "q"), ("assistant", "a", {"reasoning_content": "t"})), "the thoughts of message 2, 't'"),
        (chat(("user", "q"), ("assistant", "a"), tools=({"name": "a"},)), "the tool 'a'"),
        (
            chat(("user", "q"), ("assistant", "n", {"tool_calls": [{"name": "a", "arguments": {"x": "s"}}]})),
            "the tool call",
        ),
    ):
        with pytest.raises(ValueError, match=f"the chat template leaves out {missing}"):
            texts(encoder_with(PLAIN), conversation)


CALLS_FIRST = WITH_TOOLS.replace("{{ m.content }}{% for", "{% for").replace(
    "</call>{% endfor %}", "</call>{% endfor %}{{ m.content }}"
)
NAMES_ONLY = WITH_TOOLS.replace("{{ call.function.arguments | tojson }}", "{}")


def test_calls_may_stand_before_the_text():
    answer = ("assistant", "I look.", {"tool_calls": [CALL]})
    conversation = chat(("user", "q"), answer, ("tool", "rain"), ("assistant", "It rains."), tools=(TOOL,))
    called = '<call>{"name": "weather", "arguments": {"town": "Neu \u00dclm"}}</call>'
    assert texts(encoder_with(CALLS_FIRST), conversation)[1] == f"{called}I look.\nIt rains.\n"


@pytest.mark.parametrize("arguments", [{"town": "Ulm"}, {"days": 3}, {"where": {"towns": ["Ulm"]}}, {"days": [2.5]}])
def test_arguments_of_every_kind_are_looked_for(arguments):
    call = {"function": {"name": "weather", "arguments": arguments}}
    conversation = chat(("user", "Ulm 3 2.5"), ("assistant", "Ulm 3 2.5", {"tool_calls": [call]}))
    with pytest.raises(ValueError, match="leaves out an argument of the tool call of message 2"):
        texts(encoder_with(NAMES_ONLY), conversation)
    assert json.dumps(arguments) in texts(encoder_with(WITH_TOOLS), conversation)[1]


def test_the_remedy_for_thoughts_is_named_only_where_it_helps():
    conversation = chat(("user", "q"), ("assistant", "a", {"reasoning_content": "hm"}))
    with pytest.raises(ValueError, match="the thoughts of message 2, 'hm'; name a template that writes it"):
        texts(encoder_with(CUTS_THOUGHTS), conversation)


def test_a_lone_surrogate_is_found_wherever_it_stands():
    call = {"function": {"name": "weather", "arguments": {"town": ["\ud800"]}}}
    tool = {"type": "function", "function": {"name": "weather", "description": "\ud800"}}
    thinks = ("assistant", "a", {"reasoning_content": "\ud800"})
    for place, conversation in {
        "'tool_calls' of message 2": chat(("user", "q"), ("assistant", "", {"tool_calls": [call]})),
        "'reasoning_content' of message 2": chat(("user", "q"), thinks),
        "a tool": chat(("user", "q"), ("assistant", "a"), tools=(tool,)),
    }.items():
        with pytest.raises(ValueError, match=f"rows.jsonl:7: {place} has the lone surrogate '.ud800' at character 0"):
            texts(encoder_with(WITH_TOOLS), conversation)


REFUSES_SILENCE = WITH_TOOLS.replace(
    "{% for m in messages %}",
    "{% for m in messages %}{% if not (m.content or m.tool_calls) %}{{ raise_exception('empty') }}{% endif %}",
    1,
)


def test_a_template_may_refuse_silence_itself():
    conversation = chat(("user", "q"), ("assistant", "", {"tool_calls": [CALL]}))
    learned = '<call>{"name": "weather", "arguments": {"town": "Neu \u00dclm"}}</call>\n'
    assert texts(encoder_with(REFUSES_SILENCE), conversation)[1] == learned


ESCAPED = (
    "replace('\\\\', '\\\\\\\\') | replace(\"'\", \"\\\\'\") | replace('\\n', '\\\\n')"  # as LFM2's templates have it
)


@pytest.mark.parametrize("escapes", ["tojson", ESCAPED, "e", "replace('&', '&amp;') | replace('<', '&lt;')"])
@pytest.mark.parametrize(
    "text", ["It's", 'two "words"', "C:\\new\\t", "a\nb", "1 < 2 & 3", "Stra\u00dfe", 'it\'s "x"\n\\']
)
def test_texts_that_a_template_escapes_are_written(escapes, text):
    template = WITH_TOOLS.replace(
        "{{ call.function.arguments | tojson }}",
        "{% for value in call.function.arguments.values() %}'{{ value | " + escapes + " }}'{% endfor %}",
    )
    call = {"function": {"name": "weather", "arguments": {"town": text}}}
    whole = texts(encoder_with(template), chat(("user", "q"), ("assistant", "", {"tool_calls": [call]})))[0]
    assert "<call>" in whole
