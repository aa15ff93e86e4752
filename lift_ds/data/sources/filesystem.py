"""Bytes of files on this machine and, through fsspec, of remote ones: retried, and read by exact ranges."""

from __future__ import annotations

import io
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any, TypeVar

import aiohttp
from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs
from fsspec.spec import AbstractBufferedFile

from lift_ds.storage.file_diagnosis import HEAD_BYTES, diagnose

from .source import Source, SourceSignature

Result = TypeVar("Result")
REMOTE_MARK = "://"
SCAN_BYTES = 4 << 20
FINAL_ERRORS = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
SIGNATURE_KEYS = ("mtime", "created", "ETag", "etag", "LastModified", "last_modified", "Last-Modified", "blob_id")
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Retry:
    """How often a remote read is tried, and how long to wait: `delay_seconds`, doubled after every try."""

    tries: int = 5
    delay_seconds: float = 1.0

    def call(self, action: Callable[[], Result], what: str) -> Result:
        """The result of `action`, tried again where the connection failed.

        Raises:
            ConnectionError: It failed every time.
            FileNotFoundError: There is no such file.
            ValueError: It failed for another reason, as missing credentials; at once.
        """
        for number in range(1, self.tries + 1):
            try:
                return action()
            except Exception as error:  # file systems have their own types
                reason = f"{type(error).__name__}: {error}"
                if not _is_transient(error):
                    if isinstance(error, (FileNotFoundError, ValueError)):
                        raise
                    raise ValueError(f"{what}: {reason}. Check the address and your credentials.") from error
                if number == self.tries:
                    raise ConnectionError(
                        f"{what}: no answer after {self.tries} tries; the last error was {reason}. Check the network "
                        "and the address and start again (training: --resume auto), or name a copy on a local disk."
                    ) from error
            wait = self.delay_seconds * 2 ** (number - 1)
            logger.warning("%s: %s; try %d of %d in %.1f s", what, reason, number + 1, self.tries, wait)
            time.sleep(wait)
        raise ValueError(f"Retry.tries={self.tries}: at least 1")


def _is_transient(error: BaseException) -> bool:
    """Whether trying again may help: the connection broke or the server is busy, as told by the first cause."""
    if isinstance(error, ConnectionError):
        return True
    while error.__cause__ is not None:
        error = error.__cause__
    status = getattr(error, "status", None) or getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(status, int):
        return status == 429 or status >= 500
    return isinstance(error, (OSError, aiohttp.ClientError)) and not isinstance(error, FINAL_ERRORS)


def is_remote(path: str) -> bool:
    """Whether a path is read through fsspec."""
    return REMOTE_MARK in path


def open_filesystem(path: str) -> tuple[AbstractFileSystem, str]:
    """The fsspec file system of a remote path, and the path within it.

    Raises:
        ValueError: The protocol is unknown, or its package is not installed.
    """
    try:
        return url_to_fs(path)
    except (ImportError, ValueError) as error:
        protocol = path.partition(REMOTE_MARK)[0]
        raise ValueError(
            f"data.path: {path}: {protocol}:// cannot be opened: {error}. Install the file system's package "
            "(s3fs for s3, gcsfs for gs), or copy the data to a local disk."
        ) from error


class RemoteFile(AbstractBufferedFile):
    """A remote file whose every read is one range request, so that no byte is fetched that nobody asked for."""

    def __init__(self, path: str, retry: Retry, size: int) -> None:
        self.retry, self.full_path = retry, path
        filesystem, inner = open_filesystem(path)
        super().__init__(filesystem, inner, size=size, cache_type="none")
        kind = type(filesystem)
        opens_to_read = not kind.async_impl and kind.cat_file is AbstractFileSystem.cat_file  # as hf:// does
        self.options = {"cache_type": "none"} if opens_to_read else {}  # its default reads 5 MB ahead

    def _fetch_range(self, start: int, end: int) -> bytes:
        """A range, as far as there is one.

        Raises:
            ConnectionError: The server did not answer, or sent less than it promised, every time.
            ValueError: It sends whole files only.
        """
        return self.retry.call(lambda: self._fetch(start, min(end, self.size)), self.full_path)

    def _fetch(self, start: int, end: int) -> bytes:
        data, count = bytes(self.fs.cat_file(self.path, start=start, end=end, **self.options)), end - start
        if len(data) > count:
            raise ValueError(
                f"{self.full_path}: the server sends whole files only (no range requests); download the file."
            )
        if len(data) < count:
            raise ConnectionError(f"{len(data)} of {count} bytes came")
        return data


class DataFile:
    """A file by its path: local, or remote where it has `://`."""

    def __init__(self, path: str, retry: Retry) -> None:
        self.path, self.retry = path, retry

    @cached_property
    def info(self) -> dict[str, Any]:
        """What a remote file system knows of the file."""
        filesystem, inner = open_filesystem(self.path)
        return dict(self.retry.call(lambda: filesystem.info(inner), self.path))

    @property
    def size(self) -> int:
        """Bytes.

        Raises:
            ValueError: The server does not tell.
        """
        if not is_remote(self.path):
            return Path(self.path).stat().st_size
        if self.info.get("size") is None:
            raise ValueError(f"{self.path}: the server does not tell the file's size; download the file.")
        return int(self.info["size"])

    def open(self, is_sequential: bool = False) -> IO[bytes]:
        """Opens for reading; `is_sequential` fetches ahead, for a pass over all of a remote file."""
        if not is_remote(self.path):
            return open(self.path, "rb")
        file: Any = RemoteFile(self.path, self.retry, self.size)
        return io.BufferedReader(file, SCAN_BYTES) if is_sequential else file

    def diagnosis(self) -> str | None:
        """What the file is, where its first bytes say that it is not what its name promises; for error messages."""
        with self.open() as file:
            return diagnose(file.read(HEAD_BYTES), self.path)

    def signature(self) -> SourceSignature | None:
        """Path with size and modification time, or the remote file system's own marks; `None` where it has none."""
        if not is_remote(self.path):
            stat = Path(self.path).stat()
            marks = {"size": str(stat.st_size), "mtime_ns": str(stat.st_mtime_ns)}
            return SourceSignature(str(Path(self.path).resolve()), marks)
        marks = {key: str(self.info[key]) for key in SIGNATURE_KEYS if self.info.get(key)}
        return SourceSignature(self.path, {"size": str(self.size), **marks}) if marks else None


class FileSource(Source):
    """A source that is one file."""

    def __init__(self, name: str, retry: Retry) -> None:
        super().__init__(name)
        self.file = DataFile(name, retry)

    def signature(self) -> SourceSignature | None:
        """The file's."""
        return self.file.signature()
