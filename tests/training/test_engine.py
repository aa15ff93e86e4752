"""What the engine does without: copies of weights, of gradients, and in AdamW."""

import torch

from lift_ds.config.training import OptimConfig
from lift_ds.training.engine import joined, make_optimizer


def test_adam_is_one_kernel():
    """Its two groups are the matrix and the bias."""
    optimizer = make_optimizer(torch.nn.Linear(2, 2), OptimConfig(), is_offloaded=False)
    assert type(optimizer) is torch.optim.AdamW
    assert [group["fused"] for group in optimizer.param_groups] == [True, True]


def test_neighbours_are_joined_without_a_copy():
    flat = torch.arange(10.0)
    parts = [flat[2:5], flat[5:5], flat[5:9]]
    assert torch.equal(joined(parts), flat[2:9]) and joined(parts).data_ptr() == flat[2:].data_ptr()


def test_others_are_copied():
    flat = torch.arange(10.0)
    for parts in ([flat[5:9], flat[2:5]], [flat[2:5], flat[6:9]], [flat[2:5], flat[5:9].clone()], [flat[:6:2]]):
        assert torch.equal(joined(parts), torch.cat(parts))
        assert joined(parts).untyped_storage().data_ptr() != flat.untyped_storage().data_ptr()
