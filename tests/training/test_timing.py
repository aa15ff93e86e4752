"""Where a step's seconds go, its memory and its MFU, by arithmetic: the clock and the CUDA events are stand-ins."""

import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lift_ds.config.run import RunConfig
from lift_ds.models import hollow, layer_sizes
from lift_ds.models.settings import LoraConfig, ModelConfig
from lift_ds.planning import flops
from lift_ds.planning.flops import Arithmetic
from lift_ds.ranks.watchdog import Activity
from lift_ds.training.efficiency import Efficiency
from lift_ds.training.loop import _add_shown
from lift_ds.training.metrics import StepTotals, with_rank, without_rank
from lift_ds.training.modes import MAKES_ROOM, timed
from lift_ds.training.timing import PARTS, StepClock, peak_memory
from tests.conftest import Share


def made_ranks(device, seconds):
    return SimpleNamespace(device=torch.device(device), communication_seconds=seconds, activity=Activity())


@pytest.fixture
def clock(monkeypatch):
    """A clock that only goes on when it is told to."""
    now = SimpleNamespace(seconds=100.0)
    monkeypatch.setattr(time, "perf_counter", lambda: now.seconds)
    return now


def take_step(clock, ranks):
    """2 s of data, 1.5 s of communication, 5 s of forward that score for 2 s, 4 s of backward, twice; an update."""
    step = StepClock(ranks)
    with step.part("data"):
        clock.seconds += 2
    clock.seconds += 1.5
    ranks.communication_seconds += 1.5
    for _ in range(2):
        with step.part("forward"):
            with timed(ranks.device, "scoring") as scoring:
                clock.seconds += 2
            clock.seconds += 3
        step.add("scoring", scoring)
        with step.part("backward"):
            clock.seconds += 4
    clock.seconds += 0.25
    with step.part("optimizer"):
        clock.seconds += 1
    return step


def test_parts_of_a_step(clock):
    ranks = made_ranks("cpu", 7.0)  # seconds of the steps before
    step = take_step(clock, ranks)
    seconds = step.read()
    assert seconds == {
        "data": 2, "scoring": 4, "forward": 6, "backward": 8, "communication": 1.5, "optimizer": 1, "other": 0.25,
    }  # fmt: skip
    clock.seconds += 3  # the collective of the totals takes 1 s of them
    ranks.communication_seconds += 1
    rest = step.rest()
    assert rest == {"seconds": 25.75, "communication": 1, "other": 2}
    assert sum(seconds.values()) + rest["communication"] + rest["other"] == rest["seconds"]


def test_events_are_read_when_the_device_is_done_and_nothing_waits_before(clock, monkeypatch):
    """One wait a step; an event that is read earlier would be an error on a real device, too."""
    waits = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self, stream):
            self.at = clock.seconds

        def elapsed_time(self, end):
            assert waits == ["step"]
            return 1000 * (end.at - self.at)

        def synchronize(self):
            waits.append("event")

    monkeypatch.setattr(torch.cuda, "Event", Event)
    stream = SimpleNamespace(synchronize=lambda: waits.append("step"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    step = take_step(clock, made_ranks("cuda", 0.0))
    assert waits == []
    seconds = step.read()
    assert waits == ["step"]
    assert [seconds[part] for part in PARTS] == pytest.approx([2, 4, 6, 8, 1.5, 1, 0.25])


def test_means_and_the_slowest_rank():
    """Backward takes 1 s here and 3 s there, data 2 s and 0: means 2 and 1, the slowest 3 and 2, on ranks 1 and 0.

    There, 2.5 s of backward are a wait for weights: the rank's own are 0.5 s, and here 3 s; the mean is 1.75 s.
    """
    here, there = StepTotals(), StepTotals()
    here.add_rank(
        dict.fromkeys(PARTS, 0.0) | {"backward": 1.0, "data": 2.0},
        0.0,
        (10.0, 12.0),
        SimpleNamespace(rank=0, world_size=2),
    )
    there.add_rank(
        dict.fromkeys(PARTS, 0.0) | {"backward": 3.0}, 2.5, (11.0, 11.5), SimpleNamespace(rank=1, world_size=2)
    )
    here.replace(here.summed() + there.summed(), torch.maximum(here.maxima, there.maxima))
    record = here.record(time_scaling=True)
    assert [record[f"{part}_seconds"] for part in ("data", "backward", "forward")] == [1.0, 2.0, 0.0]
    assert [record["slowest_seconds"][part] for part in ("data", "backward", "forward")] == [2.0, 3.0, 0.0]
    assert (record["slowest_ranks"]["data"], record["slowest_ranks"]["backward"]) == (0, 1)
    assert record["slowest_rank"] == {"rank": 0, "own_seconds": 3.0, "behind_seconds": 1.25}
    assert record["gather_seconds"] == 1.25
    assert (record["peak_memory_gib"], record["peak_reserved_gib"]) == (11.0, 12.0)
    assert StepTotals().record(time_scaling=True)["peak_reserved_gib"] is None


@given(st.floats(0, 8000), st.floats(0, 8000), st.integers(0, 2**20 - 1), st.integers(0, 2**20 - 1))
def test_the_largest_number_brings_its_rank(one, other, rank, other_rank):
    """Of seconds a millionth apart or more, the larger ones with their rank, less than a millionth too many."""
    seconds, found = without_rank(max(with_rank(one, rank), with_rank(other, other_rank)))
    assert -1e-9 < seconds - max(one, other) < 2e-6
    if abs(one - other) > 2e-6:
        assert found == (rank if one > other else other_rank)


def test_peak_memory_of_a_process():
    """What the kernel calls the high-water mark of the resident memory, in KiB."""
    status = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    mark = next(int(line.split()[1]) for line in status if line.startswith("VmHWM:"))
    found, reserved = peak_memory(torch.device("cpu"))
    assert found == pytest.approx(mark / 2**20, rel=0.01)
    assert reserved == 0.0


def test_tokens_of_the_training_pass():
    """Documents of 3 and 5 tokens, seen twice: 2 (3 + 5) tokens, 2 (9 + 25) pairs; a stand-in does not count."""
    attention_mask = torch.arange(5) < torch.tensor([3, 5, 1])[:, None]
    batch = SimpleNamespace(
        attention_mask=attention_mask, lengths=[3, 5, 1], sample_ids=[4, 9, -1], t=torch.tensor([0.5, 0.5, 1.0]),
        span_length=None,
        component=torch.zeros(3, dtype=torch.int64),
    )  # fmt: skip
    result = SimpleNamespace(
        loss=torch.tensor(1.0), agreement=torch.zeros(3), nll_sum=torch.zeros(3), num_kept=torch.tensor([2, 4, 0]),
        weight_sums=torch.tensor([12.0, 30.0, 4.0]), gradient_norms=torch.zeros(3), num_views=2,
        choices=torch.zeros(0, 0),
    )  # fmt: skip
    totals = StepTotals()
    _add_shown(totals, batch, result, SimpleNamespace(loss_factor=1, world_size=1))
    record = totals.record(time_scaling=True)
    assert (record["num_input_tokens"], record["num_attention_pairs"], record["num_learned"]) == (16, 68, 6)


SMALL = Arithmetic(matrices=100, adapters=0, num_layers=2, query_width=3, width=5, vocab_size=7, trains_all=True)
COUNTS = {"num_input_tokens": 16, "num_attention_pairs": 68, "num_learned": 6}


def test_needed_operations_add_up_over_documents():
    """Full fine-tuning: 3 x (2 x 100 x 16 + 4 x 68 x 3 x 2 + 2 x 7 x 5 x 6) = 3 x (3200 + 1632 + 420) = 15,756."""
    assert SMALL.training_of_all(16, 68, 6) == 15756
    documents = [(3, 1), (5, 2), (3, 1), (5, 2)]
    assert SMALL.training_of_all(16, 68, 6) == pytest.approx(sum(SMALL.training(*each) for each in documents))


def test_mfu():
    """15,756 operations in 0.5 s, where all devices do 63,024 a second: a half."""
    found = Efficiency(SMALL, 63024.0).measured(COUNTS | {"seconds": 0.5})
    assert found == {"needed_tflop": pytest.approx(1.5756e-8), "mfu": pytest.approx(0.5)}
    assert Efficiency(SMALL, None).measured(COUNTS | {"seconds": 0.5})["mfu"] is None
    assert Efficiency(None, 1.0).measured(COUNTS | {"seconds": 0.5}) == {"needed_tflop": None, "mfu": None}


def test_where_the_peak_comes_from(llada, monkeypatch):
    ranks = Share(0, 1)
    told = RunConfig(model=ModelConfig(peak_tflops=0.5), lora=LoraConfig(rank=2))
    found = Efficiency.of(told, llada.config, ranks)
    assert (found.peak, found.arithmetic.trains_all) == (0.5e12, False)
    assert Efficiency.of(RunConfig(), llada.config, ranks).peak is None  # on a CPU
    ranks.device = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    assert Efficiency.of(RunConfig(), llada.config, ranks).peak == 989e12
    ranks.all_reduce = lambda values, op="sum": values + float("nan")  # another rank's device is not known
    assert Efficiency.of(RunConfig(), llada.config, ranks).peak is None


def test_layers_whose_arithmetic_is_not_known_train_all_the_same(monkeypatch):
    family = SimpleNamespace(
        name="fused", layer_class=nn.Sequential, model_class=lambda config: nn.Sequential(nn.Linear(2, 6))
    )
    for module in (flops, layer_sizes, hollow):
        monkeypatch.setattr(module, "family_of", lambda config: family)
    with pytest.raises(ValueError, match="fused: its layers have no matrix q_proj"):
        Arithmetic.of(SimpleNamespace())
    assert Efficiency.of(RunConfig(), SimpleNamespace(), Share(0, 1)).arithmetic is None


def test_memory_that_runs_out_is_named_by_the_innermost_part():
    cpu = torch.device("cpu")
    with pytest.raises(torch.OutOfMemoryError) as raised, timed(cpu, "forward"), timed(cpu, "scoring"):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    (note,) = raised.value.__notes__
    assert "in the part 'scoring' of a step" in note
    assert all(remedy in note for remedy in ("micro_batch", "gradient_checkpointing", "max_length", "scoring=buffer"))
    assert set(PARTS) - {"communication", "other"} == set(MAKES_ROOM)
