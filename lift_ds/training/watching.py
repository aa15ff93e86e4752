"""One held-out item whose answer is un-masked by the model as it now is: what is shown while a run trains."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lift_ds.data.tasks import Verdict
from lift_ds.data.text.chat import ChatEncoder
from lift_ds.evaluation.asking.answering import Answerer
from lift_ds.evaluation.asking.solve import Question, encode_questions
from lift_ds.evaluation.asking.unmasking import partly_masked
from lift_ds.models.head import MaskedDiffusionModel
from lift_ds.ranks.shares import Ranks, agreement
from lift_ds.sampling.settings import SamplingSettings

STATES_PER_SECOND = 4.0  # as often as the panel is drawn
COLUMN = 36  # characters of the question's line, and of the answer's
STYLES = {Verdict.SOLVED: "bold green", Verdict.WRONG: "bold red", Verdict.UNPARSED: "bold yellow"}
LINE_BREAK = " \u2502 "


@dataclass(frozen=True)
class Watched:
    """An item, and how its answer came to be.

    Args:
        step: Steps that the model had taken.
        states: Ids of the answer before the first step of un-masking and after each that revealed something.
    """

    step: int
    question: Question
    states: list[list[int]]
    text: str
    verdict: Verdict
    encoder: ChatEncoder
    mask_id: int

    @property
    def line(self) -> str:
        """All of it in one line."""
        question, answer = (LINE_BREAK.join(part.split("\n")) for part in (self.question.text, self.text))
        return f"step {self.step}, {self.question.task}: {question} -> {answer}   {self.verdict.value}"

    def shown(self, seconds: float) -> RenderableType:
        """Question and answer, so many seconds after the first state was shown; the verdict follows the last one."""
        number = int(min(seconds * STATES_PER_SECOND, len(self.states) - 1))
        answer = partly_masked(self.states[number], self.encoder, self.mask_id, self.states[max(number - 1, 0)])
        answer.append("\n" * (self.text.count("\n") - answer.plain.count("\n")))  # the height stays
        heading = Text(f"held-out item of {self.question.task} at step {self.step}", "bold")
        if number == len(self.states) - 1:
            heading.append(f"   {self.verdict.value}", STYLES[self.verdict])
        sides = Table.grid(padding=(0, 3))
        sides.add_column(width=COLUMN, overflow="fold")
        sides.add_column(width=COLUMN, overflow="fold")
        sides.add_row(Text(self.question.text, "cyan"), answer)
        return Group(heading, sides)


def watch(
    model: MaskedDiffusionModel,
    encoder: ChatEncoder,
    question: Question,
    process: SamplingSettings,
    ranks: Ranks,
    step: int,
    system: str | None = None,
) -> Watched:
    """Answers a question greedily, the same on every rank, as their forwards may be collectives.

    Raises:
        ValueError: Question and answer are longer than the model allows.
    """
    answerer = Answerer(model, encoder, agreement(ranks), ranks.device)
    mask_id = int(model.config.mask_token_id)
    states = [[mask_id] * process.gen_length]
    (prompt,) = encode_questions(encoder, [question], process, model.config, system)
    (answer,) = answerer.answer([prompt], process, watch=lambda ids: states.append(ids[0].tolist()))
    return Watched(step, question, states, answer.text, question.check(answer.text), encoder, mask_id)
