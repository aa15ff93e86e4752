"""Hub data sets, `hub:owner/name[:config][@split]`: their own files, or what `datasets` makes of them.

Where the files are parquet, JSON or arrow, they are read as any other file is: by chunks, with an exact position. Any
other format is streamed once through `datasets` into parquet files, in the cache folder of `datasets`.
"""

from __future__ import annotations

import hashlib
import logging
import tempfile
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock

from .filesystem import Retry
from .folders import choose_split
from .source import locate_errors

if TYPE_CHECKING:
    from datasets import DatasetBuilder

HUB_PREFIX = "hub:"
DEFAULT_SPLIT = "train"
PLAIN_BUILDERS = ("parquet", "json", "arrow")
RESHAPING_OPTIONS = ("field", "columns", "filters")  # what makes a builder's rows differ from its files'
GROUP_ROWS = 1000
SHARD_ROWS = 100_000
HUB_TRIES = 2  # the hub's client tries each request six times itself
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class HubName:
    """A data set, one of its configs (`None`: the only one) and a split."""

    path: str
    config: str | None
    split: str


def parse_hub_name(text: str) -> HubName:
    """Reads `hub:owner/name[:config][@split]`; a local folder may stand for owner/name.

    Raises:
        ValueError: A part is empty.
    """
    rest, has_split, split = text.removeprefix(HUB_PREFIX).partition("@")
    path, has_config, config = rest.partition(":")
    if not path or (has_split and not split) or (has_config and not config):
        raise ValueError(f"data.path={text!r}: must be {HUB_PREFIX}owner/name[:config][@split].")
    return HubName(path, config or None, split or DEFAULT_SPLIT)


def resolve_hub(text: str, retry: Retry, endings: set[str], cache_dir: Path | None = None) -> list[str]:
    """The files of a data set's split: its own, or what it was streamed into (default: in the cache of `datasets`).

    Raises:
        ValueError: The data set, config or split does not exist, or its files cannot be read.
        ConnectionError: The hub does not answer.
    """
    from datasets import config as datasets_config  # slow to import
    from datasets import load_dataset_builder

    name = parse_hub_name(text)
    retry = replace(retry, tries=min(retry.tries, HUB_TRIES))
    try:
        builder = retry.call(lambda: load_dataset_builder(name.path, name.config), text)
    except (ValueError, OSError) as error:
        if isinstance(error, ConnectionError):
            raise
        raise ValueError(
            f"data.path={text!r}: {error} Check the name, the config and your access (`hf auth login`)."
        ) from error
    files = {str(split): list(map(str, paths)) for split, paths in (builder.config.data_files or {}).items()}
    splits = list(files) or list(builder.info.splits or {})
    choose_split(splits, name.split, text, "Name one, as hub:owner/name@split")
    if _is_plain(builder) and all(file.lower().endswith(tuple(endings)) for file in files[name.split]):
        return files[name.split]
    key = hashlib.sha256(f"{name} {builder.hash}".encode()).hexdigest()[:32]
    folder = (cache_dir or Path(datasets_config.HF_DATASETS_CACHE) / "lift_ds") / key
    return _stream_once(builder, text, name.split, folder)


def _is_plain(builder: DatasetBuilder) -> bool:
    """Whether a builder's rows are those of its files, which this package reads itself."""
    kind = type(builder).__module__.rpartition(".")[2]
    has_options = any(getattr(builder.config, option, None) is not None for option in RESHAPING_OPTIONS)
    return kind in PLAIN_BUILDERS and not has_options


def _stream_once(builder: DatasetBuilder, text: str, split: str, folder: Path) -> list[str]:
    """Parquet files of a split, written by the first process that asks; the others wait for it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.is_dir():
            logger.warning("%s: not parquet, JSON or arrow; it is streamed once into %s", text, folder)
            beside = tempfile.TemporaryDirectory(
                prefix=f"{folder.name}.", dir=folder.parent, ignore_cleanup_errors=True
            )
            with beside as part:
                with locate_errors(text, "a hub data set"):
                    _write_shards(builder, split, Path(part))
                Path(part).rename(folder)
    return sorted(str(file) for file in folder.glob("*.parquet"))


def _write_shards(builder: DatasetBuilder, split: str, folder: Path) -> None:
    batches = builder.as_streaming_dataset(split).with_format("arrow").iter(batch_size=GROUP_ROWS)
    schema: pa.Schema | None = None
    for number, first in enumerate(batches):
        schema = schema or first.schema
        with pq.ParquetWriter(folder / f"part-{number:05d}.parquet", schema) as writer:
            for table in chain([first], islice(batches, SHARD_ROWS // GROUP_ROWS - 1)):
                writer.write_table(table.cast(schema))
