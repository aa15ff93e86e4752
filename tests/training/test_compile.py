"""`model.compile`: the same run, its layers compiled."""

import pytest
import torch
from torch._dynamo.utils import counters

from lift_ds.data.batch import collate
from lift_ds.training.run import compile_layers
from tests.conftest import SMALL, launch_train, losses_of
from tests.distributed.jobs import make_documents
from tests.training.test_step_dropout import LEVELS, make_root


@pytest.mark.parametrize("is_packed", [pytest.param(False, marks=pytest.mark.slow), True], ids=["padded", "packed"])
def test_another_length_compiles_nothing_anew(llada_dir, is_packed):
    """Adapters' dropout included, and no graph breaks.

    Two parts of a layer, each while training and while scoring: 4 graphs; torch takes a batch of one for another shape,
    which scoring passes meet: 2 more. Packed, every batch is of one.
    """
    torch._dynamo.reset()
    counters.clear()
    options = {"is_packed": is_packed, "method": "lift3"}
    eager, compiled = make_root(llada_dir, **options), make_root(llada_dir, **options)
    compile_layers(compiled.model, backend="aot_eager")
    lengths = set()
    for step in range(10):
        documents, noises = make_documents(step, LEVELS, set())
        batch = collate(documents[: 2 + step % 3], noises[: 2 + step % 3], 99)
        lengths.add(int(batch.attention_mask.sum()) if is_packed else batch.clean_ids.shape[1])
        scale = torch.full(batch.t.shape, 0.01)
        losses = [root(batch, scale, (42, step))[0] for root in (eager, compiled)]
        losses[1].backward()
        torch.testing.assert_close(losses[1], losses[0])
    assert len(lengths) > 5 and not counters["graph_break"]
    assert counters["stats"]["unique_graphs"] <= (4 if is_packed else 6)


@pytest.mark.distributed
@pytest.mark.slow  # a compilation takes half a minute
@pytest.mark.parametrize(
    ("more", "num_steps"),
    [
        ([], 6),
        (["model.checkpoint_layers=1"], 6),
        (["model.gradient_checkpointing=true"], 6),
        (["data.packing=best_fit", "lora.rank=4", "lora.dropout=0.5", "model.gradient_checkpointing=true"], 3),
    ],
    ids=["plain", "half checkpointed", "checkpointed", "packed adapters"],
)
def test_losses_are_those_of_eager_layers(tiny_dir, tmp_path, more, num_steps):
    """Two ZeRO-3 ranks, layers as leaf modules, documents of any length, evaluation and sampling between.

    Adapters' matrices B start at 0, where AdamW makes whole steps of a gradient's last bits: theirs are compared early.
    """
    command = [*SMALL, *more, "--model", tiny_dir, "data.pad_to_multiple=1", "data.pad_targets=one_eos", "eval.every=3"]
    launch_train(*command, "--output", tmp_path / "eager")
    launch_train(*command, "--output", tmp_path / "compiled", "model.compile=true")
    expected, found = losses_of(tmp_path / "eager"), losses_of(tmp_path / "compiled")
    assert len(found) == 6 and expected[6][0] < expected[1][0]
    for step in range(1, num_steps + 1):
        assert found[step][0] == pytest.approx(expected[step][0], rel=1e-6)
        assert found[step][1] == pytest.approx(expected[step][1], rel=1e-5)
