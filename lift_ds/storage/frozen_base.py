"""The frozen base of a run with adapters: its checkpoints name it by its hash instead of holding it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from lift_ds.text_files import load_json, read_text

from .manifest import FileRecord, hash_file
from .safetensors_folder import SafetensorsFolder

BASE_FILE = "base.json"


@dataclass(frozen=True)
class BaseRecord:
    """The files with the weights of a base, by name, and the local folder where they were."""

    path: str
    files: dict[str, FileRecord]

    def check(self, other: BaseRecord, where: str) -> None:
        """Checks that `other` has the same files.

        Raises:
            ValueError: A file differs or is missing.
        """
        changed = sorted(name for name in self.files | other.files if self.files.get(name) != other.files.get(name))
        if changed:
            raise ValueError(
                f"{where} holds adapters of the base {self.path}; {other.path} is another: {', '.join(changed[:4])} "
                "differ. Name the base that the adapters were trained on."
            )

    def write(self, folder: Path) -> None:
        """Writes `base.json`."""
        (folder / BASE_FILE).write_text(json.dumps(asdict(self), indent=1), encoding="utf-8")


def read_base(checkpoint: Path) -> BaseRecord | None:
    """What a checkpoint's adapters belong to; `None` where it holds whole weights.

    Raises:
        ValueError: The record cannot be read.
    """
    path = checkpoint / BASE_FILE
    if not path.is_file():
        return None
    try:
        loaded = load_json(read_text(path))
        return BaseRecord(loaded["path"], {name: FileRecord(**record) for name, record in loaded["files"].items()})
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path}: no readable record of a base: {error}; copy the checkpoint again.") from error


def hash_base(folder: Path, rank: int = 0, world_size: int = 1) -> dict[str, FileRecord]:
    """Size and SHA-256 of a rank's share of a base's safetensors; of all of them for one rank.

    Raises:
        ValueError: There are no safetensors, or they cannot be read.
    """
    paths = sorted({tensor.storage.path for tensor in SafetensorsFolder(folder).entries.values()})
    return {path.name: hash_file(path) for path in paths[rank::world_size]}
