"""Pre-tokenised rows as parquet files, and `prepared.json` beside them."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lift_ds.data.sources.folders import PREPARED_NAME
from lift_ds.data.text.chat import Tokens

GROUP_ROWS = 1000


def _lists_of(name: str, kind: pa.DataType) -> pa.Field:
    """A column of lists without missing values, which are decoded in half the time."""
    return pa.field(name, pa.list_(pa.field("element", kind, nullable=False)), nullable=False)


SCHEMA = pa.schema(
    [
        _lists_of("input_ids", pa.int32()),
        _lists_of("target_mask", pa.bool_()),
        _lists_of("filler_mask", pa.bool_()),
    ]
)


def check_target(folder: Path) -> None:
    """Checks that a folder can be written.

    Raises:
        ValueError: It exists and is not an empty folder.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"--write {folder}: exists and is not an empty folder; name a new one, or remove it.")


class TokenShardWriter:
    """Writes rows in order; the folder appears when `publish` is called, or not at all.

    Each source begins a new file, `source-00-00000.parquet`, so that a mixture can still name them apart.
    """

    def __init__(self, folder: Path, shard_bytes: int) -> None:
        check_target(folder)
        self.folder, self.shard_bytes = folder, shard_bytes
        folder.parent.mkdir(parents=True, exist_ok=True)
        self.temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        self.temporary.chmod(0o755)  # mkdtemp's are for their owner only
        self.shards: list[dict[str, Any]] = []
        self._rows: list[Tokens] = []
        self._group = -1
        self._sink: pa.NativeFile | None = None
        self._writer: pq.ParquetWriter | None = None

    def __enter__(self) -> TokenShardWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            self._close_shard()
        finally:
            shutil.rmtree(self.temporary, ignore_errors=True)

    def add(self, tokens: Tokens, group: int) -> None:
        """Adds a row of source number `group`; numbers do not fall."""
        if group != self._group:
            self._close_shard()
            self._group = group
        self._rows.append(tokens)
        if len(self._rows) == GROUP_ROWS:
            self._write_rows()

    def _write_rows(self) -> None:
        if not self._rows:
            return
        if self._writer is None:
            number = sum(shard["source"] == self._group for shard in self.shards)
            name = f"source-{self._group:02d}-{number:05d}.parquet"
            self.shards.append({"name": name, "source": self._group, "rows": 0})
            self._sink = pa.OSFile(str(self.temporary / name), "wb")
            self._writer = pq.ParquetWriter(self._sink, SCHEMA, compression="zstd", data_page_version="2.0")
        self._writer.write_table(_table_of(self._rows))
        self.shards[-1]["rows"] += len(self._rows)
        self._rows = []
        assert self._sink is not None
        if self._sink.tell() >= self.shard_bytes:
            self._close_shard()

    def _close_shard(self) -> None:
        self._write_rows()
        if self._writer is not None and self._sink is not None:
            self._writer.close()
            self._sink.close()
        self._writer = self._sink = None

    def publish(self, description: dict[str, Any]) -> None:
        """Writes `prepared.json`, the description with the list of shards, and gives the folder its name."""
        self._close_shard()
        text = json.dumps(description | {"shards": self.shards}, indent=2, ensure_ascii=False)
        (self.temporary / PREPARED_NAME).write_text(text + "\n", encoding="utf-8", errors="backslashreplace")
        if self.folder.exists():
            self.folder.rmdir()
        self.temporary.rename(self.folder)


def _table_of(rows: list[Tokens]) -> pa.Table:
    offsets = pa.array(np.cumsum([0, *(len(row.ids) for row in rows)]), pa.int32())
    flat = [
        np.concatenate([row.ids for row in rows]).astype(np.int32),
        np.concatenate([row.response_mask for row in rows]),
        np.concatenate([row.filler_mask for row in rows]),
    ]
    columns = [
        pa.ListArray.from_arrays(offsets, pa.array(values), type=field.type)
        for values, field in zip(flat, SCHEMA, strict=True)
    ]
    return pa.table(columns, schema=SCHEMA)
