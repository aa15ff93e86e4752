"""What in a chat template would give a row other tokens at another time: its clock, which is stopped, and chance."""

from __future__ import annotations

import json
import re
from datetime import datetime

CLOCK = re.compile(r"\bstrftime_now\s*\(")
PLAIN_CALL = re.compile(r"\bstrftime_now\s*\(\s*(?:format\s*=\s*)?(?:'([^'\\]*)'|\"([^\"\\]*)\")\s*\)")
CHANCE = re.compile(r"\|\s*random\b|\blipsum\s*\(")


def has_clock(template: str) -> bool:
    """Whether a template asks for the time."""
    return CLOCK.search(template) is not None


def stop_clock(template: str, clock: datetime) -> str:
    """The template with what its clock shows at one time in place of the clock.

    Args:
        template: Its source.
        clock: That time.

    Raises:
        ValueError: It asks for the time in a format that it makes itself, or draws by chance.
    """
    if CHANCE.search(template):
        raise ValueError(
            "the chat template draws by chance (random, lipsum), so the same row would have other tokens each time; "
            "take that out: data.chat_template=FILE."
        )
    stopped = PLAIN_CALL.sub(
        lambda call: json.dumps(clock.strftime(call[1] if call[1] is not None else call[2]), ensure_ascii=False),
        template,
    )
    if has_clock(stopped):
        raise ValueError(
            "the chat template asks for the time in a format that is not written out; write it as "
            "strftime_now('%d %b %Y'): data.chat_template=FILE."
        )
    return stopped
