"""Which attention runs: with a mask only where something is padded, and in one call where a GPU has the kernel."""

import inspect

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from lift_ds import load_pretrained
from lift_ds.data.batch import collate
from lift_ds.models import attention
from lift_ds.models.attention import Segments, attention_kernels, choose_attention, why_no_varlen
from lift_ds.models.llada import LLaDAConfig
from lift_ds.objectives import make_objective, objective_settings
from lift_ds.training.draws import make_noise_rule
from lift_ds.training.step import DiffusionStep
from tests.distributed.jobs import make_documents
from tests.small_models import write_adapted

CPU = torch.device("cpu")


def varlen_of_2_11(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k):
    """What torch 2.11's varlen attention computes, on the CPU: (tokens, heads, head_dim), as many heads of each."""
    assert query.shape[1] == key.shape[1] and max_q == max_k == int(cu_seq_q.diff().max())
    bounds = cu_seq_q.tolist()
    parts = [
        F.scaled_dot_product_attention(*(heads[start:end].transpose(0, 1)[None] for heads in (query, key, value)))[0]
        for start, end in zip(bounds, bounds[1:], strict=False)
    ]
    return torch.cat(parts, 1).transpose(0, 1)


def varlen_of_2_12(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, enable_gqa=False):
    """The same with grouped heads, as torch 2.12 has them."""
    repeats = query.shape[1] // key.shape[1]
    assert enable_gqa == (repeats > 1)
    wide = (heads.repeat_interleave(repeats, 1) for heads in (key, value))
    return varlen_of_2_11(query, *wide, cu_seq_q, cu_seq_k, max_q, max_k)


def test_a_cpu_takes_torchs_attention():
    assert choose_attention(LLaDAConfig(), "auto", CPU, torch.bfloat16) == "sdpa"
    assert choose_attention(LLaDAConfig(), "math", CPU, torch.float32) == "math"
    with pytest.raises(ValueError, match=r"model.attention=varlen: it needs a GPU, not cpu; allowed here: auto, sdpa"):
        choose_attention(LLaDAConfig(), "varlen", CPU, torch.bfloat16)


@pytest.mark.parametrize(
    ("dtype", "head_dim", "dropout", "reason"),
    [
        (torch.bfloat16, 128, 0.0, None),
        (torch.float32, 128, 0.0, "it computes in bf16, not float32"),
        (torch.bfloat16, 36, 0.0, "heads of width 36"),
        (torch.bfloat16, 128, 0.1, "attention dropout is 0.1"),
    ],
)
def test_what_the_varlen_kernel_needs(dtype, head_dim, dropout, reason, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    found = why_no_varlen(torch.device("cuda"), dtype, head_dim, dropout)
    assert found is None if reason is None else reason in found


def test_an_old_gpu_and_an_old_torch_are_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    assert "Tesla T4 is older than Ampere" in why_no_varlen(torch.device("cuda"), torch.bfloat16, 128, 0.0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(attention, "find_varlen", lambda: None)
    assert "has no torch.nn.attention.varlen" in why_no_varlen(torch.device("cuda"), torch.bfloat16, 128, 0.0)


def test_cudnn_is_never_chosen():
    assert torch.backends.cuda.cudnn_sdp_enabled()
    with attention_kernels("sdpa"):
        assert not torch.backends.cuda.cudnn_sdp_enabled() and torch.backends.cuda.flash_sdp_enabled()
    with attention_kernels("math"):
        assert not torch.backends.cuda.flash_sdp_enabled() and torch.backends.cuda.math_sdp_enabled()


def make_batch(lengths, method="lift3"):
    documents, _ = make_documents(len(lengths), [0.5] * len(lengths), set())
    cut = [
        type(document)(*(values[:length] for values in (document.ids, document.response_mask, document.filler_mask)),
                       sample_id=index, epoch=0, where="")
        for index, (document, length) in enumerate(zip(documents, lengths, strict=True))
    ]  # fmt: skip
    rule = make_noise_rule(objective_settings(method=method), 5, len(lengths))
    return collate(cut, rule(cut, 0, [(slot, 0) for slot in range(len(lengths))]), 99)


@pytest.mark.parametrize(("lengths", "is_padded"), [([12, 12, 12], False), ([12, 9, 12], True)])
def test_no_mask_where_nothing_is_padded(llada, lengths, is_padded, monkeypatch):
    masks, plain = [], F.scaled_dot_product_attention

    def record(*heads, attn_mask=None, **options):
        masks.append(attn_mask is not None)
        return plain(*heads, attn_mask=attn_mask, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", record)
    batch = make_batch(lengths)
    assert batch.is_padded == batch.to(CPU).is_padded == is_padded
    loss, _ = DiffusionStep(llada, make_objective(objective_settings(method="lift3")))(batch, torch.full((3,), 0.1))
    loss.backward()
    assert masks == [is_padded] * 4  # two layers, scored and trained


@pytest.mark.parametrize("kernel", [varlen_of_2_11, varlen_of_2_12])
@pytest.mark.parametrize("family", ["llada", "a2d-qwen3"])
def test_padded_rows_go_through_the_varlen_kernel(family, kernel, tmp_path, request, monkeypatch):
    """Losses and gradients are those of padded rows; Qwen3's heads are grouped."""
    model = (
        request.getfixturevalue("llada") if family == "llada" else load_pretrained(write_adapted(tmp_path, "qwen3"))[0]
    )
    calls = []

    def counted(*arguments, **options):
        calls.append(1)
        return kernel(*arguments, **options)

    counted.__signature__ = inspect.signature(kernel)
    monkeypatch.setattr(attention, "find_varlen", lambda: counted)
    batch, found = make_batch([12, 9, 4]), []
    for name in ("sdpa", "varlen"):
        root = DiffusionStep(model, make_objective(objective_settings(method="lift3")), kernel=name).train()
        model.zero_grad()
        loss, result = root(batch, torch.full((3,), 0.1))
        loss.backward()
        found.append((loss.detach(), result.num_kept, torch.cat([each.grad.flatten() for each in model.parameters()])))
    assert calls
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-5 * float(one.abs().max()))


def test_rows_of_one_length_need_no_varlen(llada, monkeypatch):
    monkeypatch.setattr(attention, "find_varlen", lambda: pytest.fail("not needed"))
    root = DiffusionStep(llada, make_objective(objective_settings(method="lift3")), kernel="varlen")
    assert root(make_batch([12, 12]), torch.full((2,), 0.1))[0].isfinite()


def test_segments_see_only_themselves():
    heads = torch.randn(3, 1, 2, 7, 8)
    segments = Segments.of([3, 4], CPU)
    alone = [F.scaled_dot_product_attention(*(each[:, :, part] for each in heads)) for part in (slice(3), slice(3, 7))]
    torch.testing.assert_close(segments(*heads, 0.0), torch.cat(alone, 2))
