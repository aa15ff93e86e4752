"""From noise to the end of backward nothing asks the device for a number: passes run on one that has none.

On the meta device tensors have shapes and no data. Whatever would make the host wait for a GPU (a mask as an index,
`nonzero`, `.tolist()`, `.item()`, `bool()`, `.cpu()`) raises there; what does not is watched: copies towards it, and
assignments through a mask.
"""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lift_ds.data.batch import collate
from lift_ds.models.lora import add_adapters
from lift_ds.objectives import OBJECTIVES, make_objective, objective_settings
from lift_ds.ranks.moving import joined, moved, parted
from lift_ds.training import step as step_file
from lift_ds.training.draws import make_noise_rule
from lift_ds.training.step import DiffusionStep
from tests.models.block_vectors import load
from tests.models.test_attention import make_batch
from tests.objectives.test_objectives import Uncounted
from tests.training.test_block_levels import make_documents

META = torch.device("meta")
CASES = [
    *((method, {}) for method in OBJECTIVES),
    *(("lift3", {"scoring": scoring}) for scoring in ("approximate", "buffer", "memory")),
    ("lift3", {"scoring": "buffer", "refresh_share": 0.0, "warm_start_steps": 0}),
    ("vanilla", {"complementary": True}),
    ("lift3", {"complementary": True}),
    ("lift3", {"token_weight": "cart"}),
    ("hard", {"token_weight": "mgdm"}),
    ("lift3", {"token_weight": "papl"}),
    ("lift3", {"token_weight": "papl", "scoring": "approximate"}),
]
WAITS = {"gift": 1}  # its levels come from the scoring pass: nobody knows how many tokens they mask


class Copies(TorchDispatchMode):
    """What mixes tensors of the CPU and the device (only scalars travel with a kernel), and masks as indices."""

    def __init__(self):
        super().__init__()
        self.num_copies, self.waiting = 0, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        found = func(*args, **kwargs)
        tensors = [each for each in tree_leaves((args, kwargs, found)) if isinstance(each, torch.Tensor)]
        devices = {each.device.type for each in tensors if each.dim()}
        is_host_only = func is torch.ops.lift_ds.kept_features.default  # its numbers of the documents stay there
        if devices == {"cpu", "meta"} and not is_host_only:
            self.num_copies += 1
            if func is not torch.ops.aten._to_copy.default or not kwargs.get("non_blocking"):
                self.waiting.append(str(func))
        is_index = func.overloadpacket in (torch.ops.aten.index, torch.ops.aten.index_put, torch.ops.aten.index_put_)
        if is_index and any(each is not None and each.dtype == torch.bool for each in args[1]):
            self.waiting.append(str(func))
        return found


@pytest.fixture
def asked(monkeypatch):
    """Calls of `positions` that have to ask how many; torch has no generator and no autocast of the meta device."""
    calls, plain, generator = [], step_file.positions, torch.Generator

    def positions(mask, count):
        if count is None:
            calls.append(mask.shape)
        return plain(mask, 5 if count is None else count)

    monkeypatch.setattr(step_file, "positions", positions)
    monkeypatch.setattr(step_file, "scoring_autocast", lambda device, in_bf16: nullcontext())
    monkeypatch.setattr(torch, "Generator", lambda device=None: generator())
    return calls


def run_on_meta(model, objective, is_packed=False, method="lift3", lengths=(12, 9, 4), batch=None):
    """One micro-batch, forward and backward; copies to the device, and those that the host waits for."""
    batch = batch or make_batch(lengths, method)
    table = {"difficulty": torch.rand(batch.clean_ids.shape)}
    root = DiffusionStep(model.to(META), objective, keeps_observations=True, is_packed=is_packed).train()
    with Copies() as copies:
        loss, result = root(replace(batch, **table), torch.ones(len(lengths)), (3, 1), META)
        loss.backward()
    assert loss.device == result.gradient_norms.device == META
    assert any(each.grad is not None for each in model.parameters())
    return copies


@pytest.mark.parametrize("is_packed", [False, True])
@pytest.mark.parametrize(("method", "options"), CASES)
def test_no_objective_asks_the_device(llada, asked, method, options, is_packed):
    copies = run_on_meta(llada, make_objective(objective_settings(method, **options)), is_packed, method)
    assert len(asked) == WAITS.get(method, 0)
    assert copies.waiting == []
    num_passes = 2 if make_objective(objective_settings(method, **options)).scoring_pass != "none" else 1
    assert copies.num_copies == 1 + (num_passes if is_packed else 0)  # where documents begin, once a pass


@pytest.mark.parametrize("level_per", ["document", "block"])
@pytest.mark.parametrize(("method", "options"), [case for case in CASES if "token_weight" not in case[1]])
def test_blocks_ask_nothing_more(asked, method, options, level_per):
    settings = objective_settings(method, level_per=level_per, **options)
    rule = make_noise_rule(settings, 5, 3, 4 if level_per == "block" else None)
    documents = make_documents((12, 9, 4), prompt=2)
    batch = collate(documents, rule(documents, 0, [(slot, 0) for slot in range(3)]), 247)
    copies = run_on_meta(load("sdar_tiny"), make_objective(settings), batch=batch)
    assert len(asked) == WAITS.get(method, 0)
    assert copies.waiting == [] and copies.num_copies == 1


@pytest.mark.parametrize("is_packed", [False, True])
def test_dropout_of_adapters_asks_nothing(llada, asked, is_packed):
    add_adapters(llada, 4, 8, 0.1, ["q_proj", "v_proj"], 3)
    copies = run_on_meta(llada, make_objective(objective_settings("lift3")), is_packed)
    assert asked == [] == copies.waiting


def test_a_rank_that_scores_nothing_asks_nothing(llada, asked):
    everything_random = make_objective(objective_settings("lift3", random_weight=1e6))
    assert run_on_meta(llada, everything_random).waiting == [] == asked


def test_an_objective_that_does_not_count_asks_once(llada, asked):
    run_on_meta(llada, Uncounted(objective_settings("vanilla")), method="vanilla")
    assert len(asked) == 1


def test_what_asks_is_found(llada, asked):
    """Each of the old ways, in an objective: the passes end there."""

    class Asking(OBJECTIVES["vanilla"]):
        ask = None

        def choose(self, batch, candidates, scores):
            self.ask(batch)
            return super().choose(batch, candidates, scores)

    def find(ask):
        objective = Asking(objective_settings("vanilla"))
        objective.ask = ask
        return run_on_meta(llada, objective, method="vanilla").waiting

    for ask in (
        lambda batch: batch.clean_ids[batch.response_mask],
        lambda batch: batch.response_mask.nonzero(),
        lambda batch: batch.t.tolist(),
        lambda batch: float(batch.t.sum()),
        lambda batch: bool(batch.response_mask.any()),
        lambda batch: batch.t.cpu(),
        lambda batch: batch.clean_ids.masked_select(batch.response_mask),
    ):
        with pytest.raises((NotImplementedError, RuntimeError)):
            find(ask)
    assign = find(lambda batch: torch.zeros_like(batch.t).__setitem__(batch.t > 0, batch.t))
    assert assign == ["aten.index_put_.default"]
    assert find(lambda batch: torch.arange(3).to(META)) == ["aten._to_copy.default"]
    assert find(lambda batch: batch.clean_ids[torch.arange(2)]) == ["aten.index.Tensor"]


def test_many_tensors_in_one_copy():
    """Every type and shape comes out as it went in, none of them at a place that its type cannot begin at."""
    tensors = [
        torch.tensor([True, False, True]), torch.arange(5), torch.tensor(2.5), torch.zeros(2, 0), torch.rand(3, 2).T,
        torch.arange(3, dtype=torch.int32), torch.rand(2, 1, dtype=torch.float64).expand(2, 3),
    ]  # fmt: skip
    flat = joined(tensors)
    assert len(flat) == 3 + 5 * 8 + 4 + 0 + 6 * 4 + 3 * 4 + 6 * 8
    for found, given in zip(parted(flat, tensors), tensors, strict=True):
        assert found.dtype == given.dtype and torch.equal(found, given)
    assert all(found is given for found, given in zip(moved(tensors, torch.device("cpu")), tensors, strict=True))
