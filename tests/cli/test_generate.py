import io
import json

import pytest
from rich.console import Console

from lift_ds.cli import generate
from lift_ds.cli.generate import read_prompts
from lift_ds.evaluation.asking.answering import Answerer
from lift_ds.evaluation.asking.unmasking import MASK_SIGN, partly_masked

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


def test_what_is_drawn_does_not_depend_on_the_batch(tmp_path, capsys):
    prompts = ["Work out 3+4-2.", "Make 9 from 1, 3 and 5 with + -.", "Work out 3+4-2."]
    flags = [*SHORT, "--temperature", "3.0", "--remasking", "random", "--steps", "16", "--seed", str(10**30)]
    for prompt in prompts:
        flags += ["--prompt", prompt]
    found = []
    for size in ("1", "2", "3"):
        generate.main([*flags, "--batch-size", size, "--json", str(tmp_path / "out.jsonl")])
        found.append((tmp_path / "out.jsonl").read_text())
    assert found[0] == found[1] == found[2]
    answers = [json.loads(line)["generation"] for line in found[0].splitlines()]
    assert answers[0] != answers[2]  # equal prompts are different draws
    capsys.readouterr()
    generate.main(flags)
    assert capsys.readouterr().out.startswith(f"> {prompts[0]}\n")


def test_chat(monkeypatch, capsys):
    """A turn that is too long, and one that is stopped, are left out; the chat goes on."""
    answer = Answerer.answer
    asked = []

    def stops(self, prompts, *others):
        asked.append(len(prompts[0]))
        if len(asked) == 1:
            raise KeyboardInterrupt
        return answer(self, prompts, *others)

    monkeypatch.setattr(Answerer, "answer", stops)
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{'1+' * 3000}1\nWork out 3+4-2.\nWork out 3+4-2.\n\n"))
    generate.main([*SHORT, "--steps", "8"])
    shown = capsys.readouterr().out
    assert "this chat: a prompt of" in shown
    assert "An empty line begins a new chat." in " ".join(shown.split())
    assert "stopped" in shown
    assert "<answer>" in shown
    assert "8 forwards" in shown
    assert len(asked) == 2
    assert asked[0] == asked[1]


def test_masks_are_shown():
    arguments = generate.main.parser().parse_args(SHORT)
    session = generate.load(arguments)
    answerer = session.answerer
    ids = answerer.encoder.tokenizer("3+4=7", add_special_tokens=False).input_ids
    mask_id, end_id = answerer.model.config.mask_token_id, answerer.encoder.end_token_id

    def text(shown, before=None):
        return str(partly_masked(shown, answerer.encoder, mask_id, before))

    sign = MASK_SIGN
    assert text([*ids, mask_id, mask_id, *ids]) == f"3+4=7{sign}{sign}3+4=7"
    assert text([mask_id, *ids, end_id, end_id]) == f"{sign}3+4=7"
    other_id = min(answerer.encoder.special_ids - {end_id, mask_id})
    assert text([*ids, other_id, *ids]) == "3+4=7"
    revealed = partly_masked([*ids, end_id, *ids], answerer.encoder, mask_id, [*ids[:2], *[mask_id] * 8])
    assert str(revealed) == "3+4=7"  # what follows an end is left out, new or not
    assert [str(revealed)[span.start : span.end] for span in revealed.spans] == ["4=7"]
    seen = []
    terminal = Console(file=io.StringIO(), force_terminal=True)
    with generate.shown(session, terminal, True) as watch:
        prompt = session.encode([{"role": "user", "content": "Work out 3+4-2."}], "here")
        session.answer([prompt], 0, lambda ids: (seen.append(ids), watch(ids)))
    assert len(seen) == session.process.steps
    assert [int((ids == mask_id).sum()) for ids in seen][-1] == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--steps", "5", "--threshold", "0.9"], "steps=5, threshold=0.9"),
        (["--block-length", "30"], "must be a multiple of block_length=30"),
        (["--top-p", "2", "--temperature", "1"], "top_p=2.0"),
        (["--gen-length", "100000", "--block-length", "100000"], "--prompt 1: a prompt of"),
        (["--batch-size", "-3"], "--batch-size=-3: at least 1"),
        (["--top-p", "0.9"], "--top-p=0.9 changes nothing at temperature 0"),
        (
            ["--json", "no/such/folder.jsonl"],
            "--json no/such/folder.jsonl: cannot be written: No such file or directory; name a place that can",
        ),
        (["--prompt", "\udcff"], "--prompt 2: text 1 of 1 has the lone surrogate"),
    ],
)
def test_bad_flags(flags, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        generate.main([*SHORT, "--prompt", "x", *flags])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"question": "x"}\n{"text": "y"}\n', "rows.jsonl:2: a JSON object with the text of a prompt or question"),
        (b'{"prompt": null}\n', "rows.jsonl:1: a JSON object with the text of a prompt or question"),
        (b'["x"]\n', "rows.jsonl:1: a JSON list, where an object with prompt, question, messages is needed"),
        (b'{"prompt": "caf\xe9"}\n', "rows.jsonl:1: not JSON"),
        (b'{"prompt": "x"}\n\n{"prompt": "\\ud800"}\n', "rows.jsonl:3: text 1 of 1 has the lone surrogate"),
        (b"\n\n", "rows.jsonl has no rows; needed is one JSON object a line, with prompt, question"),
    ],
)
def test_bad_rows(tmp_path, capsys, content, message):
    (tmp_path / "rows.jsonl").write_bytes(content)
    with pytest.raises(SystemExit):
        generate.main([*SHORT, "--file", str(tmp_path / "rows.jsonl"), "--json", str(tmp_path / "out.jsonl")])
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out.jsonl").exists()


def test_a_chat_writes_no_file(capsys):
    with pytest.raises(SystemExit):
        generate.main([*SHORT, "--json", "x.jsonl"])
    assert "--json: a chat writes no file" in capsys.readouterr().err


def test_rows_with_a_mark_or_rare_line_ends(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes('\ufeff{"prompt": "a\u2028b"}\r\n\r\n{"question": "c"}\r\n'.encode())
    assert [(each.text, each.where) for each in read_prompts(path)] == [("a\u2028b", f"{path}:1"), ("c", f"{path}:3")]


def test_a_stop_ends_with_130(monkeypatch, capsys):
    def stops(arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(generate, "load", stops)
    with pytest.raises(SystemExit) as stopped:
        generate.main([*SHORT, "--prompt", "x"])
    assert stopped.value.code == 130
    assert capsys.readouterr().err == "stopped\n"
