"""What an export's card says of license and base, read by the hub's own library."""

import pytest
from huggingface_hub import ModelCard

from lift_ds.config.run import RunConfig
from lift_ds.export.card import model_card, read_metadata
from lift_ds.models.weights import resolve_folder

SUMMARY = {"num_parameters": 1234, "dtype": "bfloat16", "step": 3, "zero_stage": 3, "world_size": 2}
UNKNOWN = "| licence | unknown: the base came without a card that names one; look it up before you pass this on |\n"


def card_of(folder, path, from_scratch=False):
    """The card of a run from a base whose files are in `folder`, and which the run named `path`."""
    config = RunConfig.model_validate({"model": {"path": str(path), "from_scratch": from_scratch}})
    text = model_card(SUMMARY, {"run": config.model_dump()}, None, read_metadata(folder))
    return ModelCard(text).data, text


def test_license_and_base_of_a_hub_name(tmp_path):
    (tmp_path / "README.md").write_text("---\nlicense: apache-2.0\nbase_model: someone/else\n---\n# A base\n")
    data, text = card_of(tmp_path, "GSAI-ML/LLaDA-8B-Instruct")
    assert data.license == "apache-2.0" and data.base_model == "GSAI-ML/LLaDA-8B-Instruct"
    assert data.library_name == "transformers" and data.tags == ["masked-diffusion", "lift"]
    assert "| licence | apache-2.0, the base's |\n" in text


def test_a_license_of_its_own_name_keeps_name_and_link(tmp_path):
    named = "license: other\nlicense_name: my-terms\nlicense_link: https://example.org/terms\n"
    (tmp_path / "README.md").write_text(f"---\n{named}base_model: org/first\n---\n")
    data, text = card_of(tmp_path, tmp_path)
    assert (data.license, data.license_name, data.license_link) == ("other", "my-terms", "https://example.org/terms")
    assert data.base_model == "org/first"  # what the folder itself was made from
    assert "| licence | my-terms, the base's |\n" in text


@pytest.mark.parametrize("content", [None, "# No front matter\n", "---\nlicense: [\n---\n", "---\n- a list\n---\n"])
def test_an_unknown_license_is_said(tmp_path, content):
    if content is not None:
        (tmp_path / "README.md").write_text(content)
    data, text = card_of(tmp_path, tmp_path)
    assert data.license == "unknown" and data.base_model is None and UNKNOWN in text


def test_new_weights_have_no_license_of_a_base(tmp_path):
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    data, text = card_of(tmp_path, tmp_path, from_scratch=True)
    assert data.license is None and "| licence | none is set: the weights began anew |\n" in text


def test_the_built_in_base_says_what_it_may_be_used_for():
    data, _ = card_of(resolve_folder("builtin:base"), "builtin:base")
    assert data.license == "mit" and data.base_model is None


def test_a_strangers_weights_are_of_unknown_license():
    assert UNKNOWN in model_card(SUMMARY, None, None, {})
