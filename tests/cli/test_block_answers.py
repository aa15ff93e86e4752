"""The tools with a model that denoises block after block: its own blocks where no flag names any."""

import json

import pytest

from lift_ds.cli import evaluate, generate
from tests.conftest import run_script
from tests.models.block_vectors import write_folder


@pytest.fixture(scope="module")
def folder(tiny_dir, tmp_path_factory):
    """Random weights: answers are nonsense, but each prompt's own."""
    return write_folder("sdar_tiny", tiny_dir, tmp_path_factory.mktemp("sdar") / "model", 0.3)


def test_prompts_from_a_file(folder, tmp_path, capsys):
    """One at a time and together they get the same answers; steps as given, or as many as the threshold needs."""
    rows, out = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    rows.write_text('{"prompt": "Work out 3+4-2."}\n{"prompt": "Make 9 from 1, 3 and 5 with + -."}\n')
    flags = [str(folder), "--gen-length", "16", "--file", str(rows), "--json", str(out)]
    found = {}
    for name, more in (("alone", ["--batch-size", "1"]), ("together", []), ("sure", ["--threshold", "1"])):
        generate.main([*flags, *more])
        found[name] = [json.loads(line) for line in out.read_text().splitlines()]
    assert found["alone"] == found["together"]
    assert "block_length=4, the model's own" in capsys.readouterr().err
    assert [each["generation"] for each in found["sure"]] == [each["generation"] for each in found["alone"]]
    texts = {each["generation"] for each in found["alone"]}
    assert len(texts) == 2
    # the prompt's whole blocks, 16 tokens, and 4 or 5 blocks kept but for the last
    assert all(5 <= each["num_forwards"] <= 1 + 20 + 4 for each in found["alone"])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--block-length", "8"], "sdar denoises blocks of 4 tokens, one after the other. block_length=8: set it to 4"),
        (["--temperature", "1"], "temperature=1.0: answers are greedy; set it to 0.0"),
        (["--cache", "dual"], "cache=dual: keys and values of finished blocks are kept anyway"),
        (["--gen-length", "18"], "gen_length=18 must be a multiple of block_length=4"),
        (["--steps", "128"], "steps=128: 32 for each block of sdar, which has 4 tokens; at most 16 are needed"),
        (["--prompt", "3+4 " * 300], "longer than the 512 tokens that the model was made for"),
    ],
)
def test_flags_that_mean_nothing_are_refused(folder, flags, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        generate.main([str(folder), "--gen-length", "16", "--prompt", "x", *flags])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


@pytest.fixture(scope="module")
def flags(folder):
    return [
        "--model", str(folder), "--protocol", "clean", "--tasks", "builtin:countdown", "--limit", "3",
        "--gen-length", "16", "--steps", "8", "--batch-size", "2",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def whole(flags, tmp_path_factory):
    output = tmp_path_factory.mktemp("whole") / "evaluation"
    evaluate.main([*flags, "--output", str(output)])
    return output


def texts_of(folder):
    return (folder / "builtin-countdown.jsonl").read_text()


def test_an_evaluation_has_the_models_blocks(whole, flags, tmp_path, capsys):
    results = json.loads((whole / "results.json").read_text())
    decoding = results["settings"]["tasks"]["builtin:countdown"]["decoding"]
    assert (decoding["block_length"], decoding["steps"], decoding["stop_early"]) == (4, 8, True)
    cost = results["tasks"]["builtin:countdown"]["generation"]
    assert cost["samples"] == 3 and cost["forwards_per_sample"] >= 3
    with pytest.raises(SystemExit):
        evaluate.main([*flags, "--temperature", "0.5", "--output", str(tmp_path / "other")])
    assert "temperature=0.5: answers are greedy" in capsys.readouterr().err


@pytest.mark.distributed
def test_a_model_cut_over_two_ranks_gives_the_same_answers(whole, flags, tmp_path):
    """Three problems: the second rank answers one less, and goes along."""
    output = tmp_path / "evaluation"
    run_script("tools/evaluate.py", *flags, "--output", output, "--deepspeed", "ds_configs/zero3.json", num_ranks=2)
    assert texts_of(output) == texts_of(whole)
