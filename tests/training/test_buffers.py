"""What the difficulty table learns from a run in which choices depend on it."""

import threading
from dataclasses import replace

import pytest
import torch

from lift_ds.method.difficulty import DifficultyTable, Observations
from lift_ds.ranks.shares import Alone
from lift_ds.rng import Stream, keyed_uniform
from lift_ds.training.buffers import DifficultyBuffers
from lift_ds.training.results import read
from tests.objectives.test_objectives import chosen
from tests.training.test_step import make_batch, make_root

T, RHO, STEPS, PLACE, TOKEN, OTHER = 0.7, 0.2, 150, 10, 9, 3


class NoOthers(Alone):
    def exchange(self, parts):
        return parts


def train_on(model, buffers, refresh_share):
    """The loop's part of steps without an update, so that true difficulties stay; returns the steps that keep TOKEN."""
    batch = make_batch([T], [RHO], [0], torch.arange(20)[None] >= 4)
    batch.clean_ids[:] = OTHER
    batch.clean_ids[0, PLACE] = TOKEN
    root = make_root(model, "lift3", scoring="buffer", refresh_share=refresh_share, warm_start_steps=0).train()
    root.keeps_observations = True
    num_kept = 0
    for step in range(1, STEPS + 1):
        drawn = torch.from_numpy(keyed_uniform(step, 0, 0, Stream.NOISE, 41))
        noise = {"mask_uniform": drawn[None, :20], "tie_uniform": drawn[None, 20:40]}
        (filled,) = buffers.fill([replace(batch, is_refreshed=drawn[40:] < refresh_share, **noise)])
        num_kept += int(chosen(root, filled).targets[0, PLACE])
        loss, stats = root(filled, torch.ones(1))
        loss.backward()
        (shown,) = read([stats])
        buffers.take([(filled, each) for each in shown.observed], step)
    return num_kept


def difficulty(buffers):
    return buffers.look_up(torch.tensor([TOKEN]), torch.tensor([T + RHO])).item()


def thought_hard(model, times):
    """A table that has seen TOKEN some times with 30 nats, and OTHER as often with 1."""
    buffers = DifficultyBuffers(model.get_input_embeddings().weight.shape[0], NoOthers(), decay=0.97, sync_every=1)
    level = torch.full((times,), T + RHO)
    for token, nll in ((TOKEN, 30.0), (OTHER, 1.0)):
        buffers.observe([(torch.full((times,), token), level, torch.full((times,), nll))], 0)
    return buffers


def test_a_token_that_is_never_kept_converges(llada):
    """Thought very hard, it is never among the easy ones; exact scores of a share of the documents put that right."""
    truth = thought_hard(llada, 0)
    often = train_on(llada, truth, refresh_share=1.0)
    uncorrected, corrected = thought_hard(llada, 10), thought_hard(llada, 10)
    train_on(llada, uncorrected, refresh_share=0.0)
    assert difficulty(uncorrected) > 2 * difficulty(truth)
    assert 0 < train_on(llada, corrected, refresh_share=0.25) < often
    assert difficulty(corrected) == pytest.approx(difficulty(truth), rel=0.2)


def test_noting_waits_for_nobody_and_readers_wait_for_it(monkeypatch):
    """Steps go on while the table is held up; what it holds then is, bit for bit, what noting at once gives."""
    plain, gates = DifficultyTable.observe, {step: threading.Event() for step in range(1, 6)}

    def held_up(self, observations, step):
        assert gates[step].wait(60)
        plain(self, observations, step)

    buffers, at_once = DifficultyBuffers(50, NoOthers(), decay=0.9, sync_every=3), DifficultyTable(50, decay=0.9)
    generator = torch.Generator().manual_seed(2)
    for step in range(1, 6):
        drawn = [(torch.randint(50, (40,), generator=generator), *torch.rand(2, 40, generator=generator)) for _ in "ab"]
        for part in drawn:
            plain(at_once, [Observations.of(*part)], step)
        monkeypatch.setattr(DifficultyTable, "observe", held_up if step % 3 else plain)
        buffers.observe(drawn, step)  # returns although the gate is shut
        gates[step].set()
        if step % 3 == 0:
            at_once.set_groups(at_once.absorb(at_once.outgoing(step), step))
    found, expected = buffers.table.state(), at_once.state()
    assert len(found["pending_keys"]) > 60
    assert all(torch.equal(found[name], expected[name]) for name in expected)
