"""A run's folder, read from outside: while it is written, cut short, after a resume; and what is no run."""

import json
import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lift_ds.storage.run_folder import METRICS_FILE, read_on, read_run_folder
from lift_ds.storage.run_record import FORMAT, NewerFormatError
from tests.conftest import VECTORS

OLD = VECTORS / "runs_857c343" / "full"  # three steps of six, measured before and after
STEP = {"kind": "step", "time": 1.0, "loss": 2.0}


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(OLD, folder)
    return folder


def add(folder, text):
    with (folder / METRICS_FILE).open("a", encoding="utf-8") as file:
        file.write(text)


def line(kind, step, **values):
    return json.dumps({"kind": kind, "step": step, "time": 1795690200.0 + step, **values}) + "\n"


def test_a_run_of_an_older_version():
    run = read_run_folder(OLD)
    assert (run.step, run.end, run.run["optim"]["steps"]) == (3, None, 6)
    assert [record["mean"] for record in run.of_kind("heldout")] == pytest.approx([7.6294, 3.1516], abs=1e-4)
    assert [path.name for path in run.checkpoints] == ["step-000003"]
    assert (run.latest, run.best) == ("step-000003", "step-000003")
    assert run.log[-1].endswith("step-000003 is the best checkpoint, heldout_loss 3.1516")
    assert (run.num_unreadable, run.half_lines, run.events) == (0, [], [])


def test_only_what_was_added_is_read(run):
    """What was read before is made unreadable on the disk, and stays known."""
    before = read_run_folder(run)
    metrics = run / METRICS_FILE
    with metrics.open("r+b") as file:
        file.write(b"x" * metrics.stat().st_size)
    add(run, "\n" + line("step", 4, loss=1.0))
    after = read_on(before)
    assert [record["step"] for record in after.of_kind("step")] == [1, 2, 3, 4]
    assert after.num_unreadable == 0
    assert (before.step, after.step) == (3, 4)  # the first look stays what it was


def test_half_a_line_counts_once_it_is_whole(run):
    half, rest = line("step", 4)[:20], line("step", 4)[20:]
    add(run, half)
    looked = read_run_folder(run)
    assert (looked.step, looked.half_lines, looked.num_unreadable) == (3, [METRICS_FILE], 0)
    add(run, rest)
    again = read_on(looked)
    assert (again.step, again.half_lines, again.num_unreadable) == (4, [], 0)


def test_a_line_that_a_kill_cut_short(run):
    """The start after it ends the half line, so that it can be read by nobody."""
    add(run, line("step", 4)[:20] + "\n" + line("resume", 3, checkpoint="run/checkpoints/step-000003"))
    add(run, "\0\0\0\n17\n{}\n")  # as a power cut leaves them, and lines of nobody's
    looked = read_run_folder(run)
    assert (looked.step, looked.num_unreadable) == (3, 4)
    assert [event.text for event in looked.events] == ["went on from step-000003"]


def test_steps_behind_a_resume_do_not_count_but_what_happened_does(run):
    add(run, line("step", 4, bad_sample_ids=[7]) + line("step", 5))
    looked = read_run_folder(run)
    add(run, line("resume", 3, checkpoint="a/step-000003") + line("step", 4, grad_norm=9.0, norm_limit=3.0))
    add(run, line("no_checkpoint", 4, problem="no room") + line("checkpoint", 5, path="x", seconds=2.0))
    add(run, line("checkpoint", 6, path="x", seconds=4.0, behind=True, stall_seconds=0.5))
    add(run, line("end", 7, reason="failed", detail="RuntimeError: x"))
    supervised = [
        {"event": "start", "time": 1.0, "step": 0},
        {"event": "end", "time": 2.0, "step": 5, "status": 1, "last_words": "a\nRuntimeError: x"},
        {"event": "end", "time": 3.0, "step": 6, "status": 0, "last_words": ""},
    ]
    (run / "supervise.jsonl").write_text("".join(json.dumps(each) + "\n" for each in supervised))
    now = read_on(looked)
    assert [record["step"] for record in now.of_kind("step")] == [1, 2, 3, 4]
    assert now.end == "failed"
    assert [(event.step, event.text, event.is_fault) for event in now.events] == [
        (5, "exit status 1: RuntimeError: x", True),
        (3, "went on from step-000003", False),
        (4, "left out: loss or gradient is not finite; samples 7", True),
        (4, "left out: gradient norm 9 is above 3", True),
        (4, "no checkpoint: no room", True),
        (5, "checkpoint in 2.0 s", False),
        (6, "checkpoint in 4.0 s, training stood still for 0.5 s", False),
        (7, "failed: RuntimeError: x", True),
    ]


def test_a_run_that_goes_on_has_not_ended(run):
    add(run, line("end", 3, reason="stopped", detail="SIGTERM"))
    looked = read_run_folder(run)
    assert looked.end == "stopped"
    add(run, line("resume", 3, checkpoint="a/step-000003"))
    assert read_on(looked).end is None


def test_an_older_run_is_done_with_its_export(run):
    add(run, line("step", 6))
    assert read_run_folder(run).end is None  # it may be measured still
    (run / "export").mkdir()
    assert read_run_folder(run).end == "done"


@pytest.mark.parametrize("shorter", [True, False])
def test_a_file_that_was_replaced_is_read_anew(run, shorter):
    looked = read_run_folder(run)
    written = run / "other"
    written.write_text(line("step", 1) * (1 if shorter else 99))
    if shorter:
        (run / METRICS_FILE).write_text(written.read_text())
    else:
        written.rename(run / METRICS_FILE)
    assert {record["step"] for record in read_on(looked).history} == {1}


def test_a_newer_run_is_refused(run):
    looked = read_run_folder(run)
    record = json.loads((run / "run.json").read_text()) | {"format": FORMAT + 1}
    (run / "run.json").write_text(json.dumps(record))
    for read in (lambda: read_run_folder(run), lambda: read_on(looked)):
        with pytest.raises(NewerFormatError, match=rf"^{run}/run.json: its format is {FORMAT + 1}, and the newest"):
            read()


def test_what_is_no_run(run, tmp_path):
    (tmp_path / "empty").mkdir()
    refused = {
        tmp_path / "missing": "no such folder; name the folder of a run",
        tmp_path / "run" / "run.json": "no such folder",
        tmp_path: r"no folder of a run: it has no run.json \(runs in it: run\)",
        tmp_path / "empty": r"no folder of a run: it has no run.json \(a run writes it when it starts\)",
        run / "checkpoints" / "step-000003": "a checkpoint; name the folder of its run",
    }
    for folder, message in refused.items():
        with pytest.raises(ValueError, match=f"^{folder}: {message}"):
            read_run_folder(folder)
    (run / "run.json").write_text('{"run": ')
    with pytest.raises(ValueError, match=rf"^{run}/run.json: no readable record of a run: "):
        read_run_folder(run)


RECORDS = st.one_of(
    st.builds(lambda step: json.dumps(STEP | {"step": step}), st.integers(1, 9)),
    st.builds(lambda step: json.dumps({"kind": "resume", "step": step, "time": 2.0}), st.integers(0, 9)),
    st.sampled_from(['{"kind": "step", "st', "", "1, 2", "]", '"', "[{}", '{"kind": "ä']),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(RECORDS, max_size=12), st.lists(st.integers(0, 700), max_size=5))
def test_a_file_read_in_pieces_is_the_file(tmp_path_factory, records, cuts):
    """Wherever the looks fall, also inside of a letter, they find what one look at the end finds."""
    folder = tmp_path_factory.mktemp("run")
    shutil.copy(OLD / "run.json", folder)
    content = "".join(f"{record}\n" for record in records).encode()
    looked = read_run_folder(folder)
    for end in (*sorted(min(cut, len(content)) for cut in cuts), len(content)):
        (folder / METRICS_FILE).open("ab").close()
        with (folder / METRICS_FILE).open("r+b") as file:
            file.write(content[:end])
        looked = read_on(looked)
    whole = read_run_folder(folder)
    assert (looked.history, looked.records, looked.num_unreadable) == (
        whole.history, whole.records, whole.num_unreadable,
    )  # fmt: skip
    assert len(whole.history) + whole.num_unreadable == sum(bool(record) for record in records)
