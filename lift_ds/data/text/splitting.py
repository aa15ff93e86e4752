"""Rendered chats cut where the assistant's learned turns begin and end."""

from __future__ import annotations

from .shapes import Render

TEMPLATE_REMEDY = "name a template that does not: data.chat_template=FILE"


def split_at_answers(
    render: Render, learned_places: list[int], num_messages: int, where: str
) -> list[tuple[str, bool]]:
    """(text, learned) pieces of a chat.

    Args:
        render: (number of messages, invite) -> text of so many messages, with or without the next answer's header.
        learned_places: Places of the answers that are learned.
        num_messages: How many messages there are; those after the last learned one are context.
        where: File and line, for messages.

    Raises:
        ValueError: The template changes earlier turns when a turn is added, or invites an answer with what it does not
            write before this one.
    """
    pieces: list[tuple[str, bool]] = []
    done = ""
    for turn in learned_places:
        before, after = render(turn, True), render(turn + 1, False)
        if not (before.startswith(done) and after.startswith(before)):
            asked = render(turn, False)
            if before.startswith(done) and before.startswith(asked) and after.startswith(asked):
                raise ValueError(
                    f"{where}: the chat template invites an answer with {before[len(asked) :]!r}, but begins message "
                    f"{turn + 1} with {after[len(asked) :][:60]!r}, so the answer would not be one to that invitation; "
                    f"{TEMPLATE_REMEDY}."
                )
            raise ValueError(rewriting(render, learned_places, num_messages, turn, where))
        pieces += [(before[len(done) :], False), (after[len(before) :], True)]
        done = after
    if learned_places[-1] + 1 < num_messages:
        whole = render(num_messages, False)
        if not whole.startswith(done):
            raise ValueError(rewriting(render, learned_places, num_messages, num_messages - 1, where))
        pieces.append((whole[len(done) :], False))
    return pieces


def rewriting(render: Render, learned_places: list[int], num_messages: int, turn: int, where: str) -> str:
    """What is said of a template that changes earlier turns when `turn` is added, with a remedy that helps here."""
    remedy = TEMPLATE_REMEDY
    if len(learned_places) > 1 and learned_places[-1] == num_messages - 1:
        try:
            split_at_answers(render, learned_places[-1:], num_messages, where)
            remedy = f"use data.train_on=last, or {remedy}"
        except Exception:  # a template raises what it likes; this remedy does not help
            pass
    return (
        f"{where}: the chat template rewrites earlier turns when turn {turn + 1} is added, so the response cannot be "
        f"marked; {remedy}."
    )
