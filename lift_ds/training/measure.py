"""What a run measures of its model before, while and after it trains; every rank runs the same forwards."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from lift_ds.data.tasks import TOP_CELLS
from lift_ds.evaluation.asking.solve import (
    Question,
    SolveReport,
    TaskScore,
    builtin_questions,
    encode_questions,
    solve_questions,
)
from lift_ds.evaluation.heldout import LEVELS, class_label, heldout_loss
from lift_ds.sampling.settings import SamplingSettings
from lift_ds.storage.best import Measured

from .engine import Engine
from .inputs import Prepared, answer_settings
from .patience import Patience
from .progress import Progress
from .watching import watch

TOP_NAMES = [str(cell) for cell in TOP_CELLS]
Record = Callable[[str, int, dict[str, Any]], None]  # writes a line of `metrics.jsonl`: its kind, step and values


@dataclass
class Measurements:
    """Measures the model of a run, records and shows what it finds.

    A forward takes `max_rows` held-out documents, or `data.micro_batch_tokens` where that is `None`.
    """

    prepared: Prepared
    engine: Engine
    max_rows: int | None
    progress: Progress
    record: Record
    patience: Patience
    last: dict[str, tuple[int, float]] = field(default_factory=dict, init=False)

    @property
    def process(self) -> SamplingSettings:
        """How answers are made."""
        return answer_settings(self.prepared.run.eval, self.prepared.config)

    @property
    def batch_size(self) -> int:
        """Held-out documents of a forward, the same on every rank."""
        data = self.prepared.data
        longest = max(len(document.ids) for document in data.held_out)
        return self.max_rows or max(1, self.prepared.run.data.micro_batch_tokens // longest)

    @cached_property
    def subset(self) -> list[Question]:
        """The few questions that are answered while the model trains."""
        run = self.prepared.run
        return builtin_questions(run.eval.solve_subset, run.data.builtin_seed, run.eval.mixture)

    def check(self) -> None:
        """Finds what would end the run at its first answers.

        Raises:
            ValueError: A question and its answer are longer than the model allows.
        """
        prepared, run = self.prepared, self.prepared.run
        if run.eval.solve_every or run.eval.watch_every or run.checkpoint.best_by == "solve_rate":
            encode_questions(prepared.data.encoder, self.subset, self.process, prepared.config, run.data.system)

    def heldout(self, step: int) -> None:
        """Held-out cross-entropy, if there are held-out rows and this step's was not measured.

        Class c of `by_frequency` holds tokens that occur 2^c to 2^(c+1) - 1 times in the held-out responses.
        """
        data = self.prepared.data
        if not data.held_out or self.last.get("heldout_loss", (None,))[0] == step:
            return
        with self.engine.evaluating() as model:
            loss = heldout_loss(model, data.held_out, self.engine, self.batch_size, self.prepared.run.seed)
        self.last["heldout_loss"] = (step, loss.mean)
        every = self.prepared.run.eval.every
        if every and step % every == 0:
            self.patience.note(step, loss.mean, self.digest("heldout_loss"))
        record = {
            "mean": loss.mean,
            "levels": list(LEVELS),
            "by_level": list(loss.by_level),
            "by_frequency": list(loss.by_frequency),
            "by_level_and_frequency": loss.by_level_and_frequency,
            "num_tokens_by_level_and_frequency": loss.num_tokens.int().tolist(),
        }
        self.record("heldout", step, record)
        by_level = "  ".join(f"t {level}: {value:.3f}" for level, value in zip(LEVELS, loss.by_level, strict=True))
        classes = [(class_label(number), value) for number, value in enumerate(loss.by_frequency)]
        by_frequency = "  ".join(f"{label}: {value:.3f}" for label, value in classes if math.isfinite(value))
        self.progress.say(f"step {step}: held-out loss {loss.mean:.4f}   ({by_level})")
        self.progress.say(f"step {step}: held-out loss by how often a token occurs   ({by_frequency})")

    def solving(self, step: int, moment: str) -> None:
        """Solve rates of all items, if any are asked for, `before` or `after` training."""
        run = self.prepared.run
        if run.eval.solve_items:
            questions = builtin_questions(run.eval.solve_items, run.data.builtin_seed, run.eval.mixture)
            self.answer(questions, step, moment, f"{moment} training")

    def solving_subset(self, step: int) -> None:
        """Solve rate of the subset."""
        report = self.answer(self.subset, step, "during", f"step {step}")
        self.last["solve_rate"] = (step, report.total.solve_rate)

    def watching(self, step: int) -> None:
        """Shows how one of the subset is answered, another one each time."""
        run = self.prepared.run
        question = self.subset[step // run.eval.watch_every % len(self.subset)]
        encoder, system = self.prepared.data.encoder, run.data.system
        with self.engine.evaluating() as model:
            self.progress.show_item(watch(model, encoder, question, self.process, self.engine, step, system))

    def answer(self, questions: list[Question], step: int, moment: str, label: str) -> SolveReport:
        """Answers questions on all ranks."""
        with self.engine.evaluating() as model:
            encoder, system = self.prepared.data.encoder, self.prepared.run.data.system
            report = solve_questions(model, encoder, questions, self.process, self.engine, system)
        total = report.total
        record = {
            "moment": moment,
            "scores": {name: asdict(score) for name, score in report.scores.items()},  # by `<task>/<level>`
            "top": asdict(TaskScore.total([report.scores[name] for name in TOP_NAMES if name in report.scores])),
            "solved": "".join("01"[is_solved] for is_solved in report.solved),  # by question
            "solve_rate": total.solve_rate,
            "parse_failure_rate": total.parse_failure_rate,
            "truncation_rate": total.truncation_rate,
            "forwards_per_item": total.forwards_per_item,
            "tokens_per_second": report.tokens_per_second,
            "seconds": report.seconds,
        }
        self.record("solve", step, record)
        rates = "  ".join(f"{name} {score.solve_rate:.1%}" for name, score in report.by_task.items())
        self.progress.say(
            f"{label}: solved {rates}   (no parse {total.parse_failure_rate:.1%}, no end {total.truncation_rate:.1%}, "
            f"{total.forwards_per_item:.4g} forwards an answer, {report.seconds:.0f} s)"
        )
        return report

    def between_steps(self, step: int) -> None:
        """What is due after step `step`; the held-out loss of the last one is measured when the run is done."""
        run = self.prepared.run
        if run.eval.every and step % run.eval.every == 0 and step < run.optim.steps:
            self.heldout(step)
        if run.eval.solve_every and step % run.eval.solve_every == 0:
            self.solving_subset(step)
        if run.eval.watch_every and step % run.eval.watch_every == 0:
            self.watching(step)

    def measured(self, metric: str, step: int) -> Measured:
        """The value by which checkpoints are compared, measured now unless it was at this step."""
        if self.last.get(metric, (None, math.nan))[0] != step:
            {"heldout_loss": self.heldout, "solve_rate": self.solving_subset}[metric](step)
        return Measured(metric, self.last[metric][1], self.digest(metric))

    def digest(self, metric: str) -> str:
        """Hash of what a value depends on besides the model: values compare where it is the same."""
        digest = hashlib.sha256()
        if metric == "heldout_loss":
            digest.update(repr((LEVELS, self.prepared.run.seed)).encode())
            for document in self.prepared.data.held_out:
                digest.update(repr((document.sample_id, len(document.ids))).encode())
                for part in (document.ids, document.response_mask, document.filler_mask):
                    digest.update(part.tobytes())
        else:
            digest.update(repr(self.process).encode())
            if self.prepared.run.data.system is not None:  # values of runs without one compare with older ones
                digest.update(self.prepared.run.data.system.encode())
            for question in self.subset:
                digest.update(repr((question.task, question.text)).encode())
        return digest.hexdigest()
