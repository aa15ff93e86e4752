"""How a chat template lays out every conversation of one shape, from one run over watched texts.

A shape is the sequence of roles. The template runs on texts that it can only write out, join and strip; whatever else
it does with them (look into them, measure or compare them) raises. What it wrote then holds for all texts, and a row
costs string formatting instead of several renderings. Templates that do more are rendered row by row.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import nodes
from jinja2.filters import FILTERS
from jinja2.sandbox import ImmutableSandboxedEnvironment

from .turns import Message

Messages = Sequence[Message]
Render = Callable[[int, bool], str]

# Noncharacters of Unicode; a placeholder is <open> place, way of stripping <close>.
OPEN, CLOSE = "\ufdd2", "\ufdd3"
PLACEHOLDER = re.compile(f"{OPEN}([0-9]+)([a-z]*){CLOSE}")
STRIPS: dict[str, Callable[[str], str]] = {"": str, "strip": str.strip, "lstrip": str.lstrip, "rstrip": str.rstrip}
HARMLESS_FILTERS = ("trim", "length", "count", "first", "last", "list", "default", "d")
# These write a text into a plain one, which could then be looked into unseen.
OPAQUE_NODES = (nodes.Concat, nodes.Macro, nodes.AssignBlock, nodes.FilterBlock, nodes.CallBlock)
WATCHED_OPERATIONS = "contains eq ne lt le gt ge hash len bool iter getitem mod rmod mul rmul format reversed".split()


class _LooksInsideError(Exception):
    """A template does more with a text than write it out, join and strip it."""


class _Watched(str):
    """A text that stands for any other: it can be joined, and stripped while it is whole; all else raises."""

    __slots__ = ()

    def __str__(self) -> str:
        return self

    def __add__(self, other: str) -> _Watched:
        return _Watched(str.__add__(self, other))

    def __radd__(self, other: str) -> _Watched:
        return _Watched(str.__add__(other, self))

    def __getattribute__(self, name: str) -> Any:
        if name in STRIPS:
            return lambda chars=None: _strip_placeholder(self, name, chars)
        if not name.startswith("__"):
            raise _LooksInsideError(name)
        return str.__getattribute__(self, name)


def _refuse(*arguments: Any) -> Any:
    raise _LooksInsideError


for _operation in WATCHED_OPERATIONS:
    setattr(_Watched, f"__{_operation}__", _refuse)


def _strip_placeholder(text: _Watched, way: str, chars: str | None) -> _Watched:
    whole = PLACEHOLDER.fullmatch(str.__str__(text))
    if whole is None or chars is not None or whole[2] not in ("", way):
        raise _LooksInsideError(way)
    return _Watched(f"{OPEN}{whole[1]}{way}{CLOSE}")


class _WatchingEnvironment(ImmutableSandboxedEnvironment):
    """Runs templates on watched texts; set up as transformers does, without filters that could hide what they read."""

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
        self.filters = dict.fromkeys([*FILTERS, "tojson"], _refuse)
        self.filters |= {name: FILTERS[name] for name in HARMLESS_FILTERS}

    def is_safe_callable(self, obj: Any) -> bool:
        """Methods of plain texts could take a watched one in unseen."""
        return not isinstance(getattr(obj, "__self__", None), str) and super().is_safe_callable(obj)


def _hides_texts(source: str) -> bool:
    """Whether a template has constructs under which a text is no longer watched."""
    tree = _WatchingEnvironment().parse(source)
    if next(tree.find_all(OPAQUE_NODES), None) is not None:
        return True
    for compare in tree.find_all(nodes.Compare):
        for operand in compare.ops:
            is_membership = operand.op in ("in", "notin") and not isinstance(compare.expr, nodes.Const)
            if is_membership and not isinstance(operand.expr, (nodes.List, nodes.Tuple)):
                return True
    return any(test.name == "in" for test in tree.find_all(nodes.Test))


@dataclass(frozen=True)
class Piece:
    """A stretch of text between two borders of learned and other text, as a `%`-format.

    `fields` has (message, way of stripping) of every text in it; `is_learned`: the assistant writes it.
    """

    pattern: str
    fields: tuple[tuple[int, str], ...]
    is_learned: bool

    def fill(self, messages: Messages) -> str:
        """The stretch with a conversation's texts."""
        return self.pattern % tuple([STRIPS[way](messages[turn]["content"]) for turn, way in self.fields])


def watch_template(
    source: str, names: dict[str, Any], roles: Sequence[str], split: Callable[[Render], list[tuple[str, bool]]]
) -> list[Piece] | None:
    """The pieces of every conversation with these roles, from one run of the template over watched texts.

    `None` where they depend on the texts, or the template cannot be run or split so. `split` makes (text, learned) of a
    function (number of messages, invite) -> text; `names` is what the template may use beside messages, as `bos_token`.
    """
    messages = [{"role": role, "content": _Watched(f"{OPEN}{turn}{CLOSE}")} for turn, role in enumerate(roles)]
    try:
        if _hides_texts(source):
            return None
        template = _WatchingEnvironment().from_string(source)

        def render(count: int, invite: bool) -> str:
            return template.render(messages=messages[:count], add_generation_prompt=invite, **names)

        return [_as_piece(text, is_learned) for text, is_learned in split(render)]
    except Exception:  # a template raises what it likes; the rows' own renderings say what is wrong
        return None


def _as_piece(text: str, is_learned: bool) -> Piece:
    pattern = PLACEHOLDER.sub("%s", text.replace("%", "%%"))
    return Piece(pattern, tuple((int(turn), way) for turn, way in PLACEHOLDER.findall(text)), is_learned)
