import csv
import json
import math
from dataclasses import replace

import pytest
import torch

from lift_ds.cli.learnability import are_apart, main
from lift_ds.evaluation.heldout import fixed_noise, frequency_class
from lift_ds.evaluation.learnability import LEVELS, Learnability, from_difficulty, measure
from lift_ds.evaluation.learnability_page import curves_title
from lift_ds.method.noise import superset_mask
from lift_ds.ranks.shares import Alone
from lift_ds.training.buffers import DifficultyBuffers
from tests.conftest import save_difficulties
from tests.distributed.jobs import make_documents


@pytest.fixture
def documents():
    made, _ = make_documents(5, [0.5] * 6, {2})
    return made


def test_measure_equals_the_plain_computation(llada, documents):
    """Summed over documents one by one, with whole logits; the batch size does not matter."""
    measured = measure(llada, documents, batch_size=4, seed=1)
    alone = measure(llada, documents, batch_size=1, seed=1)
    torch.testing.assert_close(measured.gold, alone.gold, rtol=1e-4, atol=1e-6)
    place, level = 3, LEVELS[3]
    counts, gold, confidence = (torch.zeros(len(measured.frequency), dtype=torch.float64) for _ in range(3))
    for document in documents:
        ids, response = torch.from_numpy(document.ids)[None], torch.from_numpy(document.response_mask)[None]
        uniform = torch.from_numpy(fixed_noise(document, 1).uniforms[0])[None]
        masked = superset_mask(uniform, response, torch.tensor([level]), torch.zeros(1))
        with torch.no_grad():
            probability = llada(input_ids=ids.masked_fill(masked, 100)).logits.softmax(-1)
        tokens = ids[masked]
        gold.index_add_(0, tokens, probability.gather(-1, ids[..., None])[..., 0][masked].double())
        confidence.index_add_(0, tokens, probability.amax(-1)[masked].double())
        counts.index_add_(0, tokens, torch.ones(len(tokens), dtype=torch.float64))
    assert counts.sum() > 5
    assert torch.equal(measured.counts[:, place], counts)
    torch.testing.assert_close(measured.gold[:, place], gold, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(measured.confidence[:, place], confidence, rtol=1e-4, atol=1e-6)
    assert int(measured.frequency.sum()) == sum(int(document.response_mask.sum()) for document in documents)


def test_cells_by_frequency_class():
    """Tokens 0 and 1 occur 2 and 3 times: one class. Its p(gold) is (2 x 0.5 + 3 x 1) / 5 = 0.8."""
    shape = (4, len(LEVELS))
    counts, gold = torch.zeros(shape).double(), torch.zeros(shape).double()
    counts[0, 0], counts[1, 0], gold[0, 0], gold[1, 0] = 2, 3, 1.0, 3.0
    squares = gold.clone()
    squares[0, 0] = 0.5
    frequency = torch.tensor([2, 3, 0, 9])
    learnability = Learnability(frequency, counts, gold, gold, squares)
    assert frequency_class(frequency).tolist() == [1, 1, -1, 3]
    cell = learnability.cells()[1][0]
    assert cell.num_tokens == 5 and cell.gold == pytest.approx(0.8)
    # variance 3.5 / 5 - 0.64 = 0.06
    assert cell.interval == pytest.approx(1.96 * (0.06 / 5) ** 0.5)
    assert learnability.cells()[3][0].num_tokens == 0


def test_no_documents(llada):
    with pytest.raises(ValueError, match="no documents"):
        measure(llada, [], 4, 0)


def test_the_report_of_two_models(tmp_path, capsys):
    """The built-in base against itself: the same figures twice, and no token gained."""
    arguments = ["builtin:base", "--compare", "builtin:base", "--data", "builtin:arithmetic", "--rows", "6"]
    main([*arguments, "--output", str(tmp_path)])
    assert "learnability.html" in capsys.readouterr().out
    rows = list(csv.DictReader((tmp_path / "learnability.csv").open()))
    assert {row["model"] for row in rows} == {"builtin:base"}
    assert all((row["num_tokens"] == "0") == math.isnan(float(row["mean_p_gold"])) for row in rows)
    rows = [row for row in rows if row["num_tokens"] != "0"]
    assert len(rows) > 20
    assert all(0 <= float(row["mean_p_gold"]) <= float(row["mean_confidence"]) + 1e-6 <= 1.001 for row in rows)
    page = (tmp_path / "learnability.html").read_text()
    assert "data:image/png;base64," in page and "http" not in page
    assert (tmp_path / "learnability.png").stat().st_size > 20_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["builtin:base"], "--data is needed"),
        (["no/model", "--data", "builtin:sudoku"], "fetching it as a hub name failed"),
        (["builtin:base", "--data", "nowhere.jsonl"], "no such file"),
        (["builtin:base", "--data", "builtin:sudoku", "data.nonsense=1"], "unknown key"),
        (["builtin:base", "--buffers"], "--buffers needs a run folder"),
        (["builtin:base", "--memory"], "--memory needs a run folder"),
        (["builtin:base", "--memory", "--buffers"], "remove --data, --compare, --rows and --buffers"),
    ],
)
def test_bad_input(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_from_a_difficulty_table():
    """Token 1 was seen 4 times at level bin 0 with 2 nats each: p(gold) = e^-2; token 0 never."""
    sums, counts = torch.zeros(2, 16), torch.zeros(2, 16)
    sums[1, 0], counts[1, 0] = 8.0, 4.0
    learnability = from_difficulty(sums, counts)
    assert learnability.levels[0] == 1 / 32 and len(learnability.levels) == 16
    assert list(learnability.cells()) == [2]
    first, second = learnability.cells()[2][:2]
    assert (first.num_tokens, first.gold) == (4, pytest.approx(math.exp(-2)))
    assert math.isnan(first.confidence) and math.isnan(first.interval)
    assert second.num_tokens == 0
    assert curves_title(learnability.cells()) == "p(gold)"  # nothing else is drawn
    measured = {2: [replace(first, interval=0.1, confidence=0.5)]}
    assert curves_title(measured) == "p(gold) with 95 % interval, confidence dashed"


def test_the_report_of_a_runs_buffers(tmp_path, capsys):
    """Two checkpoints, the second of which knows the tokens better: they gained."""
    (tmp_path / "run.json").write_text(json.dumps({"run": {"model": {"path": "builtin:base"}}}))
    vocabulary = 1024
    for step, nll in ((1, 3.0), (2, 0.5)):
        buffers = DifficultyBuffers(vocabulary, Alone(), decay=1.0, sync_every=100)
        tokens = torch.arange(300, 340).repeat(20)
        level = torch.linspace(0.05, 1, len(tokens))
        buffers.observe([(tokens, level, torch.full((len(tokens),), nll))], step)
        checkpoint = tmp_path / "checkpoints" / f"step-{step:06d}"
        save_difficulties(buffers, checkpoint)
        (checkpoint / "manifest.json").write_text(
            json.dumps({"step": step, "world_size": 1, "zero_stage": 3, "model": "", "files": {}})
        )
    main([str(tmp_path), "--buffers"])
    assert "learnability.html" in capsys.readouterr().out
    rows = list(csv.DictReader((tmp_path / "learnability" / "learnability.csv").open()))
    found = {(row["model"], round(float(row["mean_p_gold"]), 3)) for row in rows if int(row["num_tokens"])}
    assert found == {("step 1", round(math.exp(-3), 3)), ("step 2", round(math.exp(-0.5), 3))}
    assert "Tokens that gained most" in (tmp_path / "learnability" / "learnability.html").read_text()


@pytest.mark.parametrize(
    ("data", "eval_path", "expected"),
    [
        ({"path": "builtin:reasoning"}, None, True),
        ({"path": ["rows.jsonl"]}, None, False),
        ({"path": "rows.jsonl"}, "held_out.jsonl", True),
        ({"path": "builtin:reasoning", "sources": [{"path": "builtin:sudoku"}, {"path": "rows.jsonl"}]}, None, False),
    ],
)
def test_more_rows_than_were_held_out_only_where_they_are_no_training_rows(data, eval_path, expected):
    assert are_apart({"data": data, "eval": {"path": eval_path}}) is expected
