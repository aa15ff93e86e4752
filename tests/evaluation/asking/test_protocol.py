import pytest
import yaml

from lift_ds.evaluation.asking.protocol import FOLDER, load_protocol
from lift_ds.evaluation.judging import Problem
from lift_ds.evaluation.tasks import EVAL_TASKS

CODE = 'def f(x):\n    """Not this."""\n\n\ndef g(x):\n    """Square x.\n    >>> g(2)\n    4\n    """\n'


def test_published_settings():
    protocol = load_protocol("lift")
    decoding = protocol.decoding
    assert (decoding.gen_length, decoding.block_length, decoding.steps) == (256, 32, 128)
    assert protocol.answer_prefix == "<reasoning>"
    assert protocol.scorers == ["reference", "strict"]
    turn = protocol.tasks["gsm8k"].turn(Problem("How many {pens}?", 3, "here"))
    expected = (
        "You are a math expert. You will be given a question to solve. Solve it step by step. Wrap the final answer in "
        "a \\boxed{}. \nRespond in the following format:\n<reasoning>\nYour reasoning here\n</reasoning>\n<answer>\n"
        "\\boxed{...}\n</answer>\n\nHow many {pens}?"
    )
    assert turn == expected
    published = {"gsm8k", "math500", "countdown", "sudoku", "aime24", "aime25", "humaneval", "mbpp"}
    assert set(protocol.tasks) == published
    assert set(load_protocol("clean").tasks) == set(EVAL_TASKS) > published


def test_a_docstring_alone_names_no_function():
    """The published prompt shows the last docstring; nobody can know the name, so that none is asked for."""
    problem = Problem(CODE, "def check(candidate): ...", "here", "g")
    published, clean = (load_protocol(name).tasks["humaneval"] for name in ("lift", "clean"))
    posed = published.pose(problem)
    assert (posed.question, posed.entry_point) == ("Square x.\n    >>> g(2)\n    4", None)
    assert published.turn(posed).endswith("</answer>\n\n\nSquare x.\n    >>> g(2)\n    4")
    assert clean.pose(problem) == problem
    assert CODE in clean.turn(problem)


def test_tests_are_shown():
    problem = Problem("Add.", ["assert add(1, 2) == 3", "assert add(0, 0) == 0"], "here")
    for name in ("lift", "clean"):
        assert "assert add(1, 2) == 3\nassert add(0, 0) == 0" in load_protocol(name).tasks["mbpp"].turn(problem)


@pytest.mark.parametrize("name", ["lift", "clean"])
def test_answers_are_not_shown(name):
    """Ground truths of other tasks are no tests, and no text either."""
    turn = load_protocol(name).tasks["countdown"].turn(Problem("Numbers: [4, 2]", [[4, 2], 86], "here"))
    assert "Numbers: [4, 2]" in turn
    assert "86" not in turn


def test_a_file_is_a_protocol(tmp_path):
    values = yaml.safe_load((FOLDER / "clean.yaml").read_text())
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(values))
    mine, clean = load_protocol(str(path)), load_protocol("clean")
    assert mine.fingerprint("gsm8k") == clean.fingerprint("gsm8k")
    values["tasks"]["gsm8k"]["prompt"] = "{question}?"
    path.write_text(yaml.safe_dump(values))
    assert load_protocol(str(path)).fingerprint("gsm8k") != clean.fingerprint("gsm8k")
    assert load_protocol(str(path)).fingerprint("math500") == clean.fingerprint("math500")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tasks": {"gsm9k": {"prompt": "{question}"}}}, "tasks: gsm9k unknown; allowed are gsm8k"),
        ({"tasks": {"gsm8k": {"prompt": "no question"}}}, r"names \[\]; \{question\} is needed"),
        ({"tasks": {"gsm8k": {"prompt": "{question} {answer}"}}}, "names .*answer"),
        ({"tasks": {"gsm8k": {"prompt": "{question} {}"}}}, "names "),
        ({"tasks": {"gsm8k": {"prompt": "{question.__class__}"}}}, "names .*__class__"),
        ({"tasks": {"gsm8k": {"prompt": "{question:{tests}}"}}}, "names .*question:{tests}"),
        ({"tasks": {"gsm8k": {"prompt": "{question!r}"}}}, "names .*question!r"),
        ({"tasks": {"gsm8k": {"prompt": "{question"}}}, "expected '}'"),
        ({"tasks": {"gsm8k": {"prompt": "{question} {tests}"}}}, "gsm8k.prompt: {tests} would show the right answer"),
        ({"scorers": ["kind"]}, "scorers"),
        ({"decoding": {"gen_length": 0, "block_length": 8, "steps": 8}}, "gen_length"),
        ({"temperature": 1}, "temperature"),
    ],
)
def test_bad_protocols(tmp_path, change, message):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load((FOLDER / "clean.yaml").read_text()) | change))
    with pytest.raises(ValueError, match=f"(?s)mine.yaml: is no protocol: .*{message}"):
        load_protocol(str(path))


def test_unknown_protocol():
    with pytest.raises(ValueError, match="protocol 'lfit': allowed are clean, lift, or a YAML file"):
        load_protocol("lfit")
