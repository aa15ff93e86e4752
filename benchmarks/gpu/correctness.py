"""Whether a device computes what the CPU and the published models do; each function is a part, and returns figures."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from safetensors.torch import load_file
from torch import Tensor
from whole_steps import SEED, DeviceWeights, draw_documents

from lift_ds.data.batch import Document, MicroBatch, collate
from lift_ds.method.loss import chunked_gold_logprob, chunked_weighted_nll
from lift_ds.models.attention import Kernel, Segments, attention_kernels, choose_attention
from lift_ds.models.head import MaskedDiffusionModel
from lift_ds.models.llada import LLaDAConfig, LLaDAModelLM
from lift_ds.models.lora import add_adapters
from lift_ds.models.weights import fill_parameters, load_pretrained
from lift_ds.objectives import make_objective, objective_settings
from lift_ds.objectives.settings import ObjectiveSettings
from lift_ds.training.draws import make_noise_rule
from lift_ds.training.step import DiffusionStep

REPOSITORY = Path(__file__).resolve().parents[2]
VECTORS = REPOSITORY / "tests" / "data" / "llada_tiny"
REMAINDERS = (0, 1, 64, 127)
"""Lengths beyond a multiple of 128: what cuDNN's masked backward gets wrong is one of them."""
HEAD_DIM = 64


def conformance(device: torch.device, is_quick: bool) -> dict[str, float]:
    """Logits of LLaDA's public code: the largest difference in float32, and bf16's error over that of plain attention.

    Errors in bf16 are against the same weights in float64.
    """
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    model, _ = load_pretrained(VECTORS)
    vectors = load_file(VECTORS / "cases.safetensors")
    ids, published = vectors["forward.input_ids"].to(device), vectors["forward.logits"]
    with torch.no_grad():
        torch.nn.Module.to(model, device)
        single = model(input_ids=ids).logits.cpu()
        rounded = model.bfloat16()
        errors: dict[Kernel, Tensor] = {}
        both: list[Kernel] = ["math", "sdpa"]
        for kernel in both:
            with attention_kernels(kernel):
                errors[kernel] = rounded(input_ids=ids).logits.double().cpu()
        exact = rounded.cpu().double()(input_ids=ids.cpu()).logits
    return {
        "float32_logits_difference": float((single - published).abs().max()),
        "bf16_error_over_plain": difference(errors["sdpa"], exact) / difference(errors["math"], exact),
    }


def gradients(device: torch.device, is_quick: bool) -> dict[str, float]:
    """Gradients of a training step at several lengths, padded and packed, against plain attention in float32.

    In bf16 of vanilla SFT: under LIFT-3 the last bit of a score may choose another token.
    """
    worst: dict[str, float] = {}
    num_bad = 0
    for length in [(128 if is_quick else 512) + remainder for remainder in REMAINDERS]:
        lengths = [length, length - 37, length - 64]
        for dtype, method in ((torch.float32, "lift3"), (torch.bfloat16, "vanilla")):
            exact = step_gradient(device, torch.float32, method, "math", lengths, is_packed=False)
            plain = step_gradient(device, dtype, method, "math", lengths, is_packed=False)
            kernel = choose_attention(small_config(), "auto", device, dtype)
            allowed = difference(plain, exact)
            for name, kind, is_packed in [
                ("padded", "sdpa", False),
                ("packed", "sdpa", True),
                ("chosen", kernel, True),
            ]:
                found = step_gradient(device, dtype, method, cast(Kernel, kind), lengths, is_packed)
                num_bad += int((~found.isfinite()).sum())
                key = f"gradient_{name}_{'bf16' if dtype == torch.bfloat16 else 'float32'}"
                worst[key] = max(worst.get(key, 0.0), difference(found, exact))
                worst[f"{key}_over_plain"] = max(
                    worst.get(f"{key}_over_plain", 0.0), difference(found, exact) / max(allowed, 1e-6)
                )
    return worst | {"nan_gradients": float(num_bad)}


def far_scores(device: torch.device, is_quick: bool) -> dict[str, float]:
    """Attention whose scores all lie near -150, where a masked backward of cuDNN gives NaN: the bad numbers."""
    num_bad, worst = 0, 0.0
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    kernel = choose_attention(small_config(), "auto", device, dtype)
    for length in [(128 if is_quick else 1024) + remainder for remainder in REMAINDERS]:
        generator = torch.Generator().manual_seed(SEED)
        shape = (3, 1, 2, length, HEAD_DIM)
        query, key, value = torch.randn(shape, generator=generator).mul(0.3).to(device, dtype)
        query, key = query + 4.33, key - 4.33  # 64 * 4.33 * -4.33 / sqrt(64) = -150
        exact = attention_gradient(query.double(), key.double(), value.double(), None)
        visible = torch.ones(1, 1, 1, length, dtype=torch.bool, device=device)
        segments = Segments.of([length], device, kernel)
        for way in (None, visible, segments):
            with attention_kernels(kernel):
                found = attention_gradient(query, key, value, way)
            num_bad += int((~found.isfinite()).sum())
            worst = max(worst, difference(found.double(), exact))
    return {"far_scores_difference": worst, "far_scores_nan": float(num_bad)}


def bf16_head(device: torch.device, is_quick: bool) -> dict[str, float]:
    """The head in bf16, in one chunk and in three: scores and gradients against the same numbers in float64."""
    num_rows, width, vocabulary = (64, 64, 512) if is_quick else (1024, 1024, 32768)
    generator = torch.Generator().manual_seed(SEED)
    hidden = torch.randn(num_rows, width, generator=generator).mul(16).bfloat16()
    matrix = torch.randn(vocabulary, width, generator=generator).mul(width**-0.5).bfloat16()
    gold_ids = torch.randint(vocabulary, (num_rows,), generator=generator)
    weights = torch.rand(num_rows, generator=generator)
    wide = [each.double().requires_grad_() for each in (hidden, matrix)]
    exact = -F.cross_entropy(wide[0] @ wide[1].T, gold_ids, reduction="none")
    expected = torch.autograd.grad(-(exact * weights).sum(), wide)
    figures = {"head_score_error": 0.0, "head_gradient_error": 0.0}
    gold_ids, weights = gold_ids.to(device), weights.to(device)
    for num_chunks in (1, 3):
        limit = 4 * vocabulary * -(-num_rows // num_chunks)
        rows, weight = (each.to(device).requires_grad_() for each in (hidden, matrix))
        score = chunked_gold_logprob(rows, weight, gold_ids, limit).double().cpu()
        loss, _ = chunked_weighted_nll(rows, weight, gold_ids, weights, chunk_bytes=limit)
        found = [each.double().cpu() for each in torch.autograd.grad(loss, (rows, weight))]
        errors = (float((score - exact).abs().max()), max(map(difference, found, expected)))
        figures = {name: max(pair) for (name, *pair) in zip(figures, figures.values(), errors, strict=True)}
    return figures


def attention_gradient(query: Tensor, key: Tensor, value: Tensor, way: Any) -> Tensor:
    """Gradients of the sum of squares of attention, in one flat tensor."""
    leaves = [heads.detach().requires_grad_() for heads in (query, key, value)]
    query, key, value = leaves
    if isinstance(way, Segments):
        attended = way(query, key, value, 0.0)
    else:
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=way)
    attended.square().sum().backward()
    return torch.cat([cast(Tensor, leaf.grad).flatten() for leaf in leaves])


def packed_is_alone(device: torch.device, is_quick: bool) -> dict[str, float]:
    """Hidden states of documents in a pack against those of each alone, largest relative difference."""
    figures = {}
    for dtype, name in ((torch.float32, "float32"), (torch.bfloat16, "bf16")):
        model = small_model(device, dtype)
        kernel = choose_attention(model.config, "auto", device, dtype)
        documents = [torch.from_numpy(document.ids)[None].to(device) for document in draw([97, 128, 250])]
        lengths = [ids.shape[1] for ids in documents]
        positions = torch.cat([torch.arange(length, device=device) for length in lengths])[None]
        with torch.no_grad(), attention_kernels(kernel):
            alone = torch.cat([model.encode(ids) for ids in documents], 1)
            packed = model.encode(torch.cat(documents, 1), Segments.of(lengths, device, kernel), positions)
        figures[f"packed_difference_{name}"] = difference(packed.double(), alone.double())
    return figures


def stages(device: torch.device, is_quick: bool) -> dict[str, float]:
    """Losses of three steps in float32: ZeRO-2 and ZeRO-3 on the device against ZeRO-3 on the CPU."""
    with tempfile.TemporaryDirectory() as work:
        runs = {
            name: losses_of_run(Path(work), name, stage, where, ["optim.steps=3"])
            for name, stage, where in [("cpu", 3, "cpu"), ("zero2", 2, device.type), ("zero3", 3, device.type)]
        }
    return {
        f"{name}_loss_difference": float(np.abs(np.array(runs[name]) / np.array(runs["cpu"]) - 1).max())
        for name in ("zero2", "zero3")
    }


def resume(device: torch.device, is_quick: bool) -> dict[str, float]:
    """Losses of a run that stopped after two of four steps and went on, against one that did not stop."""
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        whole = losses_of_run(work, "whole", 3, device.type, ["optim.steps=4", "checkpoint.save_every=2"])
        shutil.copytree(work / "whole", work / "cut")
        for path in [work / "cut" / "checkpoints" / "step-000004", work / "cut" / "export"]:
            shutil.rmtree(path)
        latest = work / "cut" / "checkpoints" / "latest"
        latest.write_text(latest.read_text().replace("step-000004", "step-000002"))
        resumed = losses_of_run(work, "cut", 3, device.type, [], "--resume", "auto")
    return {"resume_loss_difference": float(np.abs(np.array(resumed) / np.array(whole) - 1).max())}


def losses_of_run(work: Path, name: str, stage: int, where: str, overrides: list[str], *flags: str) -> list[float]:
    """Losses, step by step, of the default run in float32, on one rank.

    Raises:
        RuntimeError: It failed; the message has its last lines.
    """
    engine = json.loads((REPOSITORY / "ds_configs" / f"zero{stage}.json").read_text())
    engine_json = work / f"{name}.json"
    engine_json.write_text(json.dumps(engine | {"bf16": {"enabled": False}}))
    small = "optim.global_batch=8 data.builtin_rows=600 eval.rows=4 eval.every=0 eval.solve_items=0".split()
    command = [sys.executable, "launchers/train.py", "--deepspeed", str(engine_json), "--output", str(work / name)]
    command += [*flags, *([] if flags else small), *overrides]
    environment = clean_environment() | (
        {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""} if where == "cpu" else {}
    )
    done = subprocess.run(
        command, cwd=REPOSITORY, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout[-3000:]}")
    records = [json.loads(line) for line in (work / name / "metrics.jsonl").read_text().splitlines()]
    steps = {record["step"]: record["loss"] for record in records if record["kind"] == "step"}
    return [steps[step] for step in sorted(steps)]


def clean_environment() -> dict[str, str]:
    """The environment of a run of its own: this package, and nobody's rank."""
    left_out = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    environment = {name: value for name, value in os.environ.items() if name not in left_out}
    paths = [str(REPOSITORY), environment.get("PYTHONPATH", "")]
    return environment | {"PYTHONPATH": ":".join(filter(None, paths)), "HF_HUB_OFFLINE": "1"}


def small_model(device: torch.device, dtype: torch.dtype) -> MaskedDiffusionModel:
    """Two layers with heads of a usual width, and the same random weights on every device."""
    config = small_config()
    model = LLaDAModelLM(config)
    fill_parameters(model.named_parameters(), DeviceWeights(config), "new weights")
    return cast(MaskedDiffusionModel, torch.nn.Module.to(model, device, dtype))


def small_config() -> LLaDAConfig:
    """Of `small_model`."""
    return LLaDAConfig(
        d_model=4 * HEAD_DIM, n_layers=2, n_heads=4, mlp_hidden_size=512, vocab_size=1024, max_sequence_length=2048,
        mask_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip


def draw(lengths: list[int]) -> list[Document]:
    """Documents for `small_model`."""
    return draw_documents(lengths, 0.25, 1024, (0,))


def step_gradient(
    device: torch.device, dtype: torch.dtype, method: str, kernel: Kernel, lengths: list[int], is_packed: bool
) -> Tensor:
    """The gradient (P,), float64 on the CPU, of one micro-batch."""
    settings = objective_settings(method=method)
    root = step_root(device, dtype, settings, is_packed, kernel)
    batch = noised_batch(draw(lengths), settings)
    with attention_kernels(kernel):
        loss, _ = root(batch, torch.full((len(lengths),), 1e-2), (0, 0), device)
        loss.backward()
    return torch.cat([gradient.double().flatten().cpu() for gradient in all_gradients(root)])


def step_root(
    device: torch.device, dtype: torch.dtype, settings: ObjectiveSettings, is_packed: bool, kernel: Kernel = "sdpa",
    lora_dropout: float = 0.0,
) -> DiffusionStep:  # fmt: skip
    """The root module of `small_model`; with adapters where they have dropout."""
    model = small_model(device, dtype)
    if lora_dropout:
        add_adapters(model, 4, 8, lora_dropout, ["q_proj", "v_proj"], SEED)
    keeps = settings.method != "vanilla"
    return DiffusionStep(model, make_objective(settings), keeps, is_packed, kernel).train()


def noised_batch(documents: list[Document], settings: ObjectiveSettings) -> MicroBatch:
    """Documents as one micro-batch on the CPU, with what a difficulty table says of them."""
    rule = make_noise_rule(settings, SEED, len(documents))
    batch = collate(documents, rule(documents, 0, [(row, 0) for row in range(len(documents))]), 1)
    return replace(batch, difficulty=batch.tie_uniform)


def all_gradients(root: torch.nn.Module) -> Iterator[Tensor]:
    """Gradients of a module's parameters."""
    for parameter in root.parameters():
        assert parameter.grad is not None
        yield parameter.grad


def difference(found: Tensor, exact: Tensor) -> float:
    """|found - exact| / |exact|, in the Euclidean norm."""
    return float((found - exact).norm() / exact.norm())


PARTS = {
    "conformance": conformance,
    "gradients": gradients,
    "far_scores": far_scores,
    "packed_is_alone": packed_is_alone,
    "bf16_head": bf16_head,
    "stages": stages,
    "resume": resume,
}
