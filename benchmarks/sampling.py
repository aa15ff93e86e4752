"""Speed and accuracy of the samplers, against a plain loop equal to the public one in the same run.

    python benchmarks/sampling.py runs/001/export --json sampling.json

Accuracy: held-out items of the built-in tasks, answered by every sampler in turn, batch by batch. The plain loop
reveals one token a forward and computes the logits of all positions; our `low_confidence` solves the same items
(checked). The threshold is chosen on validation items: the fastest whose paired 95 % interval there excludes a loss of
over two points (`threshold_qualified`: whether there is one). Test items are drawn from another seed and share no
question with them. `threshold_speedup` is its tokens a second on the test items over the plain loop's;
`threshold_points_lost` the upper end of the paired 95 % interval of the loss in solved items, in points. The other ways
of ranking predictions, slower than the threshold, are measured on the first test items only.

Caches: an untrained model of width 512, large enough to show them: answers of 256 tokens to prompts of 256, blocks of
32, 128 steps; `dual_cache_speedup` is the plain loop's time over ours. `--quick` is a smoke test and never quoted.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast, get_args

import torch
from torch import Tensor

from lift_ds import load_pretrained
from lift_ds.data.tasks import TASKS, Item, Verdict
from lift_ds.data.text.chat import ChatEncoder
from lift_ds.evaluation.asking.solve import held_out_items
from lift_ds.models.head import MaskedDiffusionModel
from lift_ds.models.llada import LLaDAConfig, LLaDAModelLM
from lift_ds.sampling.reverse import Generation, denoise, pad
from lift_ds.sampling.settings import Cache, Remasking, SamplingSettings

GEN_LENGTH = 48
BATCH_SIZE = 50
THRESHOLDS = (0.5, 0.7, 0.8, 0.9, 0.92, 0.94, 0.96, 0.98)
POINTS = 2.0  # a loss of more must be excluded on the validation items
Sampler = Callable[[MaskedDiffusionModel, Tensor, Tensor | None], Generation]


@torch.no_grad()
def plain(
    model: MaskedDiffusionModel, prompts: Tensor, attention: Tensor | None, steps: int, gen_length: int, block: int
) -> Generation:
    """The public loop: all logits in each step, equal numbers of the most confident tokens of the block."""
    mask_id = int(model.config.mask_token_id)
    ids = torch.nn.functional.pad(prompts, (0, gen_length), value=mask_id)
    visible = None if attention is None else torch.nn.functional.pad(attention, (0, gen_length), value=True)
    positions = None if visible is None else (visible.long().cumsum(-1) - 1).clamp(min=0)
    num_forwards, steps_per_block = 0, steps * block // gen_length
    for start in range(prompts.shape[1], ids.shape[1], block):
        for step in range(steps_per_block):
            masked = ids == mask_id
            logits = model.head(model.encode(ids, visible, positions))
            probability = logits.double().softmax(-1)
            logits[..., mask_id] = -torch.inf
            predicted = logits.argmax(-1)
            confidence = probability.gather(-1, predicted[..., None])[..., 0]
            confidence = confidence.masked_fill(~masked, -torch.inf)
            confidence[:, start + block :] = -torch.inf
            count = -(-int(masked[0, start : start + block].sum()) // (steps_per_block - step))
            places = confidence.sort(dim=-1, descending=True, stable=True).indices[:, :count]
            ids.scatter_(1, places, predicted.gather(1, places))
            num_forwards += 1
    return Generation(ids, num_forwards, torch.full((len(ids),), num_forwards))


@dataclass
class Tally:
    """What one sampler did so far."""

    solved: list[bool] = field(default_factory=list)
    seconds: float = 0.0
    num_forwards: int = 0  # those that each item took part in

    def points_lost(self, baseline: Tally) -> tuple[float, float]:
        """The 95 % interval of the points lost, from paired items (normal approximation)."""
        pairs = zip(baseline.solved, self.solved, strict=True)
        lost = torch.tensor([100 * (float(before) - float(after)) for before, after in pairs])
        half = 1.96 * float(lost.std()) / len(lost) ** 0.5
        return float(lost.mean()) - half, float(lost.mean()) + half

    def line(self, name: str, baseline: Tally) -> str:
        """A row of the table."""
        count = len(self.solved)
        low, high = self.points_lost(baseline)
        return (
            f"{name:20}{100 * sum(self.solved) / count:>8.1f}{low:>9.1f} to {high:<5.1f}"
            f"{self.num_forwards / count:>10.1f}"
            f"{GEN_LENGTH * count / self.num_forwards:>12.2f}{GEN_LENGTH * count / self.seconds:>10,.0f}"
            f"{baseline.seconds / self.seconds:>8.2f}"
        )


def ours(gen_length: int = GEN_LENGTH, block_length: int = GEN_LENGTH, **options: Any) -> Sampler:
    """Our reverse process; an answer is one block unless told otherwise."""
    settings = SamplingSettings(gen_length=gen_length, block_length=block_length, **options)
    return lambda model, prompts, attention: denoise(model, prompts, settings, attention)


PLAIN: dict[str, Sampler] = {"plain": partial(plain, steps=GEN_LENGTH, gen_length=GEN_LENGTH, block=GEN_LENGTH)}
BY_THRESHOLD = {f"threshold {threshold}": ours(threshold=threshold) for threshold in THRESHOLDS}
OTHERS = {
    **{remasking: ours(steps=GEN_LENGTH, remasking=remasking) for remasking in get_args(Remasking)},
    **{f"{steps} steps": ours(steps=steps) for steps in (GEN_LENGTH // 2, GEN_LENGTH // 4)},
}


def measure(
    model: MaskedDiffusionModel, encoder: ChatEncoder, items: list[Item], chosen: dict[str, Sampler]
) -> dict[str, Tally]:
    """Answers items with every sampler in turn, batch by batch."""
    tallies = {name: Tally() for name in chosen}
    for start in range(0, len(items), BATCH_SIZE):
        batch = items[start : start + BATCH_SIZE]
        prompts = [encoder.prompt_ids([{"role": "user", "content": item.question}]) for item in batch]
        ids, attention = pad(prompts, encoder.end_token_id)
        for name, sampler in chosen.items():
            began = time.perf_counter()
            made = sampler(model, ids, attention)
            tallies[name].seconds += time.perf_counter() - began
            tallies[name].num_forwards += int(made.row_forwards.sum())
            texts = [encoder.answer_text(row) for row in made.ids[:, ids.shape[1] :].tolist()]
            verdicts = [TASKS[item.task].verify(item.key, text) for item, text in zip(batch, texts, strict=True)]
            tallies[name].solved += [verdict is Verdict.SOLVED for verdict in verdicts]
    return tallies


def show(label: str, tallies: dict[str, Tally]) -> None:
    """Prints the table of some items."""
    baseline = tallies["plain"]
    print(
        f"{len(baseline.solved)} {label} items, {GEN_LENGTH} tokens\n{'sampler':20}{'solved %':>8}{'points lost':>17}"
        f"{'forwards':>10}{'a forward':>12}{'tokens/s':>10}{'x plain':>8}"
    )
    for name, tally in tallies.items():
        print(tally.line(name, baseline))


def drawn_items(count: int, seed: int, seen: set[str]) -> list[Item]:
    """Held-out items whose questions are all different, the tasks in turn.

    Raises:
        ValueError: There are not so many that are not among the seen ones.
    """
    by_task: dict[str, list[Item]] = {name: [] for name in TASKS}
    asked = set(seen)
    for item in held_out_items(8 * count + 8 * len(TASKS), seed):
        if item.question not in asked:
            by_task[item.task].append(item)
        asked.add(item.question)
    items = [item for turn in zip(*by_task.values(), strict=False) for item in turn]
    if len(items) < count:
        raise ValueError(f"{count} items: only {len(items)} questions of seed {seed} are new; ask for fewer.")
    return items[:count]


def accuracy(path: str, num_validation: int, num_test: int, num_others: int) -> dict[str, float]:
    """Chooses the threshold, then measures every sampler on the test items; prints the table."""
    model, tokenizer = load_pretrained(path, torch.float32)
    if tokenizer is None:
        raise ValueError(f"{path}: no tokenizer.")
    encoder = ChatEncoder(tokenizer, int(model.config.eos_token_id), 512)
    masked = cast(MaskedDiffusionModel, model)
    validation = drawn_items(num_validation, 0, set())
    test = drawn_items(num_test, 1, {item.question for item in drawn_items(num_validation + num_test, 0, set())})
    measured = measure(masked, encoder, validation, PLAIN | BY_THRESHOLD)
    show("validation", measured)
    lost = {threshold: measured[f"threshold {threshold}"].points_lost(measured["plain"])[1] for threshold in THRESHOLDS}
    good = [threshold for threshold in THRESHOLDS if lost[threshold] <= POINTS]
    chosen = min(good or THRESHOLDS[-1:], key=lambda threshold: measured[f"threshold {threshold}"].seconds)
    print(f"threshold {chosen} chosen of {good or 'none that loses so little'}\n", flush=True)
    others = measure(masked, encoder, test[:num_others], PLAIN | OTHERS)
    show("test", others)
    if others["low_confidence"].solved != others["plain"].solved:
        raise RuntimeError("our low_confidence does not solve what the plain loop solves.")
    cached = {f"{chosen}, {cache} cache": ours(threshold=chosen, cache=cache) for cache in ("prefix", "dual")}
    by_factor = {"factor 1": ours(factor=1.0)}
    tallies = measure(masked, encoder, test, PLAIN | BY_THRESHOLD | by_factor | cached)
    show("test", tallies)
    baseline = tallies["plain"]
    best = tallies[f"threshold {chosen}"]
    return {
        "threshold": chosen,
        "threshold_qualified": bool(good),
        "threshold_speedup": baseline.seconds / best.seconds,
        "threshold_points_lost": best.points_lost(baseline)[1],
        "threshold_tokens_per_forward": GEN_LENGTH * len(test) / best.num_forwards,
        "plain_solved_percent": 100 * sum(baseline.solved) / len(test),
        "threshold_solved_percent": 100 * sum(best.solved) / len(test),
    }


def caches(rounds: int, is_quick: bool) -> dict[str, float]:
    """Times of an untrained model's answers with each cache; prints the table."""
    torch.manual_seed(0)
    width, layers, length = (64, 2, 64) if is_quick else (512, 8, 256)
    config = LLaDAConfig(
        d_model=width, n_layers=layers, n_heads=8, mlp_hidden_size=3 * width, vocab_size=8192,
        mask_token_id=8191, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    model = cast(MaskedDiffusionModel, LLaDAModelLM(config).eval())
    prompts = torch.randint(1, 8000, (2, length))
    chosen: dict[str, Sampler] = {"plain": partial(plain, steps=length // 2, gen_length=length, block=32)}
    for cache in get_args(Cache):
        chosen[f"{cache} cache"] = ours(length, 32, steps=length // 2, cache=cache)
    seconds: dict[str, list[float]] = {name: [] for name in chosen}
    for _ in range(rounds):
        for name, sampler in chosen.items():
            began = time.perf_counter()
            sampler(model, prompts, None)
            seconds[name].append(time.perf_counter() - began)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    print(f"\nwidth {width}, {layers} layers, {length} tokens after {length}: seconds, x plain")
    for name, median in medians.items():
        print(f"{name:20}{median:>8.2f}{medians['plain'] / median:>8.2f}")
    return {f"{name.replace(' ', '_')}_speedup": medians["plain"] / medians[name] for name in chosen if name != "plain"}


def main() -> None:
    """Measures and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="builtin:base", help="fine-tuned on the built-in tasks")
    parser.add_argument("--validation", type=int, default=1000, help="items that the threshold is chosen on")
    parser.add_argument("--items", type=int, default=2000, help="test items")
    parser.add_argument("--others", type=int, default=300, help="test items of the other ways of ranking predictions")
    parser.add_argument("--rounds", type=int, default=3, help="interleaved rounds of the caches")
    parser.add_argument("--only", nargs="+", choices=["accuracy", "caches"], default=["accuracy", "caches"])
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--quick", action="store_true", help="a smoke test with few items")
    arguments = parser.parse_args()
    figures: dict[str, float] = {"quick": arguments.quick}
    if "accuracy" in arguments.only:
        counts = (6, 9, 3) if arguments.quick else (arguments.validation, arguments.items, arguments.others)
        figures |= accuracy(arguments.model, *counts)
    if "caches" in arguments.only:
        figures |= caches(1 if arguments.quick else arguments.rounds, arguments.quick)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
