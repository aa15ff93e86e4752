import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lift_ds.data.tasks import TASKS, Item, Verdict, draw_item, instruction, pretraining_text, split_of
from lift_ds.data.tasks.countdown import Countdown, apply_sign, countdown_key, evaluate_expression
from lift_ds.data.tasks.sudoku import all_grids

COUNT = 300


@pytest.fixture(params=list(TASKS))
def task(request):
    return TASKS[request.param]


def test_worked_responses_are_right(task):
    for split in ("train", "test"):
        for index in range(COUNT):
            item = draw_item(task, 0, split, index)
            assert task.verify(item, item.response) is Verdict.SOLVED


def test_items_are_keyed(task):
    assert draw_item(task, 1, "train", 7) == draw_item(task, 1, "train", 7)
    assert len({draw_item(task, seed, "train", 7) for seed in range(5)}) > 1


def test_splits_are_disjoint(task):
    train = {draw_item(task, 0, "train", index).key for index in range(10 * COUNT)}
    test = {draw_item(task, 0, "test", index).key for index in range(COUNT)}
    assert train and test and not train & test


def test_answers_of_other_items_are_wrong(task):
    items = [draw_item(task, 0, "train", index) for index in range(COUNT)]
    verdicts = [task.verify(one, other.response) for one, other in zip(items, items[1:], strict=False)]
    assert verdicts.count(Verdict.SOLVED) < 0.1 * COUNT
    assert Verdict.UNPARSED not in verdicts


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no tags",
        "<answer></answer>",
        "<answer>x</answer>",
        "<answer>1<answer>2</answer>",
        "<answer>1</answer><answer>2</answer>",
        "<answer>\x00</answer>",
    ],
)
def test_malformed_answers_are_unparsed(task, text):
    assert task.verify(draw_item(task, 0, "test", 0), text) is Verdict.UNPARSED


def test_unknown_split():
    with pytest.raises(ValueError, match="'train' and 'test'"):
        draw_item(TASKS["sudoku"], 0, "dev", 0)


def countdown_item(numbers, target):
    return Item("countdown", "", "", f"countdown {sorted(numbers)} {target}")


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        ("3+7-5", Verdict.SOLVED),
        ("7 - 5 + 3", Verdict.SOLVED),
        ("(3+7)-5", Verdict.SOLVED),
        ("3+7-4-1", Verdict.WRONG),  # other numbers
        ("5", Verdict.WRONG),  # right value, numbers unused
        ("3+7-5+5-5", Verdict.WRONG),  # a number used twice
        ("3+7+5", Verdict.WRONG),
        ("3/0*7+5", Verdict.UNPARSED),
        ("9**9**9**9", Verdict.UNPARSED),
        ("__import__('os')", Verdict.UNPARSED),
        ("3+7-5 = 5", Verdict.UNPARSED),
        ("3.0+7-5", Verdict.UNPARSED),
        ("True+7-5", Verdict.UNPARSED),
        ("-3+7-5", Verdict.UNPARSED),
        ("(" * 150, Verdict.UNPARSED),
        ("1+" * 5000 + "1", Verdict.UNPARSED),
    ],
)
def test_countdown_is_strict_and_never_evaluates(answer, verdict):
    began = time.perf_counter()
    assert Countdown().verify(countdown_item([3, 7, 5], 5), f"<answer>{answer}</answer>") is verdict
    assert time.perf_counter() - began < 1


def test_countdown_uses_exact_fractions():
    # 1/3*3 is 1 exactly; in floats 1/49*49 is not
    assert evaluate_expression("1/49*49")[0] == 1


@given(st.text(max_size=60))
def test_no_text_breaks_the_countdown_verifier(text):
    assert Countdown().verify(countdown_item([1, 2, 3], 6), f"<answer>{text}</answer>") in Verdict


def test_countdown_level_3_multiplies():
    task = Countdown(levels=(3,))
    items = [draw_item(task, 0, "train", index) for index in range(100)]
    assert any("*" in item.response for item in items)
    assert all(task.verify(item, item.response) is Verdict.SOLVED for item in items)


def test_there_are_288_grids_split_by_grid():
    grids = all_grids()
    assert len(grids) == len(set(grids)) == 288
    num_test = sum(split_of(f"sudoku {grid}") == "test" for grid in grids)
    assert 20 <= num_test <= 52


def test_sudoku_puzzles_have_one_solution():
    for index in range(COUNT):
        item = draw_item(TASKS["sudoku"], 0, "train", index)
        puzzle = item.question.split(":\n")[1].replace("\n", "")
        fitting = [g for g in all_grids() if all(clue in ("0", cell) for clue, cell in zip(puzzle, g, strict=True))]
        assert fitting == [item.key.removeprefix("sudoku ")]
        assert 5 <= puzzle.count("0") <= 9


def test_sudoku_shapes():
    item = draw_item(TASKS["sudoku"], 0, "test", 0)
    solution = item.response.removeprefix("<answer>").removesuffix("</answer>")
    verify = TASKS["sudoku"].verify
    assert verify(item, f"<answer>{solution.replace(chr(10), '')}</answer>") is Verdict.UNPARSED
    swapped = solution.translate(str.maketrans("12", "21"))
    assert verify(item, f"<answer>{swapped}</answer>") is Verdict.WRONG
    puzzle = item.question.split("\n", 1)[1]  # the question, copied: an answer, and a wrong one
    assert verify(item, f"<answer>{puzzle}</answer>") is Verdict.WRONG


def test_word_problems_vary_and_stay_in_range():
    items = [draw_item(TASKS["arithmetic"], 0, "train", index) for index in range(1000)]
    words = {word for item in items for word in item.question.split()}
    assert len(words) > 250
    assert all(1 <= int(item.key.rsplit(" ", 1)[1]) <= 99 for item in items)


def stage_texts(stage):
    """The first 6,000 documents of a stage of the built-in base's pretraining."""
    if stage == "text":
        return [pretraining_text(0, "train", index) for index in range(6000)]
    return ["\n".join(instruction(0, "train", index)) for index in range(6000)]


@pytest.mark.parametrize("stage", ["text", "instructions"])
def test_the_base_saw_no_solved_item(stage):
    """No question of a task, no whole valid grid, and no solution of a test item of Countdown in any form."""
    texts = stage_texts(stage)
    questions = ("Solve this 4x4 Sudoku", " once each with ", "Make ", "Reach ")
    assert not any(question in text for text in texts for question in questions)
    sums = [found for text in texts for found in re.findall(r"(\d+)([+-])(\d+)([+-])(\d+)(?:=(\d+))?", text)]
    assert len(sums) > 2500
    for first, sign_a, second, sign_b, third, _ in sums:
        numbers = [int(first), int(second), int(third)]
        target = apply_sign(apply_sign(numbers[0], sign_a, numbers[1]), sign_b, numbers[2])
        assert split_of(countdown_key(numbers, target)) == "train"
    grids = {"\n".join(grid[row : row + 4] for row in range(0, 16, 4)) for grid in all_grids()}
    assert not any(grid in text for text in texts for grid in grids)
    stories = [text for text in texts if "How many" in text and "<answer>" in text]
    assert stories  # the look-up documents: their questions name no gain or loss
    assert not any(word in text for text in stories for word in (" more", " gives ", " each ", "together", "Then "))
