import pytest
from transformers import AutoTokenizer

from lift_ds.data.text.chat import ChatEncoder, TooLongError
from lift_ds.data.text.records import Conversation
from lift_ds.data.text.rendering import find_invitation

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TURNS = (("user", "How many?"), ("assistant", "Three."), ("user", "And now?"), ("assistant", "Four."))


def chat(*turns):
    return Conversation(messages=tuple({"role": role, "content": content} for role, content in turns))


@pytest.fixture
def tokenizer(tiny_dir):
    return AutoTokenizer.from_pretrained(tiny_dir)


def split(encoder, conversation):
    """Decoded text of the prompt tokens and of the learned ones."""
    tokens = encoder.encode(conversation, "rows.jsonl:1")
    decode = encoder.tokenizer.decode
    return decode(tokens.ids[~tokens.response_mask]), decode(tokens.ids[tokens.response_mask]), tokens


def test_a_template_that_always_invites(tokenizer):
    invitation = "<|start_header_id|>assistant<|end_header_id|>\n\n"
    assert find_invitation(tokenizer) == invitation
    prompt, learned, _ = split(ChatEncoder(tokenizer, 1, 100), chat(*TURNS[:2]))
    assert prompt == f"<|startoftext|><|start_header_id|>user<|end_header_id|>\n\nHow many?<|eot_id|>{invitation}"
    assert learned == "Three.<|eot_id|><|endoftext|>"


def test_a_template_that_asks(tokenizer):
    tokenizer.chat_template = CHATML
    assert find_invitation(tokenizer) == "<|im_start|>assistant\n"
    prompt, learned, _ = split(ChatEncoder(tokenizer, 1, 200), chat(*TURNS[:2]))
    assert prompt == "<|im_start|>user\nHow many?<|im_end|>\n<|im_start|>assistant\n"
    assert learned == "Three.<|im_end|>\n<|endoftext|>"


@pytest.mark.parametrize("template", [None, CHATML])
def test_several_turns(tokenizer, template):
    tokenizer.chat_template = template or tokenizer.chat_template
    end = "<|im_end|>\n" if template else "<|eot_id|>"
    _, every, _ = split(ChatEncoder(tokenizer, 1, 200), chat(*TURNS))
    _, last, _ = split(ChatEncoder(tokenizer, 1, 200, train_on="last"), chat(*TURNS))
    assert every == f"Three.{end}Four.{end}<|endoftext|>"
    assert last == f"Four.{end}<|endoftext|>"


def test_prompt_tokens_are_those_of_inference(tokenizer):
    encoder = ChatEncoder(tokenizer, 1, 100)
    tokens = encoder.encode(chat(*TURNS[:2]), "x")
    prompt = encoder.prompt_ids([{"role": "user", "content": "How many?"}])
    assert tokens.ids[: len(prompt)].tolist() == prompt
    assert not tokens.response_mask[: len(prompt)].any()


@pytest.mark.parametrize(
    ("pad_targets", "multiple", "num_end", "num_filler"), [("none", 1, 0, 0), ("one_eos", 1, 1, 0), ("all", 8, 4, 3)]
)
def test_end_tokens(tokenizer, pad_targets, multiple, num_end, num_filler):
    # the response "Three.<|eot_id|>" has 4 tokens here
    encoder = ChatEncoder(tokenizer, 1, 100, pad_targets=pad_targets, pad_to_multiple=multiple)
    tokens = encoder.encode(chat(*TURNS[:2]), "x")
    response = tokens.ids[tokens.response_mask].tolist()
    assert len(tokenizer("Three.<|eot_id|>", add_special_tokens=False).input_ids) == 4
    assert response[4:] == [tokenizer.eos_token_id] * num_end
    assert tokens.filler_mask.sum() == num_filler
    assert tokens.filler_mask[len(tokens.ids) - num_filler :].all()


def test_a_document_whose_first_token_is_learned_gets_a_start_token(tokenizer):
    """A shifted model cannot predict a first token; what begins with a prompt is left as it is."""
    plain, shifted = ChatEncoder(tokenizer, 1, 100), ChatEncoder(tokenizer, 1, 100, start_token_id=0)
    expected = plain.encode(Conversation(text="2+2=4"), "x")
    found = shifted.encode(Conversation(text="2+2=4"), "x")
    assert found.ids.tolist() == [0, *expected.ids]
    assert found.response_mask.tolist() == [False, *expected.response_mask]
    assert shifted.encode(chat(*TURNS), "x").ids.tolist() == plain.encode(chat(*TURNS), "x").ids.tolist()


def test_a_start_token_counts_in_the_length(tokenizer):
    num_tokens = len(tokenizer("2+2=4").input_ids) + 1  # with the end token
    ChatEncoder(tokenizer, 1, num_tokens).encode(Conversation(text="2+2=4"), "x")
    with pytest.raises(TooLongError, match=f"{num_tokens + 1} tokens"):
        ChatEncoder(tokenizer, 1, num_tokens, start_token_id=0).encode(Conversation(text="2+2=4"), "x")


def test_plain_text_is_learned_whole(tokenizer):
    tokens = ChatEncoder(tokenizer, 1, 100).encode(Conversation(text="2+2=4"), "x")
    assert tokens.response_mask.all()
    assert tokenizer.decode(tokens.ids) == "2+2=4<|endoftext|>"


def test_long_rows(tokenizer):
    long = chat(("user", "How many?"), ("assistant", "Three. " * 40))
    with pytest.raises(TooLongError, match=r"rows.jsonl:1: \d+ tokens, more than data.max_length=60"):
        split(ChatEncoder(tokenizer, 1, 60), long)
    _, learned, tokens = split(ChatEncoder(tokenizer, 1, 60, truncate=True), long)
    assert len(tokens.ids) == len(tokens.response_mask) == len(tokens.filler_mask) == 60
    assert learned.startswith("Three.")


def test_a_prompt_that_is_too_long_is_never_cut(tokenizer):
    long = chat(("user", "How many? " * 40), ("assistant", "Three."))
    with pytest.raises(TooLongError, match="rows.jsonl:1: the prompt alone has"):
        split(ChatEncoder(tokenizer, 1, 60, truncate=True), long)


def test_a_template_that_rewrites_history(tokenizer):
    tokenizer.chat_template = "{{ messages | length }}{% for m in messages %}[{{ m['content'] }}]{% endfor %}"
    with pytest.raises(ValueError, match="rewrites earlier turns"):
        split(ChatEncoder(tokenizer, 1, 60), chat(*TURNS[:2]))


def test_a_bad_row_leaves_the_others_alone(tokenizer):
    good = chat(*TURNS[:2])
    rows = [good, chat(("user", "a\ud83d"), TURNS[1]), chat(("user", "\ufdd0"), TURNS[1]), good]
    rows += [chat(("user", "x " * 300), TURNS[1]), Conversation(text="\udc00"), chat(("user", "\x00"), TURNS[1])]
    encoder = ChatEncoder(tokenizer, 1, 100)
    found = encoder.encode_batch(rows, [f"rows.jsonl:{number}" for number in range(1, 8)])
    assert found[0].ids.tolist() == found[3].ids.tolist() == encoder.encode(good, "x").ids.tolist()
    assert str(found[1]).startswith(r"rows.jsonl:2: text 1 of 2 has the lone surrogate '\ud83d' at character 1")
    assert "rows.jsonl:3: " in str(found[2]) and "U+FDD0" in str(found[2])
    assert isinstance(found[4], TooLongError)
    assert str(found[5]).startswith(r"rows.jsonl:6: text 1 of 1 has the lone surrogate '\udc00' at character 0")
    assert "\x00" in tokenizer.decode(found[6].ids)
    assert encoder.encode_batch([], []) == []


def test_what_a_template_raises_is_one_row_s_error(tokenizer):
    refusal = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    tokenizer.chat_template = refusal + CHATML
    encoder = ChatEncoder(tokenizer, 1, 100)
    found = encoder.encode_batch([chat(*TURNS[:2]), chat(("system", "x"), *TURNS[:2])], ["a:1", "a:2"])
    assert len(found[0].ids)
    assert isinstance(found[1], ValueError) and str(found[1]) == "a:2: TemplateError: no system"


@pytest.mark.parametrize("unit", ["a", "word ", "\n", "\u6f22", "<|eot_id|>"])
def test_a_million_characters(tokenizer, unit):
    text = unit * (1_000_000 // len(unit))
    encoder = ChatEncoder(tokenizer, 1, 10**8, pad_targets="none")
    tokens = encoder.encode(chat(("user", "Repeat."), ("assistant", text)), "x")
    ids = tokens.ids[tokens.response_mask].tolist()
    assert tokenizer.decode(ids) == text.strip() + "<|eot_id|>"
