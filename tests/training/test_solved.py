import json

import pytest
from PIL import Image

from lift_ds.storage.run_folder import METRICS_FILE
from lift_ds.training import summary
from lift_ds.training.metrics import MetricsFile
from lift_ds.training.solved import solved_lines
from lift_ds.training.solved_picture import write_picture


def score(num_items, num_solved, num_unparsed=0):
    return {
        "num_items": num_items,
        "num_solved": num_solved,
        "num_unparsed": num_unparsed,
        "num_truncated": 0,
        "num_forwards": 48 * num_items,
    }


BEFORE = {"sudoku/4": score(8, 1, 4), "addition/1": score(4, 1), "addition/2": score(4, 2, 2)}
AFTER = {"sudoku/4": score(8, 5), "addition/1": score(4, 3), "addition/2": score(4, 1, 1)}


def write_metrics(folder, before=BEFORE, after=AFTER, **more):
    file = MetricsFile(folder / METRICS_FILE)
    for step, (moment, scores) in enumerate((("before", before), ("after", after))):
        file.write("solve", step, {"moment": moment, "scores": scores, **{key: more[key][step] for key in more}})
    file.close()


def test_solve_rates_by_task_and_level(tmp_path, capsys):
    """14 columns of a bar are 100 %: addition solved 3 of 8, then 4: 5 columns, then 2 more; its second level lost."""
    write_metrics(tmp_path, top=(BEFORE["sudoku/4"], AFTER["sudoku/4"]))
    summary.print_summary(tmp_path, {"run folder": tmp_path})
    printed = capsys.readouterr().out
    printed.encode("ascii")
    expected = [
        "addition              8  25 -> 12 %  37.5 -> 50.0 %  #####++.......",
        "  1: no carry         4    0 -> 0 %  25.0 -> 75.0 %  ####++++++....",
        "  2: lone carries     4  50 -> 25 %  50.0 -> 25.0 %  ####---.......",
        "sudoku                8   50 -> 0 %  12.5 -> 62.5 %  ##+++++++.....",
        "  4: 5 to 9 blanks    8   50 -> 0 %  12.5 -> 62.5 %  ##+++++++.....",
        "top                   8   50 -> 0 %  12.5 -> 62.5 %  ##+++++++.....",
        "all                  16   38 -> 6 %  25.0 -> 56.2 %  ####++++......",
    ]
    lines = [" ".join(line.split()) for line in printed.splitlines()]
    assert lines[2 : 2 + len(expected)] == [" ".join(line.split()) for line in expected]
    assert f"picture {tmp_path}/solved.png" in lines
    assert min(Image.open(tmp_path / "solved.png").size) > 300


@pytest.mark.parametrize("names", [["sudoku/4"], ["addition/1"]])
def test_top_has_no_line_where_it_is_all_or_nothing(tmp_path, names):
    before, after = ({name: scores[name] for name in names} for scores in (BEFORE, AFTER))
    sides = [scores.get("sudoku/4", score(0, 0)) for scores in (before, after)]
    write_metrics(tmp_path, before, after, top=sides)
    assert [line.label for line in solved_lines(tmp_path / METRICS_FILE) if not line.is_level][1:] == ["all"]


def test_without_matplotlib_it_is_said_once(tmp_path, capsys, monkeypatch):
    write_metrics(tmp_path)
    monkeypatch.setattr(summary, "find_spec", lambda name: None)
    summary.print_summary(tmp_path, {})
    assert capsys.readouterr().out.count("not drawn: pip install 'lift_ds[report]'") == 1
    assert not (tmp_path / "solved.png").exists()


def test_records_without_levels_are_read(tmp_path):
    """As earlier versions wrote them: one line a task."""
    write_metrics(
        tmp_path,
        {"countdown": score(67, 3), "sudoku": score(67, 0)},
        {"countdown": score(67, 25), "sudoku": score(67, 25)},
    )
    lines = solved_lines(tmp_path / METRICS_FILE)
    assert [(line.label, line.after.num_solved, line.is_level) for line in lines] == [
        ("countdown", 25, False),
        ("sudoku", 25, False),
        ("all", 50, False),
    ]
    assert write_picture(tmp_path).is_file()


def test_other_items_before_than_after_are_no_table(tmp_path, capsys):
    write_metrics(tmp_path, {"countdown": score(67, 3)})
    with pytest.raises(ValueError, match="other tasks and levels were measured before training"):
        solved_lines(tmp_path / METRICS_FILE)
    summary.print_summary(tmp_path, {"run folder": tmp_path})
    assert "no solve rates: " in capsys.readouterr().out


def test_no_picture_without_solve_rates(tmp_path):
    (tmp_path / METRICS_FILE).write_text(json.dumps({"kind": "heldout", "step": 0, "mean": 1.0}) + "\n")
    with pytest.raises(ValueError, match=r"no solve rates before and after training \(eval.solve_items\)"):
        write_picture(tmp_path)
