"""Indexes of files, kept in a folder, so that a restart does not scan them again."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from dataclasses import asdict
from pathlib import Path

from .source import Chunk, SourceIndex, SourceSignature

INDEX_VERSION = 1


def index_path(cache_dir: Path, signature: SourceSignature) -> Path:
    """Where the index of a file is kept: one place for each path."""
    return cache_dir / f"{hashlib.sha256(signature.path.encode()).hexdigest()[:32]}.json"


def load_index(cache_dir: Path, name: str, signature: SourceSignature) -> SourceIndex | None:
    """A kept index, or `None` where there is none, it cannot be read, or the file has changed since.

    Args:
        cache_dir: Folder of the indexes; need not exist.
        name: The source's name, for its chunks.
        signature: Path, size and age of the file as it is now.
    """
    try:
        kept = json.loads(index_path(cache_dir, signature).read_text(encoding="utf-8"))
        if kept["version"] != INDEX_VERSION or kept["signature"] != asdict(signature):
            return None
        chunks = tuple(Chunk(name, *map(int, numbers)) for numbers in kept["chunks"])
        return SourceIndex(chunks, str(kept["content_hash"]))
    except (OSError, ValueError, KeyError, TypeError):  # torn, foreign or missing: the file is scanned
        return None


def save_index(cache_dir: Path, signature: SourceSignature, index: SourceIndex) -> None:
    """Keeps an index; a reader sees the old one or the new one, never a part.

    Raises:
        OSError: The folder cannot be written.
    """
    cache_dir.mkdir(parents=True, exist_ok=True)
    kept = {
        "version": INDEX_VERSION,
        "signature": asdict(signature),
        "content_hash": index.content_hash,
        "chunks": [[chunk.start, chunk.num_rows, chunk.first_line, chunk.num_bytes] for chunk in index.chunks],
    }
    with tempfile.NamedTemporaryFile("w", dir=cache_dir, suffix=".part", delete=False, encoding="utf-8") as file:
        json.dump(kept, file)
    os.replace(file.name, index_path(cache_dir, signature))
