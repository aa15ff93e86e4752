"""From the names in a checkpoint to the official ones: what wrapped the model is taken off, and nothing is guessed."""

from __future__ import annotations

from collections.abc import Collection

from lift_ds.storage.safetensors_folder import ADAPTER_PREFIX

COMPILED = "_orig_mod."
WRAPPERS = ("module.", ADAPTER_PREFIX)


def official_names(names: Collection[str], prefix: str | None, expected: Collection[str] | None) -> dict[str, str]:
    """What each name is called in the model's folder.

    `_orig_mod.` (torch.compile) is taken out wherever it stands; `module.` and `base_model.model.` where every name
    begins with them, since no published model does. Any other prefix, as `model.` of a root module, is taken off only
    where it is given, or where the names of the config's model are known and fit no other way.

    Args:
        names: Names in the checkpoint.
        prefix: Prefix to take off, or `None` to find it as above; empty for none.
        expected: Names of the config's model, where they are known.

    Returns:
        The official name of each.

    Raises:
        ValueError: A name does not have the given prefix, or two names become one.
    """
    renamed = {name: name.replace(COMPILED, "") for name in names}
    if prefix is None:
        while wrapper := next(
            (known for known in WRAPPERS if renamed and all(new.startswith(known) for new in renamed.values())), None
        ):
            renamed = {name: new.removeprefix(wrapper) for name, new in renamed.items()}
        prefix = _find_prefix(list(renamed.values()), expected)
    without = sorted(new for new in renamed.values() if not new.startswith(prefix))
    if without:
        raise ValueError(f"prefix {prefix!r}: {without[0]} and {len(without) - 1} other names do not begin with it.")
    renamed = {name: new.removeprefix(prefix) for name, new in renamed.items()}
    if len(set(renamed.values())) < len(renamed):
        twice = sorted(new for new in renamed.values() if list(renamed.values()).count(new) > 1)
        raise ValueError(f"without their wrappers two tensors are called {twice[0]}; give the prefix to take off.")
    return renamed


def _find_prefix(names: list[str], expected: Collection[str] | None) -> str:
    """The prefix without which all expected names are there; empty where none is needed, known or found."""
    if not expected or set(expected) <= set(names):
        return ""
    first = min(expected)
    candidates = sorted({name.removesuffix(first) for name in names if name.endswith("." + first)}, key=len)
    fitting = (prefix for prefix in candidates if {prefix + name for name in expected} <= set(names))
    return next(fitting, "")
