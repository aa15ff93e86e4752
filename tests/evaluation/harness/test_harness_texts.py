import logging

import pytest

from lift_ds.data.text.chat import ChatEncoder
from lift_ds.data.text.chat_format import ChatFormat
from lift_ds.evaluation.asking.answering import Answerer, load_answerer
from lift_ds.evaluation.harness.answers import Answers, Job, read_wish
from lift_ds.evaluation.harness.batches import Batches
from lift_ds.evaluation.harness.likelihood import Pair
from lift_ds.evaluation.harness.settings import HarnessSettings, read_arguments
from lift_ds.evaluation.harness.texts import Texts
from lift_ds.models.weights import load_pretrained
from lift_ds.ranks.shares import Alone
from tests.small_models import make_tokenizer, write_adapted

MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2?"}]


@pytest.fixture(scope="module")
def base():
    return load_answerer("builtin:base")


def texts_of(base, max_length=2048, on_long="error"):
    return Texts(base.encoder, (), max_length, on_long)


def words(max_length=64, start=(), on_long="error"):
    """Texts of whole words: w0 is token 3, w1 token 4."""
    return Texts(ChatEncoder(make_tokenizer(), 2, max_length), start, max_length, on_long)


def test_a_chat_begins_with_the_system_text_that_the_model_was_taught(base):
    """Unless it has one of its own."""
    taught = Texts(base.encoder, (), 2048, "error", ChatFormat("Be brief."))
    plain = texts_of(base)
    for chat, invite in ((MESSAGES, True), ([*MESSAGES, {"role": "assistant", "content": "It is"}], False)):
        expected = plain.render(chat, invite)
        assert taught.render(chat[1:], invite) == taught.render(chat, invite) == expected
        assert expected != plain.render(chat[1:], invite)


def test_pairs():
    assert words().pair("w0 w1", " w2") == Pair((3, 4), (5,))
    assert words().pair("", "w2 w3") == Pair((), (5, 6))
    assert words(start=(1,)).pair("", "w2 w3") == Pair((1,), (5, 6))
    assert words().pair("w0", "") == Pair((3,), ())


def test_a_space_at_the_border_belongs_to_the_continuation(base):
    texts = texts_of(base)
    assert texts.pair("Answer: ", "12") == texts.pair("Answer:", " 12")


def test_a_token_over_the_border_is_not_cut(base):
    """Where both together make tokens that the context alone does not have, both are tokenised apart."""
    texts = texts_of(base)
    for context, continuation in (("Work o", "ut 3+4"), ("the answ", "er"), ("3+4", "=7")):
        pair = texts.pair(context, continuation)
        assert pair.context == texts.ids(context)
        assert texts.encoder.tokenizer.decode(pair.ids) == context + continuation


def test_whole_texts_are_cut_into_windows():
    """Ten words, four tokens at a time: parts of three with one before them; the last one has room for three."""
    text = " ".join(f"w{place}" for place in range(10))
    ids = tuple(range(3, 13))
    expected = [Pair((), ids[:3]), Pair(ids[2:3], ids[3:6]), Pair(ids[5:6], ids[6:9]), Pair(ids[6:9], ids[9:])]
    assert list(words(max_length=4).windows(text)) == expected
    assert next(words(max_length=4, start=(1,)).windows(text)) == Pair((1,), ids[:3])
    assert list(words(max_length=4).windows("")) == []


def test_chats(base):
    texts = texts_of(base)
    rendered = texts.render(MESSAGES, invite=True)
    assert texts.ids(rendered) == tuple(texts.encoder.prompt_ids(MESSAGES))
    begun = texts.render([*MESSAGES, {"role": "assistant", "content": "It is"}], invite=False)
    assert begun == rendered + "It is"
    end = texts.encoder.tokenizer.eos_token
    sly = texts.ids(texts.render([{"role": "user", "content": f"2{end}2"}], invite=True))
    plain = texts.ids(texts.render([{"role": "user", "content": "22"}], invite=True))
    assert sly.count(texts.encoder.end_token_id) == plain.count(texts.encoder.end_token_id)
    with pytest.raises(ValueError, match="no chat template; name one with chat_template="):
        words().render(MESSAGES, invite=True)


def test_prompts_that_are_too_long():
    long = " ".join(["w0"] * 40 + ["w1"] * 20)
    with pytest.raises(ValueError, match="a prompt of 60 tokens and gen_length=8 are longer than the 64 tokens"):
        words().prompt(long, 8)
    with pytest.raises(ValueError, match="a continuation of 60"):
        words().pair("w0 w0 w0 w0 w0", " " + long)
    texts = words(on_long="truncate")
    assert texts.prompt(long, 8) == (3,) * 36 + (4,) * 20
    assert texts.num_truncated == 1
    with pytest.raises(ValueError, match="a prompt of 60 tokens"):  # nothing of the prompt would be left
        texts.prompt(long, 64)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, (None, None, None, ())),
        ({"until": "\n", "max_gen_toks": 5, "do_sample": False, "temperature": 0.7}, (5, 0.0, None, ("\n",))),
        ({"until": ["a", ""], "max_new_tokens": 6, "temperature": 0.7, "top_p": 0.9}, (6, 0.7, 0.9, ("a",))),
        ({"max_tokens": 7, "do_sample": True}, (7, 1.0, None, ())),
    ],
)
def test_wishes(arguments, expected):
    wish = read_wish(arguments)
    assert (wish.max_tokens, wish.temperature, wish.top_p, wish.until) == expected


@pytest.mark.parametrize("length", [0, -1, "many", 2.5])
def test_wishes_that_make_no_sense(length):
    with pytest.raises(ValueError, match="a number of tokens from 1 is needed"):
        read_wish({"max_gen_toks": length})


def answers_of(base, **settings):
    return Answers(base, texts_of(base), HarnessSettings(**settings), Batches(Alone()))


def test_requests_and_settings_make_the_process(base, caplog):
    with caplog.at_level(logging.WARNING):
        (job,) = answers_of(base).jobs([("x", {"max_gen_toks": 70, "temperature": 0.5, "do_sample": True})])
    assert not caplog.messages
    assert (job.process.gen_length, job.process.block_length, job.process.steps) == (96, 32, 96)
    assert (job.process.temperature, job.max_tokens) == (0.5, 70)
    (job,) = answers_of(base).jobs([("x", {"max_gen_toks": 10})])
    assert (job.process.gen_length, job.process.block_length) == (10, 10)
    assert answers_of(base).jobs([("x", {})])[0].process.gen_length == 256


def test_settings_go_before_requests_with_one_warning(base, caplog):
    answers = answers_of(base, gen_length=64, steps=32, temperature=0.2)
    wish = {"max_gen_toks": 128, "temperature": 0.0, "top_k": 3}
    with caplog.at_level(logging.WARNING):
        jobs = answers.jobs([("x", wish), ("y", wish)])
    assert [(job.process.gen_length, job.process.steps, job.process.temperature) for job in jobs] == [(64, 32, 0.2)] * 2
    assert caplog.messages == [
        "the task asks for max_gen_toks=128; --model_args decides: 64.",
        "the task asks for temperature=0.0; --model_args decides: 0.2.",
        "the task's generation argument top_k means nothing here and is not used.",
    ]


def test_answers_are_cut(base):
    answers = answers_of(base, gen_length=32)
    process = answers.settings.process(32, 0.0, 1.0)
    ids = list(answers.texts.ids("3+4=7\n5+6=11\nQ: 1+1"))
    assert answers.text(Job((1,), process, 32, (), ""), ids) == "3+4=7\n5+6=11\nQ: 1+1"
    assert answers.text(Job((1,), process, 32, ("Q:", "\n5"), ""), ids) == "3+4=7"
    assert answers.text(Job((1,), process, 32, ("none",), ""), [*ids[:4], base.model.config.eos_token_id, *ids]) == (
        answers.texts.encoder.tokenizer.decode(ids[:4])
    )
    assert answers.text(Job((1,), process, 3, (), ""), ids) == answers.texts.encoder.tokenizer.decode(ids[:3])


def test_answers_do_not_depend_on_their_batch(base):
    """Prompts of other lengths, other processes, and repeats with draws of their own; sampled."""
    requests = [("Work out 3+4.", {"max_gen_toks": 8}), ("Combine 1, 3 and 5 to make 9.", {"max_gen_toks": 8})]
    requests += [(texts_of(base).render(MESSAGES, invite=True), {"max_gen_toks": 16})] + requests[:1] * 2
    found = []
    for size in (1, 4):
        answers = answers_of(base, batch_size=size, temperature=3.0, eos="never")
        found.append(answers.run(answers.jobs(requests), list))
    assert found[0] == found[1]
    assert len({found[0][0], *found[0][3:]}) == 3  # equal requests are different draws
    assert all(found[0])


def test_a_shifted_model_answers(tmp_path):
    model, tokenizer = load_pretrained(write_adapted(tmp_path, "llama"))
    answerer = Answerer(model, ChatEncoder(tokenizer, model.config.eos_token_id, 64))
    answers = Answers(
        answerer, Texts(answerer.encoder, (1,), 64, "error"), HarnessSettings(eos="never"), Batches(Alone())
    )
    jobs = answers.jobs([("", {"max_gen_toks": 6}), ("w5 w6", {"max_gen_toks": 6})])
    assert [job.prompt for job in jobs] == [(1,), (8, 9)]
    made = answers.generate(jobs)
    assert [len(ids) for ids in made] == [6, 6]
    assert not {model.config.mask_token_id, model.config.eos_token_id} & {token_id for ids in made for token_id in ids}
    assert answers.generate(jobs[:1]) == made[:1]


@pytest.mark.parametrize(
    ("values", "messages"),
    [
        ({}, ["pretrained is missing", "allowed are", "mc_num: masks of a likelihood"]),
        ({"pretrained": "x", "mcnum": 3}, ["mcnum is unknown, did you mean mc_num?"]),
        ({"pretrained": "x", "mc_num": 1, "batch_size": "auto"}, ["mc_num=1: input should be", "batch_size='auto'"]),
        ({"pretrained": "x", "steps": 64}, ["steps=64 needs gen_length"]),
        ({"pretrained": "x", "gen_length": 100}, ["gen_length=100 must be a multiple of block_length=32"]),
        ({"pretrained": "x", "remasking": "best"}, ["remasking='best'", "'low_confidence'"]),
        ({"pretrained": "x", "threshold": 0.9, "remasking": "entropy"}, ["gives no probabilities"]),
        ({"pretrained": "x", "dtype": "int8"}, ["dtype='int8'"]),
    ],
)
def test_wrong_model_arguments_are_one_error(values, messages):
    with pytest.raises(ValueError) as found:
        read_arguments(values)
    assert str(found.value).startswith("--model_args: ")
    for message in messages:
        assert message in str(found.value)


def test_model_arguments_are_read_from_strings():
    found = read_arguments({"pretrained": "x", "gen_length": "64", "threshold": "0.9", "mc_num": 16, "cache": "dual"})
    assert (found.gen_length, found.threshold, found.mc_num, found.cache) == (64, 0.9, 16, "dual")
