"""Models with blocks of their own in lm-evaluation-harness: likelihoods by blocks, greedy checks, answers."""

from itertools import combinations
from math import comb

import pytest
import torch
from lm_eval.api.instance import Instance

from lift_ds.evaluation.asking.answering import load_answerer
from lift_ds.evaluation.harness.language_model import DiffusionLM
from lift_ds.evaluation.harness.likelihood import Pair
from lift_ds.evaluation.harness.settings import HarnessSettings
from lift_ds.ranks.shares import Alone
from lift_ds.sampling.reverse import denoise
from lift_ds.sampling.settings import SamplingSettings
from tests.evaluation.harness.test_harness_likelihood import no_bar, scorer
from tests.models.block_vectors import load, write_folder


def bound_by_blocks(model, pair, size):
    """Sum over blocks of each one's own bound: all before it clean, its places of the continuation masked in turn."""
    total = 0.0
    for start in range(0, len(pair.ids), size):
        end = min(start + size, len(pair.ids))
        places = [place for place in range(start, end) if place >= len(pair.context)]
        for number in range(1, len(places) + 1):
            weight = 1 / (number * comb(len(places), number))
            for masked in combinations(places, number):
                ids = torch.tensor([pair.ids[:end]])
                noised = ids.clone()
                noised[0, list(masked)] = 250
                with torch.no_grad():
                    logprob = model(input_ids=noised).logits.log_softmax(-1)
                total += weight * sum(float(logprob[0, place, ids[0, place]]) for place in masked)
    return total


def test_likelihoods_are_sums_of_the_blocks_bounds():
    """Where all masks of a continuation are computed: the weights of masks over it all are those within its blocks."""
    model = load("sdar_tiny")
    pairs = [
        Pair((5, 6, 7, 8), (9, 10)),
        Pair((5, 6, 7), (8, 9, 10, 11, 12)),
        Pair((5, 6, 7, 8, 9, 10), (11, 12, 13, 14, 15, 16)),
    ]
    estimates = scorer(model).estimates(pairs, no_bar)
    for pair, found in zip(pairs, estimates, strict=True):
        assert found.standard_error == 0
        assert found.loglikelihood == pytest.approx(bound_by_blocks(model, pair, 4), rel=1e-4)


def test_greedy_continuations_are_found():
    """What the blocks become, a token a step; with the first or the last token changed it is not."""
    model, pairs, expected = load("sdar_tiny"), [], []
    for context, length in (((5, 6, 7, 8), 8), ((9, 8, 7, 6, 5, 4, 3, 2), 4), ((1, 2, 3, 4), 12)):
        settings = SamplingSettings(gen_length=length, block_length=4, steps=length)
        target = tuple(denoise(model, torch.tensor([context]), settings).ids[0, len(context) :].tolist())
        changed = ((target[0] + 1) % 90, *target[1:]), (*target[:-1], (target[-1] + 1) % 90)
        pairs += [Pair(context, target), *(Pair(context, each) for each in changed)]
        expected += [True, False, False]
    for batch_size in (1, 5, 64):
        assert scorer(model, batch_size).are_greedy(pairs, no_bar) == expected


@pytest.fixture(scope="module")
def answerer(tiny_dir, tmp_path_factory):
    return load_answerer(str(write_folder("sdar_tiny", tiny_dir, tmp_path_factory.mktemp("sdar") / "model", 0.3)))


def test_answers_have_the_models_blocks(answerer):
    lm = DiffusionLM(answerer, Alone(), HarnessSettings())
    ask = {"until": ["</answer>"], "max_gen_toks": 10, "do_sample": False}
    (job,) = lm.answers.jobs([("Work out 3+4-2.", ask)])
    assert (job.process.gen_length, job.process.block_length, job.process.steps) == (12, 4, 12)
    (text,) = lm.generate_until([Instance("generate_until", {}, ("Work out 3+4-2.", ask), 0)])
    ids = denoise(answerer.model, torch.tensor([job.prompt]), job.process).ids[0, len(job.prompt) :].tolist()
    assert text == answerer.encoder.answer_text(ids[:10]).partition("</answer>")[0]
    ((bound, is_greedy),) = lm.loglikelihood([Instance("loglikelihood", {}, ("3+4=", "7"), 0)])
    assert bound < 0 and is_greedy in (True, False)


def test_what_the_harness_may_not_ask_of_blocks(answerer):
    with pytest.raises(ValueError, match="block_length=32: set it to 4, the model's own"):
        DiffusionLM(answerer, Alone(), HarnessSettings(block_length=32))
    with pytest.raises(ValueError, match="cfg_scale=1.0: there is no guidance"):
        DiffusionLM(answerer, Alone(), HarnessSettings(cfg_scale=1.0))
    sampled = [("3+4", {"temperature": 0.7, "max_gen_toks": 8})]
    with pytest.raises(ValueError, match="temperature=0.7: answers are greedy; set it to 0.0"):
        DiffusionLM(answerer, Alone(), HarnessSettings()).answers.jobs(sampled)
    (job,) = DiffusionLM(answerer, Alone(), HarnessSettings(temperature=0.0)).answers.jobs(sampled)
    assert job.process.temperature == 0
