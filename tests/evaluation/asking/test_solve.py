from dataclasses import replace
from functools import partial

import pytest
import torch
from transformers import AutoTokenizer

from lift_ds.data.tasks import MIXTURES, TASKS, Verdict
from lift_ds.data.text.chat import ChatEncoder
from lift_ds.evaluation.asking.solve import (
    Question,
    TaskScore,
    builtin_questions,
    encode_questions,
    held_out_items,
    solve_questions,
)
from lift_ds.models.families import max_length_of, read_config
from lift_ds.ranks.shares import Alone
from lift_ds.sampling.settings import SamplingSettings
from tests.conftest import Share

ONE_BLOCK = SamplingSettings(gen_length=48, block_length=48, steps=48)


def as_questions(items):
    return [Question(item.task, item.question, partial(TASKS[item.task].verify, item.key)) for item in items]


def top_items(count):
    return [MIXTURES["reasoning/top"].item(0, "test", row) for row in range(count)]


@pytest.fixture
def encoder(tiny_dir):
    return ChatEncoder(AutoTokenizer.from_pretrained(tiny_dir), 1, 200)


class Oracle:
    """A model that knows some answers: its logits spell the response to the question in its input."""

    def __init__(self, config, encoder, items):
        self.config = config
        self.encoder = encoder
        self.answers = {self.prompt(item): self.ids(item.response) for item in items}

    def prompt(self, item):
        return tuple(self.encoder.prompt_ids([{"role": "user", "content": item.question}]))

    def ids(self, text):
        return self.encoder.tokenizer(text + "<|endoftext|>", add_special_tokens=False).input_ids

    def encode(self, ids, attention_mask, position_ids):
        logits = torch.zeros(*ids.shape, len(self.encoder.tokenizer))
        logits[..., self.encoder.tokenizer.eos_token_id] = 1.0
        for row in range(len(ids)):
            visible = ids[row][attention_mask[row]].tolist()
            for prompt, answer in self.answers.items():
                if tuple(visible[: len(prompt)]) == prompt:
                    start = ids.shape[1] - len(visible) + len(prompt)
                    answer = answer[: ids.shape[1] - start]
                    logits[row, range(start, start + len(answer)), answer] = 9.0
        return logits

    def head(self, hidden):
        return hidden


def test_scores_are_counted_by_task(encoder, tiny_dir):
    items = top_items(9)
    known = [item for item in items if item.task != "arithmetic"]
    others = [item for item in items if item.task == "arithmetic"]
    wrong = [replace(item, response="<answer>1</answer>") for item in others[:2]]
    model = Oracle(read_config(tiny_dir), encoder, known + wrong)
    report = solve_questions(model, encoder, as_questions(items), ONE_BLOCK, Alone())
    assert list(report.scores) == ["countdown", "sudoku", "arithmetic"]
    assert [score.num_items for score in report.scores.values()] == [3, 3, 3]
    assert report.scores["countdown"].solve_rate == 1.0
    assert report.scores["sudoku"].solve_rate == 1.0
    arithmetic = report.scores["arithmetic"]
    assert (arithmetic.num_solved, arithmetic.num_unparsed) == (0, 1)
    assert report.tokens_per_second > 0
    assert (report.total.num_items, report.total.num_solved, report.total.num_unparsed) == (9, 6, 1)
    assert report.total.solve_rate == 6 / 9 and report.total.parse_failure_rate == 1 / 9
    assert report.total.forwards_per_item == 48
    assert report.solved == [item.task != "arithmetic" for item in items]


def test_ranks_change_nothing(encoder, tiny_dir):
    """Five questions over two ranks: three each, of which one is there twice and counted once."""
    items = top_items(5)
    model = Oracle(read_config(tiny_dir), encoder, items[1:])
    expected = solve_questions(model, encoder, as_questions(items), ONE_BLOCK, Alone())
    shares = [Share(rank, 2) for rank in range(2)]
    for share in shares:
        solve_questions(model, encoder, as_questions(items), ONE_BLOCK, share)
    by_question = torch.stack([share.sums for share in shares]).sum(0).int()
    together = TaskScore(*by_question.sum(0).tolist())
    assert together == expected.total
    assert by_question[:, 1].bool().tolist() == expected.solved
    assert (together.num_items, together.num_solved) == (5, 4)


def test_truncated_answers_and_their_forwards(encoder, tiny_dir):
    """One answer is as long as the space for it, one shorter; the questions are of a task that is none of ours."""
    fits, too_long = (replace(held_out_items(1, 0)[0], question=text) for text in ("3+4", "4+4"))
    fits, too_long = replace(fits, response="7"), replace(too_long, response="1234")
    model = Oracle(read_config(tiny_dir), encoder, [fits, too_long])
    assert len(model.ids("1234")) == 5  # digit by digit, and the end

    def is_seven(generation):
        return Verdict.SOLVED if generation == "7" else Verdict.WRONG

    questions = [Question("sums", item.question, is_seven) for item in (fits, too_long, fits)]
    report = solve_questions(
        model, encoder, questions, SamplingSettings(gen_length=4, block_length=4, steps=2), Alone()
    )
    assert report.scores == {"sums": report.total}
    assert (report.total.num_solved, report.total.num_truncated, report.total.num_forwards) == (2, 1, 6)
    assert report.total.truncation_rate == 1 / 3 and report.total.forwards_per_item == 2


def test_a_question_that_is_too_long_stops_every_rank(encoder, tiny_dir):
    """Rank 0 of two would answer only the short one, and wait for the other."""

    class First(Alone):
        world_size = 2

    config = read_config(tiny_dir)
    texts = ["short", "3+4 " * max_length_of(config)]
    questions = [Question("made", text, lambda generation: Verdict.WRONG) for text in texts]
    with pytest.raises(ValueError, match="longer than the"):
        solve_questions(Oracle(config, encoder, []), encoder, questions, ONE_BLOCK, First())


def test_questions_have_the_system_text_of_the_run(encoder, tiny_dir):
    """As its rows had while it trained."""
    questions = [Question("made", "3+4", lambda generation: Verdict.WRONG)]
    (ids,) = encode_questions(encoder, questions, ONE_BLOCK, read_config(tiny_dir), "Be brief.")
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "3+4"}]
    assert ids == encoder.prompt_ids(turns)
    assert encode_questions(encoder, questions, ONE_BLOCK, read_config(tiny_dir)) == [encoder.prompt_ids(turns[1:])]


def test_items_are_held_out_and_the_same_every_time():
    assert held_out_items(30, 0) == held_out_items(60, 0)[:30]
    asked = builtin_questions(3, 0)
    assert [question.text for question in asked] == [item.question for item in held_out_items(3, 0)]
    assert [question.task for question in asked] == ["countdown/3", "sudoku/4", "arithmetic/3"]
    for question, item in zip(asked, held_out_items(3, 0), strict=True):
        assert question.check(item.response) is Verdict.SOLVED


def test_answers_end_at_the_first_end_token(encoder):
    for end in ("<|eot_id|><|endoftext|>", "<|eot_id|>", "<|endoftext|>", ""):
        ids = encoder.tokenizer(f"3+4=7{end}", add_special_tokens=False).input_ids
        junk = encoder.tokenizer("9<|endoftext|>", add_special_tokens=False).input_ids if end else []
        assert encoder.answer_text(ids + junk) == "3+4=7"
