import io
import json

import pytest
from rich.console import Console

from lift_ds.cli import generate

SHORT = ["builtin:base", "--gen-length", "32", "--block-length", "32"]


def test_prompts_from_a_file(tmp_path):
    """One at a time and together they get the same answers, although the prompts differ in length."""
    prompts = ["Work out 3+4-2.", "Make 9 from 1, 3 and 5 with + -."]
    rows, out = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    rows.write_text("".join(json.dumps({"question": prompt}) + "\n" for prompt in prompts))
    found = []
    for size in ("1", "2"):
        generate.main([*SHORT, "--threshold", "0.9", "--file", str(rows), "--batch-size", size, "--json", str(out)])
        found.append([json.loads(line) for line in out.read_text().splitlines()])
    alone, together = found
    assert [each["question"] for each in together] == prompts
    assert [each["generation"] for each in alone] == [each["generation"] for each in together]
    assert all("<answer>" in each["generation"] for each in together)
    assert all(1 <= each["num_forwards"] <= 32 for each in alone)


def test_chat(monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("Work out 3+4-2.\n\n"))
    generate.main([*SHORT, "--steps", "8"])
    shown = capsys.readouterr().out
    assert "<answer>" in shown
    assert "8 forwards" in shown


def test_masks_are_shown():
    arguments = generate.make_parser().parse_args(SHORT)
    session = generate.load(arguments)
    answerer = session.answerer
    ids = answerer.encoder.tokenizer("3+4=7", add_special_tokens=False).input_ids
    mask_id, end_id = answerer.model.config.mask_token_id, answerer.encoder.end_token_id
    sign = generate.MASK_SIGN
    assert str(generate.partly_masked([*ids, mask_id, mask_id, *ids], answerer)) == f"3+4=7{sign}{sign}3+4=7"
    assert str(generate.partly_masked([mask_id, *ids, end_id, end_id], answerer)) == f"{sign}3+4=7"
    seen = []
    terminal = Console(file=io.StringIO(), force_terminal=True)
    with generate.shown(session, terminal, True) as watch:
        session.answer([generate.as_messages(None, "Work out 3+4-2.")], lambda ids: (seen.append(ids), watch(ids)))
    assert len(seen) == session.process.steps
    assert [int((ids == mask_id).sum()) for ids in seen][-1] == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--steps", "5", "--threshold", "0.9"], "steps=5, threshold=0.9"),
        (["--block-length", "30"], "must be a multiple of block_length=30"),
        (["--top-p", "2"], "top_p=2.0"),
        (["--gen-length", "100000", "--block-length", "100000"], "longer than the"),
    ],
)
def test_bad_flags(flags, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        generate.main([*SHORT, "--prompt", "x", *flags])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_a_row_without_a_prompt(tmp_path, capsys):
    (tmp_path / "rows.jsonl").write_text('{"question": "x"}\n{"text": "y"}\n')
    with pytest.raises(SystemExit):
        generate.main([*SHORT, "--file", str(tmp_path / "rows.jsonl")])
    assert "rows.jsonl:2: a JSON object with prompt or question is needed" in capsys.readouterr().err
