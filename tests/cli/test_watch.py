"""`tools/watch.py`: pages of runs of an older version, in files and in a terminal while a run grows."""

import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import time
from functools import partial

import pytest
from rich.console import Console
from rich.text import Text

from lift_ds.cli.watch import cropped, main
from lift_ds.training.bars import BLOCKS
from tests.conftest import REPOSITORY, VECTORS, clean_environment

RUNS = VECTORS / "runs_857c343"


@pytest.fixture
def run_folder(tmp_path):
    shutil.copytree(RUNS / "full", tmp_path / "run")
    return tmp_path / "run"


def add(folder, *records):
    with (folder / "metrics.jsonl").open("a") as file:
        file.write("".join(json.dumps({"time": time.time(), **record}) + "\n" for record in records))


def printed(capsys, monkeypatch, *words, columns=120):
    monkeypatch.setenv("COLUMNS", str(columns))
    main([*map(str, words)])
    return capsys.readouterr().out


def test_a_page_of_an_older_run(capsys, monkeypatch):
    """Losses 8.4110, 7.3876, 5.1865: 6.9950 in the mean. Without a terminal one page is all."""
    page = printed(capsys, monkeypatch, RUNS / "full")
    for text in (
        "run        vanilla, model, 2 ranks", " 3 / 6 ", "it said of no end", "█▅▁ 6.9950", "random 100%",
        "7.6294 at 0, 3.1516 at step 3", "t 0.15: 3.094", "step-000003, best step-000003, 1 kept",
    ):  # fmt: skip
        assert text in page
    assert "differ" not in page


def test_what_a_newer_version_writes_besides(run_folder, capsys, monkeypatch):
    """Of the last steps of two: parts, ranks, components, rows; and faults, with the words of the error."""
    step = json.loads((run_folder / "metrics.jsonl").read_text().splitlines()[1])
    parts = {"data": 0.25, "forward": 0.75}
    for number, behind in ((4, 0.1), (5, 0.2), (6, 0.3)):
        add(
            run_folder,
            step | {f"{part}_seconds": each for part, each in parts.items()} | {
                "time": time.time(), "step": number, "seconds": 1.0, "slowest_seconds": parts, "gather_seconds": 0.5,
                "slowest_rank": {"rank": number % 2, "own_seconds": 0.4, "behind_seconds": behind},
                "component_token_nll": {"easy": None, "random": 1.5, "hard": None}, "num_skipped": 2,
                "peak_memory_gib": 3.0, "peak_reserved_gib": 4.0, "mfu": 0.25,
            },
        )  # fmt: skip
    scores = {"sums/1": {"num_items": 3, "num_solved": 0}, "sums/2": {"num_items": 1, "num_solved": 1}}
    add(run_folder, {"kind": "solve", "step": 6, "moment": "after", "solve_rate": 0.25, "scores": scores})
    add(run_folder, {"kind": "end", "step": 6, "reason": "failed", "detail": "RuntimeError: no"})
    with (run_folder / "metrics.jsonl").open("a") as file:
        file.write('torn\n{"kind": "st')
    (run_folder / "metrics.jsonl").write_text(  # the older steps have no parts: only the newest three stay
        "".join(line for line in (run_folder / "metrics.jsonl").read_text().splitlines(True)[4:])
    )
    page = printed(capsys, monkeypatch, run_folder)
    for text in (
        "failed 0 s ago", "random 100% 1.500", "25.0% at step 6", "sums 25%", "data 25%  forward 75%; gathers 50%",
        "MFU 25.0%", "peak 3.00 GiB, 4.00 reserved", "rank 0 in 2 of 3 steps, 0.2 s behind the mean (20% of a step)",
        "6 rows too long", "faults     1, the last: ", "failed: RuntimeError: no", "1 lines cannot be read",
        "the last line of metrics.jsonl is not whole",
    ):  # fmt: skip
        assert text in page


def test_runs_side_by_side(capsys, monkeypatch):
    """Two in 130 columns stand in one line, in 80 below each other; where they differ is said."""
    page = printed(capsys, monkeypatch, RUNS / "full", RUNS / "lora", "--once", columns=130)
    assert any("full" in line and "lora" in line for line in page.splitlines()[:1])
    assert "These runs differ in: lora.rank 0 | 4; " in page
    below = printed(capsys, monkeypatch, RUNS / "full", RUNS / "lora", columns=80)
    assert not any("full" in line and "lora" in line for line in below.splitlines()[:1])
    assert max(map(len, below.splitlines())) <= 80


def test_runs_of_different_tasks_do_not_compare(run_folder, capsys, monkeypatch):
    record = json.loads((run_folder / "run.json").read_text())
    record["run"]["data"]["path"] = "builtin:sudoku"
    (run_folder / "run.json").write_text(json.dumps(record))
    page = " ".join(printed(capsys, monkeypatch, RUNS / "full", run_folder).split())
    assert "These runs differ in: data.path rows.jsonl | builtin:sudoku" in page
    assert "Held-out losses and solve rates may not compare: they depend on data.path" in page


def test_before_the_first_line(run_folder, capsys, monkeypatch):
    for name in ("metrics.jsonl", "log.txt"):
        (run_folder / name).unlink()
    assert "before its first line" in printed(capsys, monkeypatch, run_folder)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "error: nowhere: no such folder; name the folder of a run, such as runs/001.\n"),
        ([str(RUNS / "full"), "--every", "0"], "error: --every=0: at least 0.2 seconds.\n"),
        (
            [str(RUNS / "full"), str(VECTORS)],
            f"error: {VECTORS}: no folder of a run: it has no run.json (",
        ),
    ],
)
def test_what_cannot_be_watched(words, message, capsys):
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith(message)


def test_it_starts_without_torch_and_draws_in_ascii_where_it_must():
    code = "import sys; from lift_ds.cli.watch import main; main(sys.argv[1:]); print('torch' in sys.modules)"
    environment = clean_environment(PYTHONIOENCODING="ascii", PYTHONUTF8="0", COLUMNS="100")
    command = [sys.executable, "-c", code, RUNS / "full"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    *page, has_torch = done.stdout.splitlines()
    assert has_torch == "False"
    assert "#=_ 6.9950" in "\n".join(page)
    assert not set("\n".join(page)) & set(BLOCKS.strip())


def test_a_page_that_is_too_high(capsys, monkeypatch):
    """Of 12 lines 5 fit, so that 4 are shown and 8 are not."""
    console = Console(width=80, height=5, force_terminal=True)
    console.print(cropped("\n".join(f"line {number}" for number in range(1, 13)), console))
    shown = Text.from_ansi(capsys.readouterr().out).plain.splitlines()
    assert shown[:4] == ["line 1", "line 2", "line 3", "line 4"]
    assert shown[4].startswith("8 more lines: make the terminal higher") and len(shown) == 5
    console = Console(width=80, height=12, force_terminal=True)
    assert cropped("\n" * 11, console) == "\n" * 11


def test_a_terminal_follows_a_run_until_ctrl_c(run_folder):
    """A step that is written while it looks appears; then Ctrl-C, and the last page stays on the screen."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "tools/watch.py", str(run_folder), "--every", "0.2"]
    environment = clean_environment(TERM="xterm", COLUMNS="100", LINES="40")
    watching = subprocess.Popen(
        command, cwd=REPOSITORY, env=environment, stdin=theirs, stdout=theirs, stderr=theirs,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # a suite in the background ignores it
    )  # fmt: skip
    os.close(theirs)
    shown = ""

    def wait_for(text):
        nonlocal shown
        until = time.monotonic() + 60
        while text not in shown and time.monotonic() < until:
            shown += os.read(ours, 65536).decode(errors="replace")
        assert text in shown

    try:
        wait_for(" 3 / 6")
        step = json.loads((run_folder / "metrics.jsonl").read_text().splitlines()[1])
        add(run_folder, step | {"step": 4, "time": time.time()})
        wait_for(" 4 / 6")
        before = len(shown)
        watching.send_signal(signal.SIGINT)
        wait_for("\x1b[?1049l")  # back from the alternate screen
        shown = shown[before:]
        wait_for(" 4 / 6")
        assert watching.wait(30) == 0
    finally:
        watching.kill()
        os.close(ours)
