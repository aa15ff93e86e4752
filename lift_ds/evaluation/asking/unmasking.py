"""An answer while it is un-masked, as a terminal shows it."""

from __future__ import annotations

from itertools import groupby

from rich.text import Text

from lift_ds.data.text.chat import ChatEncoder

MASK_SIGN, NEW_STYLE = "\u2591", "bold green"


def partly_masked(ids: list[int], encoder: ChatEncoder, mask_id: int, before: list[int] | None = None) -> Text:
    """An answer with a sign for every token that is still masked; what follows an end is left out, up to a mask.

    Tokens that were masked in `before`, the ids of an earlier step, stand out.
    """
    text, start = Text(), 0
    for is_masked, run in groupby(ids, lambda token_id: token_id == mask_id):
        stop = start + len(list(run))
        if is_masked:
            text.append(MASK_SIGN * (stop - start), "dim")
        else:
            said = range(start, start + len(encoder.answer_ids(ids[start:stop])))
            for is_new, part in groupby(said, lambda place: before is not None and before[place] == mask_id):
                text.append(encoder.answer_text([ids[place] for place in part]), NEW_STYLE if is_new else None)
        start = stop
    return text
