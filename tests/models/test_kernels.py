"""Norm, rotation and gate: plain torch's against the formulas, Liger's against them in Triton's interpreter."""

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from lift_ds.models import kernels
from lift_ds.models.elementwise import EAGER
from lift_ds.models.kernels import choose_kernels, use_kernels, why_no_liger
from lift_ds.models.layers import rotary_frequencies, rotary_tables
from tests.conftest import REPOSITORY

CUDA, CPU = torch.device("cuda"), torch.device("cpu")
B, L, H, K, D = 2, 5, 4, 2, 8


def plain_norm(hidden, weight, eps):
    wide = hidden.float()
    return weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)).to(hidden.dtype)


def plain_rotation(query, key, cos, sin):
    def turn(heads):
        first, second = heads.float().chunk(2, -1)
        return (heads.float() * cos + torch.cat((-second, first), -1) * sin).to(heads.dtype)

    return turn(query), turn(key)


def plain_gate(gates, values):
    return F.silu(gates) * values


def results(functions, dtype):
    """Outputs of the three functions, and gradients of what they are given, on the same drawn numbers."""
    torch.manual_seed(0)
    leaves = [torch.randn(shape).to(dtype).requires_grad_() for shape in ((B, L, H * D), (H * D,), (B, L, K * D))]
    hidden, weight, small = leaves
    tables = rotary_tables(torch.arange(L)[None] * 3, rotary_frequencies(D, 100.0))
    normed = functions.rms_norm(hidden * 1, weight, 1e-5)
    heads = ((each * 1).unflatten(-1, (-1, D)).transpose(1, 2) for each in (hidden, small))
    query, key = functions.rotate(*heads, *tables)
    gated = functions.gate(hidden * 1, normed * 2)
    outputs = [normed, query, key, gated]
    sum((each * torch.randn(each.shape).to(dtype)).sum() for each in outputs).backward()
    return [each.detach() for each in outputs], [leaf.grad for leaf in leaves]


def require_near(found, expected):
    """Differences of at most two units in the last place of the largest entry."""
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype and one.shape == other.shape
        assert (one - other).abs().max() <= 2 * torch.finfo(other.dtype).eps * other.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_forwards_are_the_formulas_to_the_last_bit_and_gradients_autograds(dtype):
    outputs, gradients = results(EAGER, dtype)
    expected, autograds = results(kernels.Elementwise(plain_norm, plain_rotation, plain_gate), dtype)
    for one, other in zip(outputs, expected, strict=True):
        assert torch.equal(one, other)
    require_near(gradients, autograds)


INTERPRETED = """
import numpy as np, torch, triton.language as tl
from triton.runtime import interpreter
import liger_kernel.ops.rms_norm as norm
from lift_ds.models.elementwise import EAGER
from lift_ds.models.kernels import liger_kernels
from tests.models.test_kernels import require_near, results

convert = interpreter._implicit_cvt  # a number is Python's there, a tensor on a GPU
def as_tensor(value):
    if isinstance(value, float):
        return tl.tensor(interpreter.TensorHandle(np.array([value], np.float32), tl.float32), tl.float32)
    return convert(value)
interpreter._implicit_cvt = as_tensor
norm.rsqrt = lambda x: tl.math.rsqrt(x)  # libdevice's is CUDA's alone
for dtype in (torch.float32, torch.float16):
    for liger, eager in zip(results(liger_kernels(), dtype), results(EAGER, dtype)):
        require_near(liger, eager)
print("equal")
"""


@pytest.mark.skipif(not (find_spec("triton") and find_spec("liger_kernel")), reason="needs triton and liger-kernel")
def test_ligers_kernels_compute_the_same():
    """Values and gradients, in float32 and float16, as the interpreter multiplies no bf16 numbers.

    In a process of its own, as the interpreter is chosen at import.
    """
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    command = [sys.executable, "-c", INTERPRETED]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, text=True, capture_output=True)
    assert done.returncode == 0 and done.stdout.strip() == "equal", done.stderr


def test_a_cpu_and_compiled_layers_take_plain_torch():
    assert choose_kernels("auto", CPU, False) == ("eager", "")
    assert choose_kernels("auto", CUDA, True) == ("eager", "model.compile=true fuses the same operations")
    with pytest.raises(ValueError, match=r"model.kernels=liger: it needs a GPU, not cpu; allowed here: auto, eager"):
        choose_kernels("liger", CPU, False)


@pytest.mark.parametrize(
    ("installed", "loads", "reason"),
    [
        ("0.8.5", True, None),
        ("0.7.0", True, "liger-kernel 0.7.0 is older than 0.8"),
        (None, True, 'liger-kernel is not installed (pip install "lift_ds[gpu]")'),
        ("0.8.5", False, "liger-kernel does not import: no triton"),
    ],
)
def test_where_liger_is_missing_or_another_the_choice_says_why(installed, loads, reason, monkeypatch):
    def find_version(name):
        if installed is None:
            raise kernels.PackageNotFoundError(name)
        return installed

    def load():
        if not loads:
            raise ImportError("no triton")
        return EAGER

    monkeypatch.setattr(kernels, "version", find_version)
    monkeypatch.setattr(kernels, "liger_kernels", load)
    assert why_no_liger(CUDA, is_compiled=False) == reason
    assert choose_kernels("auto", CUDA, False) == (("liger", "") if reason is None else ("eager", reason))


@pytest.mark.parametrize("family_model", ["llada", "dream"])
def test_every_norm_and_layer_takes_the_kernels(family_model, request, monkeypatch):
    """Counted over a forward: 2 norms in each of 2 layers and a last one, 2 rotations, 2 gates."""
    model, calls = request.getfixturevalue(family_model), []

    def counted(name):
        def call(*arguments):
            calls.append(name)
            return getattr(EAGER, name)(*arguments)

        return call

    functions = kernels.Elementwise(*(counted(name) for name in ("rms_norm", "rotate", "gate")))
    monkeypatch.setattr(kernels, "liger_kernels", lambda: functions)
    use_kernels(model, "liger")
    model(input_ids=torch.tensor([[1, 2, 3]]))
    assert {name: calls.count(name) for name in set(calls)} == {"rms_norm": 5, "rotate": 2, "gate": 2}
