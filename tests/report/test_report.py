"""Reports of runs, through the command that writes them; the runs' files are written as a run writes them."""

import csv
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch

from lift_ds.cli.report import main
from lift_ds.config.loading import load_run_config
from lift_ds.evaluation.hardest import ROWS_FILE
from lift_ds.method.memory import RowMemory
from lift_ds.ranks.shares import Alone
from lift_ds.report.runs import ago, short_names, told_apart
from lift_ds.report.series import MOST_POINTS, banded, column, points, rows_of
from lift_ds.storage.run_folder import METRICS_FILE, read_run_folder
from lift_ds.storage.run_record import RUN_FILE, write_run
from lift_ds.training.buffers import DifficultyBuffers
from lift_ds.training.metrics import MetricsFile, StepTotals
from lift_ds.training.timing import PARTS
from tests.conftest import REPOSITORY, save_difficulties
from tests.evaluation.test_compare import write_evaluation
from tests.training.test_solved import AFTER, BEFORE

HTML = "<img src=x onerror=alert(1)><script>alert(2)</script>&amp;"
OLD_RUN = REPOSITORY / "tests" / "data" / "runs_857c343" / "buffers"


class Page(HTMLParser):
    """What a browser would see of a page: tags, what they refer to, and the text by tag."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.referred, self.texts, self.within = [], [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag != "wbr":
            self.within = tag
            self.texts.append(" ")
        self.referred += [
            value for name, value in attributes if name in ("src", "href", "xlink:href", "srcset", "data")
        ]

    def handle_data(self, data):
        if self.within != "style":
            self.texts.append(data)

    def handle_endtag(self, tag):
        self.texts.append(" ")

    @property
    def text(self):
        return " ".join("".join(self.texts).split())


def step_record(step, loss=1.0, **more):
    """A step's line, by what makes it in a run: an easy and a hard document, 2 nats and 1 nat a learned token."""
    totals = StepTotals()
    totals.add(loss=loss, num_documents=2, num_tokens=100)
    totals.add_rank(dict.fromkeys(PARTS, 0.1), 0.0, (1.5, 0.0), Alone())
    totals.add_weights(torch.tensor([12.0, 30.0, 4.0]))
    totals.add_spans(
        torch.tensor([0.05, 0.95]), torch.tensor([2, 0]), torch.tensor([4.0, 6.0]), torch.tensor([2, 6]), torch.ones(2)
    )
    rest = {"num_bad_steps": 0, "grad_norm": 0.5, "lr": 1e-3, "seconds": 0.7, "tokens_per_second": 140.0, "mfu": None}
    return totals.record(time_scaling=True) | rest | {"step": step} | more


def write_records(folder, **flags):
    flags = {f"{key.replace('__', '.')}": value for key, value in flags.items()}
    run, problems = load_run_config(None, [], flags, {})
    assert not problems
    folder.mkdir(parents=True, exist_ok=True)
    write_run(folder, {"run": run.model_dump(), "deepspeed": {}, "world_size": 1})


def heldout(mean, num_tokens=((2, 3),)):
    return {
        "mean": mean,
        "levels": [0.5],
        "by_level": [mean],
        "by_frequency": [mean, mean / 2],
        "num_tokens_by_level_and_frequency": num_tokens,
    }


def write_made_run(folder, num_steps=4, records=(), **flags):
    """A run of some steps, with further records of a kind and step; returns its folder."""
    write_records(folder, **flags)
    file = MetricsFile(folder / METRICS_FILE)
    for step in range(1, num_steps + 1):
        file.write("step", step, step_record(step, loss=3.0 / step))
    for kind, step, values in records:
        file.write(kind, step, values)
    file.close()
    return folder


def report(*arguments, output):
    main([*map(str, arguments), "--output", str(output)])
    return output.read_text(encoding="utf-8")


SOLVED = [
    ("heldout", 0, heldout(3.0)),
    ("solve", 0, {"moment": "before", "scores": BEFORE, "solve_rate": 0.25, "solved": "0100" * 4}),
    ("solve", 2, {"moment": "during", "scores": BEFORE, "solve_rate": 0.3}),
    ("heldout", 4, heldout(1.0)),
    ("solve", 4, {"moment": "after", "scores": AFTER, "solve_rate": 0.5625, "solved": "1101" * 4}),
]


def test_two_runs_on_one_page_that_fetches_nothing(tmp_path, capsys):
    one = write_made_run(tmp_path / "lift", records=SOLVED)
    two = write_made_run(tmp_path / "vanilla", records=SOLVED, objective__method="vanilla", optim__lr=2e-4)
    text = report(one, two, output=tmp_path / "page.html")
    page = Page(text)
    assert not {"script", "link", "iframe", "object", "img"} & set(page.tags)
    assert all(each.startswith("#") for each in page.referred) and "http" not in text and "@import" not in text
    assert not re.search(r"url\((?!#)", text)
    for wanted in (
        "2 runs: lift, vanilla",
        "held-out loss 3.000 → 1.000",
        "solved 25.0% → 56.2%",
        "sudoku 4: 5 to 9 blanks 8 12.5 → 62.5 % 12.5 → 62.5 %",  # its items, and shares of each run
        "objective.method lift3 vanilla",
        "optim.lr",
        "Training losses of different methods do not compare",
    ):
        assert wanted in page.text, wanted
    # 4 of 16 before and 12 after, none lost: 8 only after; 2 / 2^8
    assert "lift: before, after 25.0% 75.0% 0 8 0.00781" in page.text
    assert "after: lift, vanilla 75.0% 75.0% 0 0 1" in page.text
    assert capsys.readouterr().out == f"{tmp_path / 'page.html'}: {len(text.encode()) / 1e6:.1f} MB\n"
    main([str(one), str(two), "--output", str(tmp_path / "page.html"), "--title", "again"])  # ours is replaced
    assert "<h1>again</h1>" in (tmp_path / "page.html").read_text()


def test_both_runs_are_in_each_plot(tmp_path):
    """A curve and a legend for each, in the colours of the page's theme."""
    runs = [write_made_run(tmp_path / name) for name in ("a", "b")]
    text = report(*runs, output=tmp_path / "page.html")
    (plot,) = re.findall(r'aria-label="Training loss".*?</figure>', text, re.DOTALL)
    assert "stroke: var(--run-0)" in plot and "stroke: var(--run-1)" in plot
    assert re.findall(r"</span> (\w+)</span>", plot) == ["a", "b"]
    assert "#01" not in text  # no stand-in is left


def test_the_load_of_experts_is_there_where_there_are_some(tmp_path):
    dense = write_made_run(tmp_path / "dense")
    steps = [("step", step, step_record(step, expert_load=2.0 - 0.1 * step)) for step in (5, 6)]
    mixture = write_made_run(tmp_path / "mixture", records=steps)
    text = report(dense, mixture, output=tmp_path / "page.html")
    (plot,) = re.findall(r'aria-label="Load of experts".*?</figure>', text, re.DOTALL)
    assert re.findall(r"</span> (\w+)</span>", plot) == ["mixture"]
    assert 'aria-label="Load of experts"' not in report(dense, output=tmp_path / "other.html")


def test_runs_of_different_tasks_are_told_apart(tmp_path):
    """Losses on other held-out rows are in other plots, dashes are others, and both are said."""
    sums = write_made_run(tmp_path / "sums", records=[("heldout", 0, heldout(3.0))], data__path="builtin:addition")
    grids = write_made_run(tmp_path / "grids", records=[("heldout", 0, heldout(2.0))], data__path="builtin:sudoku")
    text = report(sums, grids, output=tmp_path / "page.html")
    assert "learned different data: builtin:addition; builtin:sudoku." in Page(text).text
    assert 'aria-label="Held-out loss on builtin:addition"' in text
    assert "do not compare. The same rows have: sums; grids." in text
    assert "chip run-0 dash-0" in text and "chip run-1 dash-1" in text
    other_rows = [("heldout", 0, heldout(3.0, ((2, 4),)))]
    more = write_made_run(tmp_path / "more", records=other_rows, data__path="builtin:addition")
    assert "The same rows have: sums; more." in report(sums, more, output=tmp_path / "again.html")


def test_all_text_is_escaped(tmp_path):
    """What files say is text: settings, logs, rows, names of models, folders and reasons."""
    run = tmp_path / "<b>$x_1$</b>".replace("/", "|")
    write_made_run(run, records=[("end", 4, {"reason": "failed", "detail": HTML})], data__system=HTML)
    (run / "log.txt").write_text(f"2026-01-01 00:00:00 {HTML}\n")
    (run / "supervise.jsonl").write_text(
        json.dumps({"event": "end", "time": 1.0, "step": 1, "status": 1, "last_words": HTML}) + "\n"
    )
    memory = RowMemory()
    memory.write([(3, 5, 8, np.array([0, 2]), np.array([1.0, 6.0], np.float32))])
    save_memory(run / "checkpoints" / "step-000004", memory)
    row = {"where": HTML, "hardness": 2.0, "before": None, "question": HTML, "answer": [[HTML, True], ["4", False]]}
    (run / "learnability").mkdir()
    (run / "learnability" / ROWS_FILE).write_text(json.dumps({"sections": [{"heading": HTML, "rows": [row]}]}))
    with (run / "learnability" / "learnability.csv").open("w") as file:
        csv.writer(file).writerows([["model", "token_count", "t", "mean_p_gold"], [HTML, HTML, 0.5, 0.25]])
    write_evaluation(run / HTML.replace("/", "|"), [True, False, True, True])
    text = report(run, "--title", HTML, output=tmp_path / "page.html")
    page = Page(text)
    assert not {"script", "img", "b"} & set(page.tags)
    assert page.text.count(HTML) >= 9 and "0.25" in page.text
    assert f"<mark>{HTML.replace('&', '&amp;').replace('<', '&lt;').replace('>', '&gt;')}</mark>" in text


def save_memory(checkpoint, memory):
    """As a run's checkpoint has it, of one rank."""
    from safetensors.numpy import save_file

    folder = checkpoint / "difficulty_memory"
    folder.mkdir(parents=True)
    blocks = {
        f"block.{number}.{name}": values
        for number, sizes, records in memory.state()
        for name, values in (("sizes", sizes), ("records", records))
    }
    save_file(blocks, folder / "rank-00000-of-00001.safetensors")


def test_maps_and_hardest_rows_of_checkpoints(tmp_path):
    """40 tokens seen with 3 nats and then with 0.5: maps of e^-3 = 0.05 and e^-0.5 = 0.61; a row of two tokens."""
    run = write_made_run(tmp_path / "run")
    for step, nll in ((1, 3.0), (4, 0.5)):
        buffers = DifficultyBuffers(1024, Alone(), decay=1.0, sync_every=100)
        tokens = torch.arange(300, 340).repeat(20)
        buffers.observe([(tokens, torch.linspace(0.05, 1, len(tokens)), torch.full((len(tokens),), nll))], step)
        save_difficulties(buffers, run / "checkpoints" / f"step-{step:06d}")
    memory = RowMemory()
    memory.write([(7, 5, 8, np.array([0, 2]), np.array([1.0, 6.0], np.float32))])
    save_memory(run / "checkpoints" / "step-000004", memory)
    text = report(run, output=tmp_path / "page.html")
    for title, figure in (("step-000001", "0.05"), ("step-000004", "0.61")):
        (plot,) = re.findall(rf'aria-label="run, {title}".*?</svg>', text, re.DOTALL)
        assert set(re.findall(r">(0\.\d\d)</text>", plot)) >= {figure}
    # 7 nats of two tokens, each seen once: times 1 / 1.5, over two and two more
    hardness, num_seen = re.search(r"row 7 (\S+) (\d of 5)", Page(text).text).groups()
    assert float(hardness) == pytest.approx(7 / 1.5 / 4, rel=0.02) and num_seen == "2 of 5"
    assert "tools/learnability.py" in text

    (run / "checkpoints" / "step-000004" / "difficulty" / "rank-00000-of-00001.safetensors").write_bytes(b"torn")
    (run / "checkpoints" / "step-000004" / "difficulty_memory" / "rank-00000-of-00001.safetensors").write_bytes(b"torn")
    text = report(run, output=tmp_path / "page.html")
    assert "step-000004: its difficulty table cannot be read" in text
    assert "run: its difficulty memory cannot be read" in text and 'aria-label="run, step-000001"' in text


def test_evaluations_in_a_runs_folder_and_beside_it(tmp_path):
    """3 of 4 solved, and 1 of 4: one by one, two only the first solves."""
    run = write_made_run(tmp_path / "run")
    for folder, solved in ((run / "evaluation", [1, 1, 1, 0]), (tmp_path / "base", [1, 0, 0, 0])):
        write_evaluation(folder, list(map(bool, solved)))
        results = json.loads((folder / "results.json").read_text())
        share = {"solved_share": sum(solved) / 4, "rows": 4, "solved_interval": [0.1, 0.9]}
        results["tasks"]["gsm8k"]["scores"]["strict"] |= share
        results["environment"] = {"model": f"{folder.name}-model", "protocol": "clean"}
        (folder / "results.json").write_text(json.dumps(results))
    text = Page(report(run, "--evaluation", tmp_path / "base", output=tmp_path / "page.html")).text
    assert "gsm8k strict 75.0% of 4 25.0% of 4" in text and "base-model clean" in text
    assert "gsm8k strict -50.0%" in text and "2 0 0.5" in text  # McNemar: 2 / 2^2
    text = Page(report(run, "--evaluation", tmp_path / "none", output=tmp_path / "page.html")).text
    assert "none/results.json: no results of an evaluation" in text


def test_what_a_run_has_not_is_said(tmp_path):
    """A run that has only begun: each part is a line."""
    write_records(tmp_path / "run", eval__rows=0)
    page = Page(report(tmp_path / "run", output=tmp_path / "page.html"))
    assert "run: no step is recorded." in page.text and "not begun" in page.text
    for part in (
        "solve rates before and after", "solve rates while it trains", "held-out loss", "training loss",
        "gradient norm", "learnability map", "difficulty memory", "tokens a second", "time by part", "peak memory",
        "warm-up", "lines in log.txt", "results of tools/evaluate.py",
    ):  # fmt: skip
        assert f"No {part}" in page.text, part
    assert "data.builtin_rows" in page.text  # its settings are there


def test_a_run_of_an_older_version(tmp_path):
    page = Page(report(OLD_RUN, output=tmp_path / "page.html"))
    assert "3 of 6" in page.text and "No loss by component" in page.text
    assert "buffers, step-000003" in page.text  # its difficulty table


def test_a_run_that_is_being_written(tmp_path):
    """Half of a last line is said and not counted, and so is a line that is none."""
    run = write_made_run(tmp_path / "run", optim__steps=150)
    path = run / METRICS_FILE
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], "\0\0\0", lines[2], lines[3][:200]]))
    text = Page(report(run, output=tmp_path / "page.html")).text
    assert "the last line of metrics.jsonl has no end" in text and "not counted: 1." in text
    assert "3 of 150" in text and "it trains or was cut short" in text


def test_steps_that_a_resume_went_back_behind_do_not_count(tmp_path):
    again = [("resume", 2, {"checkpoint": "x/step-000002"}), ("step", 3, step_record(3, loss=9.0))]
    run = write_made_run(tmp_path / "run", records=again)
    text = Page(report(run, output=tmp_path / "page.html")).text
    assert "steps 3 of" in text and "went on from step-000002" in text


@pytest.mark.parametrize(
    ("prepare", "arguments", "message"),
    [
        (None, ["{tmp}/nothing"], "nothing: no such folder; name the folder of a run"),
        (None, ["{tmp}"], "no folder of a run: it has no run.json (runs in it: run)"),
        (None, ["{tmp}/run", "{tmp}/run/"], "named twice"),
        ("newer", ["{tmp}/run"], "its format is 99, and the newest that this version of lift_ds reads is"),
        ("broken", ["{tmp}/run"], "no readable record of a run"),
        (None, ["{tmp}/run", "--output", "{tmp}/run/metrics.jsonl"], "exists, and is no page of lift_ds"),
        (None, ["{tmp}/run", "--output", "{tmp}/run"], "a folder; name a file, such as"),
        (None, ["{tmp}/run", "--output", "{tmp}/no/page.html"], "cannot be written: No such file or directory"),
    ],
)
def test_bad_input(prepare, arguments, message, tmp_path, capsys):
    run = write_made_run(tmp_path / "run", num_steps=1)
    metrics = (run / METRICS_FILE).read_bytes()
    if prepare == "newer":
        (run / RUN_FILE).write_text('{"format": 99, "run": {}}')
    elif prepare == "broken":
        (run / RUN_FILE).write_text('{"run": {"model"')
    with pytest.raises(SystemExit) as stopped:
        main([argument.format(tmp=tmp_path) for argument in arguments])
    assert stopped.value.code == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ") and message in printed
    assert (run / METRICS_FILE).read_bytes() == metrics and not (run / "report.html").exists()


def test_many_steps_are_a_small_page(tmp_path):
    """100,000 steps: at most 300 points, each of 334 steps at most, as the caption says."""
    run = write_made_run(tmp_path / "run", num_steps=0, optim__steps=100_000)
    line = json.dumps({"kind": "step", "time": 1.0} | step_record(0))
    with (run / METRICS_FILE).open("w") as file:
        file.writelines(line.replace('"step": 0', f'"step": {step}') + "\n" for step in range(1, 100_001))
    text = report(run, output=tmp_path / "page.html")
    assert len(text) < 600_000
    assert "Each point is the mean of up to 334 recorded steps, the band their range." in text
    assert "100,000 of 100,000" in text
    (plot,) = re.findall(r'aria-label="Learning rate".*?</svg>', text, re.DOTALL)
    longest = max(len(each.split("L")) for each in re.findall(r' d="([^"]*)"', plot))
    assert longest <= MOST_POINTS


def test_points_are_means_with_their_range():
    """601 values in 300 points: the first has 0, 1 and 2, the others two each; what is not known is left out."""
    curve = points(np.arange(602), np.append(np.arange(601.0), np.nan))
    assert len(curve.steps) == MOST_POINTS and curve.most_each == 3
    assert (curve.mean[0], curve.low[0], curve.high[0], curve.steps[0]) == (1.0, 0.0, 2.0, 2)
    assert (curve.mean[-1], curve.low[-1], curve.high[-1], curve.steps[-1]) == (599.5, 599.0, 600.0, 600)
    assert len(points(np.arange(3), np.full(3, np.nan)).steps) == 0
    assert points(np.arange(3), np.arange(3.0)).mean.tolist() == [0, 1, 2]


def test_columns_of_records_that_lack_them():
    records = [{"a": 1, "b": {"c": 2}, "d": [1, None]}, {"a": None, "d": [3]}, {"a": "x", "b": 5, "d": [2, "x"]}]
    np.testing.assert_equal(column(records, "a"), [1, np.nan, np.nan])
    np.testing.assert_equal(column(records, "b", "c"), [2, np.nan, np.nan])
    np.testing.assert_equal(rows_of(records, "d", 2), [[1, np.nan], [np.nan, np.nan], [2, np.nan]])
    assert rows_of([], "d", 2).shape == (0, 2) and column([], "a").shape == (0,)


def test_bands_are_means_by_documents():
    """(1 x 3 + 5 x 1) / 4 = 2; a level without documents, or without a loss, does not count."""
    losses = np.array([[1.0, 5.0], [np.nan, 5.0], [np.nan, np.nan]])
    np.testing.assert_equal(banded(losses, np.array([[3.0, 1.0]] * 3)), [2.0, 5.0, np.nan])
    np.testing.assert_equal(banded(losses[:1], np.zeros((1, 2))), [np.nan])


def test_ten_runs_of_a_task_look_different(tmp_path):
    """Eight colours, then other dashes."""
    for number in range(10):
        write_records(tmp_path / f"{number}")
    runs = told_apart([read_run_folder(tmp_path / f"{number}") for number in range(10)])
    assert len({(run.key.css_color, run.key.css_dash) for run in runs}) == 10


def test_solve_rates_that_are_none(tmp_path):
    broken = [(kind, step, values | {"scores": [1]}) for kind, step, values in SOLVED if kind == "solve"]
    text = Page(report(write_made_run(tmp_path / "run", records=broken), output=tmp_path / "page.html")).text
    assert "No solve rates of run: " in text


def test_names_and_times(tmp_path):
    assert short_names([tmp_path / "a" / "001", tmp_path / "b" / "001"]) == ["a/001", "b/001"]
    assert short_names([tmp_path / "a", tmp_path / "b"]) == ["a", "b"]
    assert [ago(seconds) for seconds in (0, 59.6, 3_660, 90_000)] == ["0 s", "1 min 0 s", "1 h 1 min", "1 d 1 h"]
