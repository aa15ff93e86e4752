"""The decoding settings: what is made of them, and that what is wrong is said once, in words."""

import re
import subprocess
import sys

import numpy as np
import pytest

from lift_ds.cli.answer_flags import process_of, sampling_flags
from lift_ds.cli.tool import tool_parser
from lift_ds.evaluation.harness.settings import ModelArguments
from lift_ds.evaluation.settings import EvalConfig
from lift_ds.sampling.settings import FixedSteps, SamplingSettings, checked_settings

LENGTHS = FixedSteps(gen_length=64, block_length=32, steps=32)  # two tokens a step


def parse(*flags):
    parser = tool_parser(None, tuple(sampling_flags()))
    return process_of(parser.parse_args(flags), LENGTHS, stop_early=True)


def test_every_setting_has_a_meaning_a_flag_and_a_model_argument():
    parser = tool_parser(None, tuple(sampling_flags()))
    flags = {action.dest for action in parser._actions} - {"help", "seed", "batch_size"}
    settings = {name for name in SamplingSettings.model_fields if name != "stop_early"}
    assert flags == settings
    assert settings < set(ModelArguments.model_fields)
    assert set(FixedSteps.model_fields) < set(EvalConfig.model_fields)
    assert all(field.description for field in SamplingSettings.model_fields.values())


def test_flags_fill_in_what_is_not_given():
    """Two tokens a step for other lengths too; no steps where confidence decides them."""
    expected = {"gen_length": 64, "block_length": 32, "steps": 32, "stop_early": True}
    assert parse() == SamplingSettings(**expected)
    assert parse("--gen-length", "96") == SamplingSettings(**expected | {"gen_length": 96, "steps": 48})
    assert parse("--threshold", "0.9") == SamplingSettings(**expected | {"steps": None, "threshold": 0.9})
    assert parse("--temperature", "0.5", "--top-p", "0.9", "--eos", "last") == SamplingSettings(
        **expected, temperature=0.5, top_p=0.9, eos="last"
    )


def test_all_that_is_wrong_is_said_at_once():
    with pytest.raises(ValueError) as error:
        checked_settings(gen_length=0, block_length=4, threshold=2.0, cache="all")
    assert set(re.split(r"(?<=\.) ", str(error.value))) == {
        "gen_length=0: at least 1.",
        "threshold=2.0: a probability, 0 to 1.",
        "cache='all': allowed are none, prefix, dual.",
    }


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"gen_length": 9, "block_length": 4, "steps": 5},
            r"gen_length=9 must be a multiple of (eval\.)?block_length=4",
        ),
        ({"gen_length": 8, "block_length": 4, "steps": 5}, "steps=5 must be a multiple of the number of blocks, 2"),
    ],
)
def test_lengths_and_steps_divide_wherever_they_are_given(values, message):
    for model in (FixedSteps, SamplingSettings, EvalConfig):
        with pytest.raises(ValueError, match=message):
            model(**values)


def test_numbers_of_numpy_are_numbers():
    settings = checked_settings(gen_length=np.int64(8), block_length=8, steps=np.int32(4), temperature=np.float32(0.5))
    assert settings == checked_settings(gen_length=8, block_length=8, steps=4, temperature=0.5)


def test_settings_need_no_torch():
    code = "import sys, lift_ds.sampling.settings, lift_ds.cli.answer_flags; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
