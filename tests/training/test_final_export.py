"""What the ranks do at a run's end."""

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lift_ds import load_pretrained
from lift_ds.training.final_export import FinalExport
from tests.conftest import VECTORS


@pytest.mark.parametrize("rank", [0, 1])
def test_only_the_rank_that_compares_has_logits(monkeypatch, rank):
    """All run the head, whose matrix ZeRO-3 gathers, but the others with a single row of 9."""
    model, _ = load_pretrained(VECTORS / "llada_tiny")
    document = SimpleNamespace(ids=np.arange(9), response_mask=np.arange(9) >= 4)
    rows = []
    head = model.head
    monkeypatch.setattr(model, "head", lambda hidden: rows.append(hidden.shape[1]) or head(hidden))
    engine = SimpleNamespace(rank=rank, device=torch.device("cpu"), evaluating=lambda: nullcontext(model))
    config = SimpleNamespace(mask_token_id=100)
    prepared = SimpleNamespace(data=SimpleNamespace(held_out=[document]), config=config)
    with torch.no_grad():
        logits = FinalExport(prepared, engine, False, Path("checkpoints")).probe_logits()
    assert rows == [9 if rank == 0 else 1]
    if rank:
        assert logits is None
    else:
        ids = torch.tensor([[0, 1, 2, 3, 100, 100, 100, 100, 100]])
        assert torch.equal(logits, model(input_ids=ids).logits.float())
