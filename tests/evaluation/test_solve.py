from dataclasses import replace

import pytest
import torch
from transformers import AutoTokenizer

from lift_ds.data.chat import ChatEncoder
from lift_ds.data.tasks import TASKS
from lift_ds.evaluation.solve import held_out_items, solve_items
from lift_ds.models.families import read_config
from lift_ds.sampling.reverse import ReverseProcess
from tests.conftest import OneRank


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
                    logits[row, range(start, start + len(answer)), answer] = 9.0
        return logits

    def head(self, hidden):
        return hidden


def test_scores_are_counted_by_task(encoder, tiny_dir):
    items = held_out_items(9, seed=0)
    known = [item for item in items if item.task != "arithmetic"]
    others = [item for item in items if item.task == "arithmetic"]
    wrong = [replace(item, response="<answer>1</answer>") for item in others[:2]]
    model = Oracle(read_config(tiny_dir), encoder, known + wrong)
    report = solve_items(model, encoder, items, ReverseProcess(48, 48, 48), OneRank())
    assert list(report.scores) == list(TASKS)
    assert [report.scores[name].num_items for name in TASKS] == [3, 3, 3]
    assert report.scores["countdown"].solve_rate == 1.0
    assert report.scores["sudoku"].solve_rate == 1.0
    arithmetic = report.scores["arithmetic"]
    assert (arithmetic.num_solved, arithmetic.num_unparsed) == (0, 1)
    assert report.tokens_per_second > 0


def test_items_are_held_out_and_the_same_every_time():
    assert held_out_items(30, 0) == held_out_items(60, 0)[:30]


def test_answers_end_at_the_first_end_token(encoder):
    for end in ("<|eot_id|><|endoftext|>", "<|eot_id|>", "<|endoftext|>", ""):
        ids = encoder.tokenizer(f"3+4=7{end}", add_special_tokens=False).input_ids
        junk = encoder.tokenizer("9<|endoftext|>", add_special_tokens=False).input_ids if end else []
        assert encoder.answer_text(ids + junk) == "3+4=7"
