"""The card of a data set (README.md): which files its YAML front matter names for each split.

    configs:
    - config_name: default
      data_files:
      - {split: train, path: data/train-*}
      - {split: test, path: [data/test-a.jsonl, data/test-b.jsonl]}

Source: `datasets` 5.2, `utils/metadata.py`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import yaml
from fsspec.utils import glob_translate

from lift_ds.text_files import load_yaml

CARD_NAME = "README.md"
FRONT_MATTER = re.compile(r"\s*---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|$)", re.DOTALL)


@dataclass(frozen=True)
class Card:
    """What a card says of its only or default config.

    Args:
        data_dir: The folder of its files, with a slash at its end; empty for all.
        patterns: What names the files of each split, relative to `data_dir`; `None` where it lists none.
    """

    data_dir: str = ""
    patterns: dict[str, list[str]] | None = None

    def find_files(self, path: str, split: str, names: list[str]) -> list[str]:
        """The data files of a split, in the order of its patterns.

        Args:
            path: The folder, for messages.
            split: One of those with patterns.
            names: The folder's data files, relative to it.

        Raises:
            ValueError: A pattern names none.
        """
        found: list[str] = []
        for pattern in (self.patterns or {})[split]:
            matcher = re.compile(glob_translate(self.data_dir + pattern.removeprefix("./")))
            matching = [name for name in names if matcher.match(name)]
            if not matching:
                raise ValueError(
                    f"data.path: {path}: no data file {pattern!r}, though {CARD_NAME} lists it for split {split!r}; "
                    f"copy the folder again. Formats that are not read here can be read as hub:FOLDER@{split}."
                )
            found += [name for name in matching if name not in found]
        return found


def read_card(path: str, content: bytes) -> Card:
    """Reads a README.md; one that is no card says nothing.

    Raises:
        ValueError: Its `configs` cannot be read, or there are several and no default.
    """
    match = FRONT_MATTER.match(content.decode("utf-8", "replace"))
    if match is None or "configs:" not in match[1]:
        return Card()
    try:
        configs = {str(config["config_name"]): config for config in load_yaml(match[1]).get("configs") or []}
        default = [name for name, config in configs.items() if config.get("default") or name == "default"]
        if len(configs) > 1 and len(default) != 1:
            raise ValueError(f"several configs: {', '.join(configs)}; name one, as hub:FOLDER:{next(iter(configs))}")
        config = configs[(default or list(configs))[0]] if configs else {}
        patterns = _split_patterns(config["data_files"]) if "data_files" in config else None
        data_dir = str(config.get("data_dir") or "").strip("/")
    except (ValueError, yaml.YAMLError, TypeError, KeyError, AttributeError) as error:
        reason = str(error) if isinstance(error, ValueError) else repr(error)
        raise ValueError(f"data.path: {path}/{CARD_NAME}: cannot be followed: {reason}.") from error
    return Card(f"{data_dir}/" if data_dir else "", patterns)


def _split_patterns(listed: Any) -> dict[str, list[str]]:
    if isinstance(listed, list) and any(isinstance(entry, dict) for entry in listed):
        return {str(entry["split"]): _as_list(entry["path"]) for entry in listed}
    return {"train": _as_list(listed)}


def _as_list(paths: Any) -> list[str]:
    return [str(path) for path in paths] if isinstance(paths, list) else [str(paths)]
