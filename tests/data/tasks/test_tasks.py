import hashlib
import random
import re
import time
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from lift_ds.data.tasks import MIXTURES, TASKS, Cell, Verdict, draw_item, instruction, pretraining_text, split_of
from lift_ds.data.tasks.addition import Addition, addition_key, carry_chain
from lift_ds.data.tasks.countdown import Countdown, apply_sign, countdown_key, evaluate_expression
from lift_ds.data.tasks.listops import ListOps, Operation, listops_key
from lift_ds.data.tasks.mixture import LEVELS
from lift_ds.data.tasks.pretraining import marked_cells, numbers_of_story
from lift_ds.data.tasks.pretraining_numbers import signs
from lift_ds.data.tasks.sudoku import all_grids
from tests.conftest import BASE

COUNT = 100


@pytest.fixture(params=LEVELS, ids=str)
def cell(request):
    return request.param


def drawn(cell, split, count=COUNT, seed=0):
    return [cell.draw(seed, split, index) for index in range(count)]


TOP_ITEMS = {  # SHA-256 of 800 items, computed when these were the only ones
    Cell("countdown", 3): "a5f80e1667665c55b6f0a5d96f5646dd3812b66985d075f3e725ff984817833f",
    Cell("sudoku", 4): "80e0901c1604b93d54dd3803279a843df1e527f0f7d17bc958f96c924a807742",
    Cell("arithmetic", 3): "1af913e675bbca449ef0ac97967603e7d29a1506694f320bf09e7b13ae85ddb3",
}


@pytest.mark.parametrize("cell", TOP_ITEMS, ids=str)
def test_the_items_of_earlier_versions_are_the_same(cell):
    digest = hashlib.sha256()
    for seed in (0, 7):
        for split in ("train", "test"):
            for item in drawn(cell, split, 200, seed):
                digest.update(repr((item.question, item.response, item.key)).encode())
    assert digest.hexdigest() == TOP_ITEMS[cell]


def test_worked_responses_are_right(cell):
    for split in ("train", "test"):
        for item in drawn(cell, split):
            assert TASKS[cell.task].verify(item.key, item.response) is Verdict.SOLVED
            assert (item.task, item.level) == (cell.task, cell.level)
            assert split_of(item.key) == split


def test_items_are_keyed(cell):
    assert cell.draw(1, "train", 7) == cell.draw(1, "train", 7)
    assert len({cell.draw(seed, "train", 7).key for seed in range(5)}) > 1


def test_no_row_of_training_solves_a_test_item():
    """Neither as its question nor on its way: over all levels of a task."""
    for task in TASKS:
        cells = [cell for cell in LEVELS if cell.task == task]
        train = {key for cell in cells for item in drawn(cell, "train", 3 * COUNT) for key in (item.key, *item.parts)}
        test = {item.key for cell in cells for item in drawn(cell, "test")}
        assert train and test and not train & test


def test_no_row_of_training_solves_a_test_item_of_another_task():
    """Its equations are no sums as large as those of addition, and none of a test item of Countdown."""
    for cell in LEVELS:
        for item in drawn(cell, "train", 3 * COUNT):
            if cell.task != "addition":
                assert not re.search(r"\d{3}", item.response.partition("<answer>")[0])
            for a, b, c in re.findall(r"(?<!\d)(\d+)[+-](\d+)=(\d+)", item.response):
                assert min(int(a), int(b)) <= 30 or split_of(countdown_key([int(a), int(b)], int(c))) == "train"
            if cell.task != "countdown":
                assert not re.search(r"\d[+-]\d+[+-]\d", item.response)


def test_answers_of_other_items_are_wrong(cell):
    items = drawn(cell, "train")
    verify = TASKS[cell.task].verify
    verdicts = [verify(one.key, other.response) for one, other in zip(items, items[1:], strict=False)]
    assert verdicts.count(Verdict.SOLVED) < 0.2 * COUNT  # one in ten digits is right by chance
    assert Verdict.UNPARSED not in verdicts


def test_questions_are_short_and_answers_fit(cell):
    """48 tokens hold the response and the two tokens that end it."""
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    items = [item for split in ("train", "test") for item in drawn(cell, split, 2 * COUNT)]
    assert max(len(ids) for ids in tokenizer([item.response for item in items]).input_ids) <= 46
    assert max(len(ids) for ids in tokenizer([item.question for item in items]).input_ids) <= 42


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
def test_malformed_answers_are_unparsed(cell, text):
    assert TASKS[cell.task].verify(cell.draw(0, "test", 0).key, text) is Verdict.UNPARSED


def test_unknown_split_and_level():
    with pytest.raises(ValueError, match="'train' and 'test'"):
        draw_item(TASKS["sudoku"], 1, 0, "dev", 0)
    for level in (0, 5):
        with pytest.raises(ValueError, match=f"level={level}: sudoku has levels 1 to 4"):
            draw_item(TASKS["sudoku"], level, 0, "train", 0)


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
    assert Countdown().verify(countdown_key([3, 7, 5], 5), f"<answer>{answer}</answer>") is verdict
    assert time.perf_counter() - began < 1


def test_countdown_uses_exact_fractions():
    # 1/3*3 is 1 exactly; in floats 1/49*49 is not
    assert evaluate_expression("1/49*49")[0] == 1


@given(st.text(max_size=60))
def test_no_text_breaks_the_countdown_verifier(text):
    assert Countdown().verify(countdown_key([1, 2, 3], 6), f"<answer>{text}</answer>") in Verdict


def test_carry_chains():
    # 157+168: 7+8 and 5+6+1 carry; 1905+1095: 5+5 and 0+9+1 carry, and, after 9+0+1, so do three; 505+505: 5+5, and 5+5
    cases = {(123, 456): 0, (505, 505): 1, (157, 168): 2, (1905, 1095): 3, (9999, 1111): 4}
    assert {numbers: carry_chain(*numbers) for numbers in cases} == cases


@pytest.mark.parametrize("level", [1, 2, 3, 4])
def test_addition_levels_are_carry_chains(level):
    for item in drawn(Cell("addition", level), "train"):
        first, second = map(int, re.findall(r"\d+", item.question))
        chain = carry_chain(first, second)
        assert item.strata == {"carry_chain": chain, "digits": len(str(first))}
        assert min(chain, 3) == level - 1
        assert item.key == addition_key(second, first)


def test_addition_is_worked_out_in_columns():
    item = Addition().propose(random.Random(0), 4)
    assert item.question == "Add 6866 and 4578."
    assert item.response == "6+8=14\n6+7,1=14\n8+5,1=14\n6+4,1=11\n<answer>11444</answer>"
    assert Addition().verify(item.key, "<answer>11445</answer>") is Verdict.WRONG


def test_countdown_strata():
    for level, (operators, largest) in enumerate(((1, 60), (2, 9), (2, 20)), 1):
        items = drawn(Cell("countdown", level), "test")
        assert {item.strata["operators"] for item in items} == {operators}
        assert max(item.strata["largest"] for item in items) <= largest


def test_listops_values_and_keys():
    inner = Operation("sm", (4, 9))
    middle = Operation("max", (3, 1), inner, 1)
    assert (str(middle), str(middle.flat), middle.value) == ("max(3,sm(4,9),1)", "max(3,3,1)", 3)
    outer = Operation("min", (7,), middle, 0)
    assert (str(outer), outer.value) == ("min(max(3,sm(4,9),1),7)", 3)
    swapped = Operation("min", (7,), Operation("max", (1, 3), Operation("sm", (9, 4)), 0), 1)
    assert listops_key(outer) == listops_key(swapped) == "listops min(7,max(1,3,sm(4,9))) 3"


def test_listops_items():
    for level in (1, 2, 3):
        for item in drawn(Cell("listops", level), "train"):
            text = item.question.removeprefix("Evaluate ").removesuffix(".")
            value = eval(text, {"max": max, "min": min, "sm": lambda *digits: sum(digits) % 10})
            assert item.response.endswith(f"<answer>{value}</answer>")
            assert text.count("(") == item.response.count("\n") == item.strata["depth"] == level
            assert item.strata["digits"] == len(re.findall(r"\d", text))
            assert all(split_of(part) == "train" for part in item.parts)
            assert ListOps().verify(item.key, f"<answer>{value + 1}</answer>") is Verdict.WRONG


def test_there_are_288_grids_split_by_grid():
    grids = all_grids()
    assert len(grids) == len(set(grids)) == 288
    num_test = sum(split_of(f"sudoku {grid}") == "test" for grid in grids)
    assert 20 <= num_test <= 52


@pytest.mark.parametrize(("level", "fewest", "most"), [(1, 2, 3), (2, 4, 5), (3, 6, 7), (4, 5, 9)])
def test_sudoku_puzzles_have_one_solution(level, fewest, most):
    for item in drawn(Cell("sudoku", level), "train"):
        puzzle = item.question.split(":\n")[1].replace("\n", "")
        fitting = [g for g in all_grids() if all(clue in ("0", cell) for clue, cell in zip(puzzle, g, strict=True))]
        assert fitting == [item.key.removeprefix("sudoku ")]
        assert fewest <= puzzle.count("0") == item.strata["blanks"] <= most


def test_sudoku_shapes():
    item = Cell("sudoku", 4).draw(0, "test", 0)
    solution = item.response.removeprefix("<answer>").removesuffix("</answer>")
    verify = TASKS["sudoku"].verify
    assert verify(item.key, f"<answer>{solution.replace(chr(10), '')}</answer>") is Verdict.UNPARSED
    swapped = solution.translate(str.maketrans("12", "21"))
    assert verify(item.key, f"<answer>{swapped}</answer>") is Verdict.WRONG
    puzzle = item.question.split("\n", 1)[1]  # the question, copied: an answer, and a wrong one
    assert verify(item.key, f"<answer>{puzzle}</answer>") is Verdict.WRONG


def test_word_problems_vary_and_stay_in_range():
    num_words = []
    for level, steps in ((1, 1), (2, 2), (3, 2)):
        items = drawn(Cell("arithmetic", level), "train", 1000)
        num_words.append(len({word for item in items for word in re.findall("[A-Za-z]+", item.question)}))
        assert all(1 <= int(item.key.rsplit(" ", 1)[1]) <= 99 for item in items)
        assert all(item.strata["steps"] == steps == item.response.count("=") for item in items)
    assert num_words[0] < num_words[1] < 40 and num_words[2] > 250


def test_a_mixture_repeats_its_cycle():
    """40 rows: 2 of each level, 4 of the top levels; each item of a level comes once."""
    mixture = MIXTURES["reasoning"]
    places = [mixture.place(row) for row in range(80)]
    assert len(set(places)) == 80
    assert Counter(cell for cell, _ in places) == {cell: 8 if cell in TOP_ITEMS else 4 for cell in LEVELS}
    assert {cell for cell, _ in places[:20]} == set(LEVELS)  # every half of a cycle has all levels
    assert sorted(index for cell, index in places if cell == Cell("sudoku", 4)) == list(range(8))
    assert mixture.item(3, "test", 79) == places[79][0].draw(3, "test", places[79][1])
    top = [MIXTURES["reasoning/top"].place(row) for row in range(6)]
    assert top == [(cell, index) for index in (0, 1) for cell in TOP_ITEMS]
    assert {cell.task for cell in MIXTURES["listops"].cycle} == {"listops"}
    assert set(MIXTURES["listops/2"].cycle) == {Cell("listops", 2)}


def test_marked_cells_are_what_row_column_and_box_leave():
    """Each has one digit left by the other clues alone; at least three blanks stay, so that no grid is solved."""
    chance = random.Random(3)
    numbers = set()
    for _ in range(200):
        question, answer = marked_cells(chance)
        asked, filled = question.partition("\n")[2], answer.removeprefix("<answer>").removesuffix("</answer>")
        marks = [place for place, character in enumerate(asked) if character == "?"]
        numbers.add(len(marks))
        clues = asked.replace("\n", "").replace("?", "0")
        rows = [clues[start : start + 4] for start in range(0, 16, 4)]
        for place in marks:
            row, column = divmod(place, 5)
            top, left = row // 2 * 2, column // 2 * 2
            box = [each for line in rows[top : top + 2] for each in line[left : left + 2]]
            seen = {*rows[row], *(line[column] for line in rows), *box} - {"0"}
            assert {"1", "2", "3", "4"} - seen == {filled[place]}
        assert [a for a in asked if a != "?"] == [f for a, f in zip(asked, filled, strict=True) if a != "?"]
        assert filled.count("0") >= 3
    assert numbers == {1, 2, 3}


def test_signs_and_numbers_are_those_of_the_question():
    chance = random.Random(4)
    for _ in range(200):
        question, answer = signs(chance)
        *numbers, value = map(int, re.findall(r"\d+", question))
        expression = answer.partition("<answer>")[2].removesuffix("</answer>")
        assert [*map(int, re.findall(r"\d+", expression))] == numbers and eval(expression) == value
        question, answer = numbers_of_story(chance)
        expression = answer.removeprefix("<answer>").removesuffix("</answer>")
        assert all(re.search(rf"\b{number}\b", question) for number in re.findall(r"\d+", expression))


def stage_texts(stage):
    """The first 6,000 documents of a stage of the built-in base's pretraining."""
    if stage == "text":
        return [pretraining_text(0, "train", index) for index in range(6000)]
    return ["\n".join(instruction(0, "train", index)) for index in range(6000)]


@pytest.mark.parametrize("stage", ["text", "instructions"])
def test_the_base_saw_no_solved_item(stage):
    """No question of a task, no whole valid grid, and no solution of a test item in any form."""
    texts = stage_texts(stage)
    questions = ("Solve this 4x4 Sudoku", " once each with ", "Make ", "Reach ", "Evaluate ", "Add ")
    assert not any(question in text for text in texts for question in questions)
    assert any("Columns of " in text for text in texts)
    assert not any(re.search(r"\d{3}[+=]|[+=]\d{3}", text) for text in texts)  # no number that addition adds or gives
    pairs = [found for text in texts for found in re.findall(r"(?<![\d+-])(\d+)([+-])(\d+)=(\d+)", text)]
    solved = [countdown_key([int(a), int(b)], int(value)) for a, _, b, value in pairs if min(int(a), int(b)) > 30]
    assert all(split_of(key) == "train" for key in solved)
    operations = [found for text in texts for found in re.findall(r"((?:max|min|sm)\([^)]*\))=(\d)", text)]
    for text, value in operations:
        name, _, digits = text.rstrip(")").partition("(")
        operation = Operation(name, tuple(map(int, digits.split(","))))
        assert operation.value == int(value) and split_of(listops_key(operation)) == "train"
    if stage == "text":  # the instructions have neither
        assert len(solved) > 100 and len(operations) > 1000
    sums = [found for text in texts for found in re.findall(r"(\d+)([+-])(\d+)([+-])(\d+)(?:=(\d+))?", text)]
    assert len(sums) > 1000
    for first, sign_a, second, sign_b, third, _ in sums:
        numbers = [int(first), int(second), int(third)]
        target = apply_sign(apply_sign(numbers[0], sign_a, numbers[1]), sign_b, numbers[2])
        assert split_of(countdown_key(numbers, target)) == "train"
    grids = {"\n".join(grid[row : row + 4] for row in range(0, 16, 4)) for grid in all_grids()}
    assert not any(grid in text for text in texts for grid in grids)
    stories = [text for text in texts if "How many" in text and re.search(r"<answer>\d+</answer>", text)]
    assert stories  # the look-up documents: their questions name no gain or loss
    assert not any(word in text for text in stories for word in (" more", " gives ", " each ", "together", "Then "))
