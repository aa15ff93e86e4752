"""What the difficulty memory knows, and what it costs.

    python benchmarks/memory.py --json memory.json
    python benchmarks/memory.py --part planted --json planted.json
    python benchmarks/memory.py --part cost --json cost.json
    python benchmarks/memory.py --model FOLDER --data rows.jsonl --rows 300 --passes 6 --batch 16

`kappa`: a run of LIFT-3 with exact scores on some rows, several times over, is recorded; then the memory goes through
the same steps with a budget of scored documents, and chooses among the same tokens as many as the run did:

    kappa = (sum |A and E| - sum k^2 / |S|) / (sum k - sum k^2 / |S|)        A its choice, E the exact one

over easy and hard documents. What is scored counts as chosen exactly; `unscored` is over the others. What the memory
would have learned from a training pass that it chose itself is what the recorded pass shows of the token, or, where
that pass did not learn it, the scoring pass. `table` is `scoring=buffer` with an eighth of the documents refreshed.

`planted`: some rows get the answer of another row of their level; a run with the memory learns them all, and the report
of the hardest rows is asked for as many as were planted.

`cost`: seconds of a step of `make train`'s recipe on two ranks over those of vanilla SFT on the same rows, medians of
runs in turn.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from whole_steps import WholeSteps

from lift_ds.config.run import RunConfig
from lift_ds.config.training import OptimConfig
from lift_ds.data.batch import Document, MicroBatch, Noise, collate
from lift_ds.data.order.exchange import SlotPack
from lift_ds.data.tasks import MIXTURES
from lift_ds.evaluation.hardest import rank_rows
from lift_ds.method.components import Component
from lift_ds.models.attention import attention_kernels
from lift_ds.objectives import make_objective, objective_settings
from lift_ds.objectives.objective import Objective, superset_level
from lift_ds.ranks.background import Links, NoLinks, ThreadRanks
from lift_ds.ranks.launch import read_launch
from lift_ds.ranks.running import leave
from lift_ds.storage.manifest import step_of
from lift_ds.storage.safetensors_folder import SafetensorsFolder
from lift_ds.training.buffers import DifficultyBuffers
from lift_ds.training.engine import start_distributed
from lift_ds.training.inputs import prepare
from lift_ds.training.memory import DifficultyMemory
from lift_ds.training.memory_files import read_rows
from lift_ds.training.results import Observed

REPOSITORY = Path(__file__).resolve().parents[1]
BUDGETS = {"zero": 0.0, "eighth": 0.125, "quarter": 0.25, "half": 0.5}
RANKS = (1, 2, 4)
REFRESHED = 0.125
CHOSEN = (Component.EASY, Component.HARD)


class Recorder:
    """Takes the place of a run's difficulty buffers and keeps what each step's passes showed."""

    def __init__(self) -> None:
        self.steps: list[list[tuple[MicroBatch, Observed]]] = []

    def release(self) -> None:
        """Nothing is held back."""

    def fill(self, batches: list[MicroBatch]) -> list[MicroBatch]:
        """Exact scores need nothing."""
        return batches

    def take(self, passes: list[tuple[MicroBatch, Observed]], step: int) -> None:
        """Keeps a step."""
        self.steps.append(passes)


@dataclass(frozen=True)
class Recorded:
    """One step of the exact run.

    Args:
        documents: Its documents, one a slot.
        noises: Their random numbers.
        scored: float32 (B, L), -log p of the scoring pass; NaN elsewhere.
        learned: The same of the training pass.
    """

    documents: list[Document]
    noises: list[Noise]
    scored: Tensor
    learned: Tensor

    @staticmethod
    def of(passes: list[tuple[MicroBatch, Observed]]) -> Recorded:
        """Of a step of one micro-batch."""
        (batch, scoring), (_, training) = passes
        documents, noises = [], []
        for row, length in enumerate(batch.lengths):
            columns = (batch.clean_ids, batch.response_mask, batch.filler_mask)
            ids, response, filler = (each[row, :length].numpy() for each in columns)
            documents.append(Document(ids, response, filler, batch.sample_ids[row], 0, ""))
            uniforms = torch.stack([batch.mask_uniform[row, :length], batch.tie_uniform[row, :length]]).numpy()
            scalars = (batch.t, batch.rho, batch.count_uniform)
            t, rho, v = (float(each[row]) for each in scalars)
            noises.append(Noise(t, rho, int(batch.component[row]), uniforms, v))
        return Recorded(documents, noises, *(_placed(each, batch.clean_ids.shape) for each in (scoring, training)))


def _placed(observed: Observed, shape: torch.Size) -> Tensor:
    kept = observed.of(~observed.is_filler)
    return torch.full((shape.numel(),), torch.nan).index_copy(0, kept.at, kept.nll).view(shape)


def record(arguments: argparse.Namespace) -> list[Recorded]:
    """Trains with exact scores on one rank."""
    start_distributed(read_launch())
    data = {"path": arguments.data, "max_length": arguments.max_length, "check_rows": 0, "pad_targets": "all"}
    data |= {"pad_to_multiple": 48} if arguments.data.startswith("builtin:") else {"pad_targets": "one_eos"}
    if arguments.data.startswith("builtin:"):
        data["builtin_rows"] = arguments.rows
    run = RunConfig.model_validate(
        {"model": {"path": arguments.model}, "data": data, "eval": {"rows": 0, "every": 0, "solve_items": 0}}
    )
    prepared = prepare(run)
    lanes = prepared.data.stream.lanes
    rows: dict[int, Document] = {}
    while len(rows) < min(arguments.rows, prepared.data.num_rows):
        ref = lanes.next(len(rows) % lanes.num_lanes)
        document = prepared.data.reader.document(ref)
        rows.setdefault(document.sample_id, document)
    num_steps = len(rows) * arguments.passes // arguments.batch
    optim = OptimConfig(
        steps=num_steps, global_batch=arguments.batch, lr=arguments.lr, schedule="cosine", warmup_ratio=0.05,
        weight_decay=0.01, beta2=0.98,
    )  # fmt: skip
    steps = WholeSteps(
        prepared.config,
        SafetensorsFolder(prepared.folder),
        REPOSITORY / "ds_configs" / "zero2_micro16.json",
        objective_settings(method="lift3"),
        arguments.batch,
        has_bf16=False,
        optim=optim,
    )
    recorder = Recorder()
    steps.buffers = recorder  # type: ignore[assignment]
    chance, order, documents = np.random.default_rng(0), list[int](), list(rows.values())
    with attention_kernels(steps.engine.root.kernel):
        for number in range(num_steps):
            while len(order) < arguments.batch:
                order += chance.permutation(len(documents)).tolist()
            drawn, order = order[: arguments.batch], order[arguments.batch :]
            epoch = number * arguments.batch // len(documents)
            steps.engine.set_learning_rate(number)
            loss = steps.step([replace(documents[place], epoch=epoch) for place in drawn], number)
            if number % 20 == 0:
                print(f"recording: step {number} of {num_steps}, loss {loss:.3f}", file=sys.stderr, flush=True)
    return [Recorded.of(passes) for passes in recorder.steps]


class Agreement:
    """Sums of kappa by pass over the rows and by component, of scored and unscored documents."""

    def __init__(self, num_passes: int) -> None:
        self.sums = np.zeros((num_passes, 3, 2, 2))  # (pass, component, scored, common and possible), less chance

    def add(self, number: int, component: int, is_scored: bool, chosen: Tensor, exact: Tensor, size: int) -> None:
        """One document: bool (L,) choices of a superset of `size`."""
        k = int(exact.sum())
        chance = k * k / size if size else 0.0
        gains = (int((chosen & exact).sum()) - chance, k - chance)
        self.sums[min(number, len(self.sums) - 1), component, int(is_scored)] += gains

    def kappa(self, number: int, components: tuple[int, ...] = CHOSEN, only_unscored: bool = False) -> float:
        """Of one pass."""
        sums = self.sums[number, list(components), : 1 if only_unscored else 2].sum((0, 1))
        return float(sums[0] / sums[1]) if sums[1] else float("nan")


def chosen_by(objective: Objective, batch: MicroBatch, scores: Tensor) -> Tensor:
    """Bool (B, L), without fillers."""
    candidates = objective.noise(batch)
    return objective.choose(batch, candidates, scores).targets & ~candidates.fillers


def shown_by(batch: MicroBatch, step: Recorded, kept: Tensor) -> list[tuple[MicroBatch, Observed]]:
    """What passes of this choice would show."""
    scored = ~step.scored.isnan() & batch.is_refreshed[:, None]
    losses = torch.where(step.learned.isnan(), step.scored, step.learned)
    is_chosen = (batch.component != Component.RANDOM)[:, None].expand_as(kept)
    t = batch.t[:, None].expand_as(losses)
    passes = []
    for mask, levels, nll, chosen in (
        (scored, superset_level(batch), step.scored, scored & False),
        (kept, t, losses, is_chosen),
    ):
        at = mask.flatten().nonzero()[:, 0]
        ids, level, loss = (each.flatten()[at] for each in (batch.clean_ids, levels, nll))
        is_filler = torch.zeros_like(at, dtype=torch.bool)
        passes.append((batch, Observed(ids, level, loss, at, is_filler, chosen.flatten()[at])))
    return passes


def replay(
    steps: list[Recorded], budget: float, num_rows: int, num_passes: int, vocab_size: int, ranks: ThreadRanks
) -> tuple[Agreement, DifficultyMemory]:
    """One rank's share of the recorded steps, with a memory."""
    settings = objective_settings(method="lift3", scoring="memory", scoring_budget=budget)
    objective, agreement = make_objective(settings), Agreement(num_passes)
    table = DifficultyBuffers(vocab_size, ranks, decay=0.999, sync_every=1)
    memory = DifficultyMemory(table, ranks, budget, len(steps))
    num_seen = 0
    for number, step in enumerate(steps):
        mine = range(ranks.rank, len(step.documents), ranks.world_size)
        packs: list[SlotPack] = [(row, [step.documents[row]]) for row in mine]
        filled = memory.prepare(number, packs, [[step.noises[row]] for row in mine])
        documents = [document for _, (document,) in filled]
        batch = collate(documents, [step.noises[row] for row in mine], 0, [(slot, 0) for slot, _ in filled])
        width = batch.clean_ids.shape[1]
        own = replace(step, scored=step.scored[list(mine), :width], learned=step.learned[list(mine), :width])
        scores = torch.where(own.scored.isnan(), 0, -own.scored)
        kept = chosen_by(objective, batch, scores)
        for row, component in enumerate(batch.component.tolist()):
            size = int((~own.scored[row].isnan()).sum())
            if component in CHOSEN:
                exact = ~own.learned[row].isnan()
                agreement.add(num_seen // num_rows, component, bool(batch.is_refreshed[row]), kept[row], exact, size)
        memory.release()
        memory.take(shown_by(batch, own, kept), number + 1)
        num_seen += len(step.documents)
    return agreement, memory


def replay_table(steps: list[Recorded], num_rows: int, num_passes: int, vocab_size: int) -> Agreement:
    """The table alone, by token and level."""
    objective = make_objective(objective_settings(method="lift3", scoring="buffer"))
    ranks, chance = ThreadRanks(NoLinks(), 0, 1, threading.Event()), np.random.default_rng(1)
    table, agreement, num_seen = DifficultyBuffers(vocab_size, ranks, 0.999, 20), Agreement(num_passes), 0
    for number, step in enumerate(steps):
        is_refreshed = chance.random(len(step.documents)) < REFRESHED
        documents = [replace(each, is_scored=bool(one)) for each, one in zip(step.documents, is_refreshed, strict=True)]
        (batch,) = table.fill([collate(documents, step.noises, 0)])
        scores = torch.where(step.scored.isnan(), 0, -step.scored)
        kept = chosen_by(objective, batch, scores)
        for row, component in enumerate(batch.component.tolist()):
            if component in CHOSEN:
                exact, size = ~step.learned[row].isnan(), int((~step.scored[row].isnan()).sum())
                agreement.add(num_seen // num_rows, component, bool(is_refreshed[row]), kept[row], exact, size)
        table.take(shown_by(batch, step, kept), number + 1)
        num_seen += len(step.documents)
    return agreement


class ThreadLinks:
    """What connects threads of this process that play ranks."""

    def __init__(self, world_size: int) -> None:
        self.told: list[Any] = [None] * world_size
        self.barrier = threading.Barrier(world_size)

    def of(self, rank: int) -> Links:
        """One rank's."""
        return _ThreadLink(self, rank)

    def gather(self, rank: int, mine: Any) -> list[Any]:
        """Everyone's."""
        self.told[rank] = mine
        self.barrier.wait()
        everyones = list(self.told)
        self.barrier.wait()
        return everyones


@dataclass(frozen=True)
class _ThreadLink:
    all: ThreadLinks
    rank: int

    def total(self, values: Tensor, stopping: threading.Event) -> Tensor:
        return torch.stack(self.all.gather(self.rank, values)).sum(0)

    def send(self, parts: list[bytes], sizes: list[int], stopping: threading.Event) -> list[bytes]:
        return [of_rank[self.rank] for of_rank in self.all.gather(self.rank, parts)]

    def exchange(self, parts: list[Tensor], stopping: threading.Event) -> list[Tensor]:
        return [of_rank[self.rank] for of_rank in self.all.gather(self.rank, parts)]


def traffic(steps: list[Recorded], sizes: tuple[int, int, int], world_size: int) -> dict[str, float]:
    """Bytes that ranks hold and send with a budget of a quarter; `sizes` as `replay` has them."""
    links = ThreadLinks(world_size)

    def of_rank(rank: int) -> DifficultyMemory:
        ranks = ThreadRanks(links.of(rank), rank, world_size, threading.Event())
        return replay(steps, 0.25, *sizes, ranks)[1]

    with ThreadPoolExecutor(world_size) as pool:
        memories = list(pool.map(of_rank, range(world_size)))
    num_tokens = sum(int(document.response_mask.sum()) for step in steps for document in step.documents)
    return {
        f"memory_bytes_per_token_{world_size}": sum(each.rows.num_bytes for each in memories)
        / sum(each.rows.num_tokens for each in memories),
        f"memory_traffic_bytes_per_token_{world_size}": sum(each.ranks.bytes_moved for each in memories) / num_tokens,
        f"memory_largest_rank_bytes_{world_size}": max(each.rows.num_bytes for each in memories),
    }


def measure_kappa(arguments: argparse.Namespace) -> dict[str, float]:
    """Records, replays, prints the table."""
    steps = record(arguments)
    vocab_size = 1 + max(int(document.ids.max()) for step in steps for document in step.documents)
    sizes = (arguments.rows, arguments.passes, vocab_size)
    alone = ThreadRanks(NoLinks(), 0, 1, threading.Event())
    arms: dict[str, Agreement] = {"table": replay_table(steps, *sizes)}
    arms |= {name: replay(steps, budget, *sizes, alone)[0] for name, budget in BUDGETS.items()}
    passes = sorted({1, 2, 3, 5, 8, arguments.passes} & set(range(1, arguments.passes + 1)))
    print("\n| kappa after passes | " + " | ".join(map(str, passes)) + " | easy | hard | unscored |")
    print("| --- |" + " --- |" * (len(passes) + 3))
    last, figures = arguments.passes - 1, dict[str, float]()
    for name, agreement in arms.items():
        by_component = [agreement.kappa(last, (component,)) for component in CHOSEN]
        unscored = agreement.kappa(last, only_unscored=True)
        values = [*(agreement.kappa(number - 1) for number in passes), *by_component, unscored]
        title = f"table, {REFRESHED} scored" if name == "table" else f"memory, {BUDGETS[name]} scored"
        print(f"| {title} | " + " | ".join(f"{value:.3f}" for value in values) + " |")
        key = "kappa_table" if name == "table" else f"kappa_memory_{name}"
        figures |= {key: agreement.kappa(last), f"{key}_unscored": unscored}
    figures["kappa_table_acting"] = figures["kappa_table"]
    figures["kappa_table"] = figures.pop("kappa_table_unscored")  # of its own choices, without what is scored
    for world_size in RANKS:
        figures |= traffic(steps, sizes, world_size)
    figures["memory_bytes_per_token"] = figures["memory_bytes_per_token_1"]
    figures["memory_traffic_bytes_per_token"] = figures["memory_traffic_bytes_per_token_2"]
    print("\n| ranks | bytes a token held | bytes a token sent | largest rank, KiB |\n| --- | --- | --- | --- |")
    for size in RANKS:
        held, sent = (figures[f"memory_{name}_per_token_{size}"] for name in ("bytes", "traffic_bytes"))
        print(f"| {size} | {held:.2f} | {sent:.1f} | {figures[f'memory_largest_rank_bytes_{size}'] / 1024:.0f} |")
    return figures


def launch_run(output: Path, overrides: list[str]) -> None:
    """A run of `make train`'s recipe on two ranks, without measurements."""
    command = ["deepspeed", "--num_gpus", "2", "launchers/train.py", "--deepspeed", "ds_configs/zero3.json"]
    command += ["--config", "lift_ds/assets/reasoning.yaml", f"output={output}", *overrides]
    command += ["eval.rows=0", "eval.every=0", "eval.solve_items=0", "eval.watch_every=0"]
    done = subprocess.run(command, cwd=REPOSITORY, text=True, capture_output=True)
    if done.returncode:
        sys.exit(done.stdout[-4000:] + done.stderr[-4000:])


def plant(path: Path, num_rows: int, num_planted: int) -> set[int]:
    """Writes rows of the built-in tasks, some with the answer of another row of their level; returns which."""
    mixture, chance = MIXTURES["reasoning"], np.random.default_rng(5)
    items = [mixture.item(0, "train", row) for row in range(num_rows)]
    answers, planted = [item.response for item in items], set[int]()
    for row in chance.permutation(num_rows).tolist():
        item = items[row]
        others = [other for other in items if (other.task, other.level) == (item.task, item.level)]
        other = others[chance.integers(len(others))]
        if len(planted) < num_planted and other.response.split("<answer>")[1] != item.response.split("<answer>")[1]:
            answers[row] = other.response
            planted.add(row)
    lines = (json.dumps({"prompt": i.question, "response": a}) + "\n" for i, a in zip(items, answers, strict=True))
    path.write_text("".join(lines))
    return planted


def measure_planted(arguments: argparse.Namespace) -> dict[str, float]:
    """Trains on rows of which some are wrong, and asks the memory for the hardest after each of some passes."""
    num_planted = max(1, arguments.rows // 40)
    with tempfile.TemporaryDirectory() as folder:
        rows, output = Path(folder) / "rows.jsonl", Path(folder) / "run"
        planted = plant(rows, arguments.rows, num_planted)
        a_pass = arguments.rows // arguments.batch
        launch_run(
            output,
            [
                *(f"data.path={rows}", f"optim.steps={a_pass * arguments.passes}", "objective.scoring=memory"),
                *(f"optim.global_batch={arguments.batch}", f"checkpoint.save_every={a_pass}", "checkpoint.keep=99"),
            ],
        )
        figures: dict[str, float] = {}
        print(f"\n| passes | planted among the {num_planted} hardest |\n| --- | --- |")
        for checkpoint in sorted((output / "checkpoints").glob("step-*"), key=step_of):
            hardest = [row.sample_id for row in rank_rows(read_rows(checkpoint))[:num_planted]]
            precision = len(planted & set(hardest)) / num_planted
            number = step_of(checkpoint) // a_pass
            figures[f"planted_precision_{number}"] = precision
            print(f"| {number} | {precision:.2f} |")
    return figures | {"planted_rows": num_planted}


COST_ARMS = {
    "vanilla": ["objective.method=vanilla"],
    "memory": ["objective.scoring=memory", "objective.scoring_budget=0"],
    "memory_quarter": ["objective.scoring=memory"],
    "exact": ["objective.scoring=exact"],
}


def measure_cost(arguments: argparse.Namespace) -> dict[str, float]:
    """Runs the arms in turn, two ranks each, and compares medians of their steps' seconds."""
    seconds: dict[str, list[float]] = {name: [] for name in COST_ARMS}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(arguments.rounds):
            for name, overrides in COST_ARMS.items():
                output = Path(folder) / f"{name}-{turn}"
                steps = [f"optim.steps={arguments.steps}", "checkpoint.save_every=0", "data.builtin_rows=2000"]
                launch_run(output, [*overrides, *steps])
                lines = map(json.loads, (output / "metrics.jsonl").read_text().splitlines())
                taken = [each["seconds"] for each in lines if each["kind"] == "step"]
                seconds[name].append(statistics.median(taken[len(taken) // 4 :]))
    vanilla = seconds["vanilla"]
    figures = {}
    print("\n| step over vanilla | median | lowest to highest |\n| --- | --- | --- |")
    for name in list(COST_ARMS)[1:]:
        ratios = [mine / theirs for mine, theirs in zip(seconds[name], vanilla, strict=True)]
        figures[f"{name}_over_vanilla"] = statistics.median(ratios)
        print(f"| {name} | {statistics.median(ratios):.3f} | {min(ratios):.3f} to {max(ratios):.3f} |")
    return figures


PARTS: dict[str, Callable[[argparse.Namespace], dict[str, float]]] = {
    "kappa": measure_kappa,
    "planted": measure_planted,
    "cost": measure_cost,
}


def main() -> None:
    """Measures a part, prints its table and writes its figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=list(PARTS), default="kappa", help="what is measured")
    parser.add_argument("--model", default="builtin:base", help="kappa: the model that is trained")
    parser.add_argument("--data", default="builtin:reasoning", help="kappa: its rows")
    parser.add_argument("--rows", type=int, default=2000, help="kappa: how many of them")
    parser.add_argument("--passes", type=int, default=10, help="kappa: how often")
    parser.add_argument("--batch", type=int, default=64, help="kappa: documents of a step")
    parser.add_argument("--lr", type=float, default=1e-3, help="kappa: peak learning rate")
    parser.add_argument("--max-length", type=int, default=None, help="kappa: most tokens of a row")
    parser.add_argument("--steps", type=int, default=40, help="cost: steps of a run")
    parser.add_argument("--rounds", type=int, default=3, help="cost: runs of each")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--quick", action="store_true", help="smoke test: nothing to be quoted")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rows, arguments.passes, arguments.batch, arguments.steps, arguments.rounds = 48, 2, 16, 4, 1
    figures: dict[str, Any] = dict(PARTS[arguments.part](arguments))
    if arguments.quick:
        figures["quick"] = True
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")
    sys.stdout.flush()
    if torch.distributed.is_initialized():
        leave(0)


if __name__ == "__main__":
    main()
