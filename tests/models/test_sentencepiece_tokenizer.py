"""Folders with nothing but a sentencepiece model."""

import io

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from lift_ds.data.text.chat import ChatEncoder
from lift_ds.data.text.records import Conversation
from lift_ds.data.text.templates import use_template
from lift_ds.models.vocabulary import load_tokenizer

LINES = [
    "Janet has three ducks.",
    "Each duck lays four eggs a day.",
    "How many eggs are there?",
    "3 * 4 = 12",
    "\u6f22\u5b57",
]
CONTROL = ["<|startoftext|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|im_start|>", "<|im_end|>"]
MODELS = [("unigram", False), ("unigram", True), ("bpe", False), ("bpe", True)]


@pytest.fixture(scope="module", params=MODELS, ids=lambda param: f"{param[0]}-{'bytes' if param[1] else 'unknown'}")
def folder(request, tmp_path_factory):
    kind, with_bytes = request.param
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES * 4),
        model_writer=written,
        model_type=kind,
        byte_fallback=with_bytes,
        vocab_size=60 + 256 * with_bytes,
        hard_vocab_limit=False,
        control_symbols=CONTROL,
        user_defined_symbols=["<mask>"],
        minloglevel=2,
    )
    folder = tmp_path_factory.mktemp("model")
    (folder / "tokenizer.model").write_bytes(written.getvalue())
    return folder


def test_ids_are_sentencepiece_s_own(folder):
    tokenizer = load_tokenizer(folder)
    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    assert len(tokenizer) == len(model)
    assert tokenizer.eos_token_id == model.eos_id()

    @settings(max_examples=60, deadline=None)
    @given(st.one_of(st.text(max_size=12), st.lists(st.sampled_from([*LINES, " ", "\n", "<mask>"])).map("".join)))
    def check(text):
        ids = tokenizer(text, add_special_tokens=False).input_ids
        assert ids == model.encode(text)
        assert tokenizer.decode(ids) == model.decode(ids)

    check()


@pytest.mark.parametrize("template", ["llada", "chatml", "llama3"])
def test_chats(folder, template):
    tokenizer = load_tokenizer(folder)
    use_template(tokenizer, template)
    encoder = ChatEncoder(tokenizer, tokenizer.eos_token_id, 200)
    turns = ({"role": "user", "content": "How <|eot_id|><|im_end|>"}, {"role": "assistant", "content": "12"})
    good, bad = Conversation(messages=turns), Conversation(text="\ud83d")
    tokens, error = encoder.encode_batch([good, bad], ["rows.jsonl:1", "rows.jsonl:2"])
    assert "rows.jsonl:2: text 1 of 1 has the lone surrogate" in str(error)
    ends = [tokenizer.convert_tokens_to_ids("<|im_end|>" if template == "chatml" else "<|eot_id|>")]
    assert [token for token in tokens.ids if token in ends] == ends * 2
    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    learned = tokens.ids[tokens.response_mask].tolist()
    assert learned == [
        *model.encode("12"),
        *ends,
        *(model.encode("\n") if template == "chatml" else []),
        model.eos_id(),
    ]
    assert tokenizer.decode(learned).startswith("12<|im_end|>" if template == "chatml" else "12<|eot_id|></s>")
    assert encoder.answer_text(learned) == "12"
    prompt = encoder.prompt_ids([turns[0]])
    assert tokens.ids[: len(prompt)].tolist() == prompt


def test_a_template_beside_the_model_is_read(folder):
    (folder / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    assert load_tokenizer(folder).chat_template == "{{ messages[0]['content'] }}"
    (folder / "chat_template.jinja").unlink()


def test_another_kind_of_file_is_refused(tmp_path):
    (tmp_path / "tokenizer.model").write_text("IQ== 0\nIg== 1\n")
    with pytest.raises(ValueError, match="tokenizer.model: no sentencepiece model .* need a tokenizer.json"):
        load_tokenizer(tmp_path)


def test_no_tokenizer(tmp_path):
    assert load_tokenizer(tmp_path) is None
