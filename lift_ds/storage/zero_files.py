"""Which files of a folder are the shards of a ZeRO checkpoint, and whether the ranks are complete."""

from __future__ import annotations

import re
from pathlib import Path

from .manifest import LATEST, MANIFEST, pointed

ZERO_TAG = "zero"
RANK_FILE = re.compile(r"(?:bf16_|fp16_)?zero_pp_rank_(\d+)_mp_rank_(\d+)_?(optim|model)_states\.pt")
MODEL_FILE = re.compile(r"mp_rank_(\d+)_model_states\.pt")


def find_shard_folder(path: Path) -> Path:
    """The folder that holds the shards.

    It is named by itself, by a checkpoint around it (ours, or one whose `latest` names it), a run of ours, or a file
    that names a checkpoint (`latest`, `best`).

    Raises:
        ValueError: No shards are found.
    """
    path = pointed(path)
    if not path.is_dir():
        raise ValueError(f"{path}: no such checkpoint or run folder.")
    for _ in range(3):  # RUN -> checkpoints/step-N -> zero
        if any(path.glob("*optim_states.pt")):
            return path
        following = follow(path)
        if following is None:
            break
        path = following
    raise ValueError(
        f"{path}: no ZeRO shards (*_optim_states.pt). Name a run, a checkpoint, or the folder with the shards "
        "(step-NNNNNN/zero, global_stepN)."
    )


def follow(path: Path) -> Path | None:
    """The folder that `latest` points to, here or in `checkpoints`; `None` where nothing points anywhere.

    Raises:
        NewerFormatError: `latest` is lost, and a later version wrote the newest checkpoint.
        ValueError: It points to something that is not there, and there is no whole checkpoint beside it.
    """
    if (path / MANIFEST).is_file() and (path / ZERO_TAG).is_dir():
        return path / ZERO_TAG  # a checkpoint of ours; its own `latest` is DeepSpeed's, and the manifest judges it
    pointers = (path / "checkpoints" / LATEST, path / LATEST)
    return next((target for pointer in pointers if (target := pointed(pointer)) != pointer), None)


def own_checkpoint(shards: Path) -> Path | None:
    """The checkpoint of ours that shards belong to, or `None` for a stranger's."""
    return shards.parent if (shards.parent / MANIFEST).is_file() else None


def list_rank_files(folder: Path) -> tuple[list[Path], list[Path]]:
    """The shards of a folder, by rank: optimizer states, and model states (one under ZeRO-1 and 2).

    Raises:
        ValueError: A rank's file is missing, two files claim one rank, or there are several model-parallel ranks.
    """
    shards: dict[str, dict[int, Path]] = {"optim": {}, "model": {}}
    for path in sorted(folder.iterdir()):
        if match := RANK_FILE.fullmatch(path.name):
            rank, slice_index, kind = int(match[1]), int(match[2]), match[3]
        elif match := MODEL_FILE.fullmatch(path.name):
            rank, slice_index, kind = 0, int(match[1]), "model"
        else:
            continue
        if slice_index:
            raise ValueError(f"{path}: a shard of tensor parallelism; only data parallelism (mp_rank_00) is read.")
        if rank in shards[kind]:
            raise ValueError(
                f"{folder}: {path.name} and {shards[kind][rank].name} are both of rank {rank}; remove one."
            )
        shards[kind][rank] = path
    if any(folder.glob("*expert_*_states.pt")):
        raise ValueError(f"{folder}: shards of expert parallelism (expert_*); only data parallelism is read.")
    for kind, files in shards.items():
        missing = sorted(set(range(max(files, default=0) + 1)) - set(files))
        if missing:
            listed = ", ".join(map(str, missing))
            raise ValueError(f"{folder}: {kind}_states of rank {listed} missing; copy the checkpoint again.")
    optim, model = ([files[rank] for rank in sorted(files)] for files in shards.values())
    return optim, model
