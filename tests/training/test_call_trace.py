"""Which modules a rank has called: a layer as one, in order, from the step's begin on."""

import torch

from lift_ds.models.families import family_of
from lift_ds.training.call_trace import CallTrace


def test_calls_of_a_model(llada):
    layer = family_of(llada.config).layer_class
    trace = CallTrace(llada, layer)
    assert sum("blocks." in name for name in trace.names) == 2  # not what is inside of them
    ids = torch.tensor([[5, 6, 7]])
    llada(input_ids=ids)
    assert trace.calls == []  # no step has begun
    trace.begin()
    llada(input_ids=ids)
    first = list(trace.calls)
    blocks = [trace.names[number] for number in first if "blocks." in trace.names[number]]
    assert [name[-1] for name in blocks] == ["0", "1"]
    digest = trace.digest()
    trace.begin()
    assert trace.calls == [] and trace.digest() != digest
    llada(input_ids=ids)
    assert (trace.calls, trace.digest()) == (first, digest)
    trace.calls[1:3] = trace.calls[1:3][::-1]
    assert trace.digest() != digest
    assert trace.first_difference(first, trace.calls).startswith("call 2 was of ")
    assert trace.first_difference(first, first[:-1]) == f"{len(first) - 1} calls, not {len(first)}"
