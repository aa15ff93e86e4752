"""Which errors their message explains, and which need the place in the code where they were raised."""

from __future__ import annotations

import dis
from types import TracebackType

OURS = "lift_ds"
ENGINES = ("torch", "deepspeed")  # whose ValueErrors are of shapes and types, not of what a user named


class AgreedError(RuntimeError):
    """An error that every rank raises at the same place: they can still do something together."""


def is_explained(error: BaseException) -> bool:
    """Whether an error is of settings, data or surroundings, and its message says what to do; else it is a fault.

    An OSError is. A ValueError or RuntimeError of this package is where a `raise` stands: what a call into C raises
    (out of memory, a shape, `int("x")`) has its last frame in this package, too. Of other packages a ValueError is,
    but for those that compute.
    """
    if isinstance(error, OSError) or error.__traceback__ is None:
        return isinstance(error, OSError | ValueError | RuntimeError)
    if not isinstance(error, ValueError | RuntimeError):
        return False
    place = frames_of(error)[-1]
    package = package_of(place)
    if package == OURS:
        return dis.opname[place.tb_frame.f_code.co_code[place.tb_lasti]] == "RAISE_VARARGS"
    return isinstance(error, ValueError) and package not in ENGINES


def is_of_collective(error: BaseException) -> bool:
    """Whether an error comes out of a collective of torch's or DeepSpeed's: another rank may have failed first."""
    modules = {str(place.tb_frame.f_globals.get("__name__")) for place in frames_of(error)}
    return any(name.startswith(("torch.distributed", "deepspeed.comm")) for name in modules)


def frames_of(error: BaseException) -> list[TracebackType]:
    """The frames of an error's traceback, the innermost last."""
    frames, place = [], error.__traceback__
    while place is not None:
        frames.append(place)
        place = place.tb_next
    return frames


def package_of(place: TracebackType) -> str:
    """The top package of a frame's module, also where that is run as a program."""
    return str(place.tb_frame.f_globals.get("__package__") or "").partition(".")[0]
