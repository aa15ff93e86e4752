"""Checkpoints of runs with adapters: the base that they leave out, how much adapters count, and adapters alone.

A checkpoint of this package names its base by its hash (`storage/frozen_base.py`). One of Hugging Face's Trainer leaves
the base out too and says in PEFT's `adapter_config.json`, beside the shards, only where it was; Accelerate's holds it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from lift_ds.data.text.chat_format import write_format
from lift_ds.storage.flat_groups import FlatTensor, storages_of
from lift_ds.storage.frozen_base import base_tensors, read_base
from lift_ds.storage.model_files import ADAPTER_CONFIG
from lift_ds.storage.run_record import read_run
from lift_ds.storage.safetensors_folder import SafetensorsFolder
from lift_ds.storage.stored_tensor import find_damage
from lift_ds.text_files import load_json, read_text

from .adapters import PART, AdapterSettings
from .chat import checkpoint_format
from .inspection import open_whole
from .names import official_names

if TYPE_CHECKING:
    from peft import LoraConfig

PATTERNS = ("rank_pattern", "alpha_pattern")
ROOT_PREFIX = "model."  # of the module that the trainer hands to DeepSpeed


def own_base(own: Path, given: Path | None) -> dict[str, FlatTensor]:
    """The weights that a checkpoint of ours leaves to its base, as given or where it was; none where it holds all.

    Raises:
        ValueError: The base is not found, or not the one that the adapters were trained on.
    """
    record = read_base(own)
    if record is None:
        _refuse_base(given)
        return {}
    folder = given or Path(record.path)
    if not folder.is_dir():
        raise ValueError(f"{own} holds adapters only, and {folder}, their base, is not there; name it with --base.")
    return {ROOT_PREFIX + name: tensor for name, tensor in base_tensors(record, folder, str(own)).items()}


def strangers_base(weights: Mapping[str, FlatTensor], beside: Path, given: Path | None) -> Path | None:
    """The folder of the base under adapters that stand alone in a stranger's checkpoint; `None` for whole weights.

    It is the given one, or what PEFT's config names, which lies beside the shards.

    Raises:
        ValueError: The base is not found.
    """
    if not all(PART.fullmatch(name) for name in weights):
        _refuse_base(given)
        return None
    if given is not None:
        return given
    config = beside / ADAPTER_CONFIG
    named = load_json(read_text(config)).get("base_model_name_or_path") if config.is_file() else None
    if not named or not Path(named).is_dir():
        where = f"{named}, their base, is no folder here" if named else "nothing says which base they are of"
        raise ValueError(f"{beside} holds adapters only, and {where}; name the base's folder with --base.")
    return Path(named)


def _refuse_base(given: Path | None) -> None:
    if given is not None:
        raise ValueError(f"--base {given}: the checkpoint holds whole weights, not only adapters.")


def with_base(adapters: Mapping[str, FlatTensor], base: Path, prefix: str | None) -> dict[str, FlatTensor]:
    """Adapters of a stranger's checkpoint with their base, all by its names; `prefix` as in `official_names`.

    Raises:
        ValueError: The base has no safetensors, or a name does not have the given prefix.
    """
    renamed = official_names(list(adapters), prefix, None)
    return SafetensorsFolder(base).flat() | {renamed[name]: tensor for name, tensor in adapters.items()}


def adapter_settings(own: Path | None, folders: list[Path]) -> AdapterSettings | None:
    """Rank and scale of adapters: from our run, or from the first of PEFT's files in a stranger's folders.

    Raises:
        ValueError: The file asks for something that is not merged here.
    """
    if own is not None:
        lora = read_run(own)["run"]["lora"]
        return AdapterSettings(lora["rank"], lora["alpha"] / lora["rank"]) if lora["rank"] else None
    path = next((folder / ADAPTER_CONFIG for folder in folders if (folder / ADAPTER_CONFIG).is_file()), None)
    if path is None:
        return None
    from .peft_folder import read_adapter_config

    config = read_adapter_config(path)
    asked = [key for key in PATTERNS if config.get(key)]
    if asked:
        raise ValueError(
            f"{path}: {', '.join(asked)} is not merged here; write the adapters alone (zero_to_hf.py --lora split) and "
            "merge them with merge_lora.py."
        )
    rank, alpha = int(config["r"]), float(config["lora_alpha"])
    return AdapterSettings(rank, alpha / (rank**0.5 if config.get("use_rslora") else rank))


def convert_adapters(path: Path, output: Path) -> Path:
    """Writes the adapters of a checkpoint in PEFT's own format, from their float32 weights.

    Args:
        path: A run, a checkpoint or a folder with ZeRO shards; a stranger's has `adapter_config.json` beside these.
        output: Folder to create.

    Returns:
        The checkpoint.

    Raises:
        ValueError: It is not whole, holds no adapters, or nothing says what they are; or `output` is not empty.
        RuntimeError: The place cannot be written, or is full.
    """
    from lift_ds.models import lora

    zero, own = open_whole(path)
    parts = {name: tensor for name, tensor in zero.weights().items() if PART.fullmatch(name)}
    damage = find_damage(storages_of(parts)) if own is None else []
    if damage:
        raise ValueError(f"{zero.folder} is not whole: {'; '.join(damage)}.")
    names = official_names(list(parts), None if own is None else ROOT_PREFIX, None)
    _, adapters = lora.split_adapters({names[name]: tensor.load().float() for name, tensor in parts.items()})
    chat_format = None if own is None else checkpoint_format(own)

    def add_files(folder: Path) -> None:
        if chat_format is not None:
            write_format(folder, chat_format)

    lora.save_adapters(adapters, output, described_adapters(own, zero.folder.parent), add_files)
    return own or zero.folder


def described_adapters(own: Path | None, beside: Path) -> LoraConfig:
    """What PEFT is to know of a checkpoint's adapters.

    Raises:
        ValueError: A stranger's checkpoint does not say it.
    """
    from peft import LoraConfig, PeftConfig

    from lift_ds.models.lora import peft_config

    if own is None:
        path = beside / ADAPTER_CONFIG
        if not path.is_file():
            raise ValueError(f"{path} is missing; put the run's there, as PEFT's save_pretrained does.")
        config = PeftConfig.from_pretrained(str(beside))
        if not isinstance(config, LoraConfig):
            raise ValueError(f"{path}: peft_type={config.peft_type}; only LORA is written.")
        return config
    run = read_run(own)["run"]
    base = Path(run["model"]["path"])
    config = peft_config(**run["lora"])
    config.base_model_name_or_path = str(base.resolve() if base.is_dir() else base)
    return config
