"""Copies of state: written, they give the same bytes; what changes afterwards does not reach them."""

import io
from collections import OrderedDict

import torch

from lift_ds.training.host_copy import HostCopies


class Holder:
    """An object that holds a tensor, as DeepSpeed's loss scaler is one that holds numbers."""

    def __init__(self, value):
        self.value = value


def tree():
    """Two views of a storage that is larger than both, a parameter with an attribute, empty tensors, an object."""
    flat = torch.arange(12.0)
    weight = torch.nn.Parameter(torch.randn(3, 2))
    weight.ds_id = 7
    state = OrderedDict(first=flat[2:6].view(2, 2), second=flat[4:9], half=torch.ones(3, dtype=torch.bfloat16))
    empty = [torch.zeros(0), torch.zeros(0, 4)]
    return {"state": state, "weight": weight, "empty": empty, "object": Holder(flat[::2]), "again": state["first"]}


def written(content):
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def test_the_same_bytes():
    state = tree()
    assert written(HostCopies().copy(state)) == written(state)


def test_a_copy_stays_as_it_was():
    state = tree()
    copied, before = HostCopies().copy(state), written(state)
    with torch.no_grad():
        state["state"]["second"].zero_()
        state["weight"].mul_(2)
    assert written(copied) == before != written(state)
    assert copied["again"] is copied["state"]["first"]
    assert copied["object"].value.data_ptr() == copied["state"]["second"].untyped_storage().data_ptr()


def test_memory_is_used_again():
    """Of 12 floats, 6, and 3 of two bytes; the object's tensor is of the first. Another size takes new memory."""
    copies, state = HostCopies(), {name: tree()[name] for name in ("state", "weight")}
    copies.copy(state)
    assert copies.num_bytes == 48 + 6 + 24
    places = [buffer.data_ptr() for buffer in copies.buffers]
    copies.begin()
    copies.copy(state)
    assert [buffer.data_ptr() for buffer in copies.buffers] == places
    copies.begin()
    copies.copy({"first": torch.zeros(12), "second": torch.zeros(5)})
    assert copies.num_bytes == 48 + 20
    assert copies.buffers[0].data_ptr() == places[0]
