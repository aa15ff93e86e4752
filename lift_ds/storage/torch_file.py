"""Files of `torch.save`, opened without unpickling foreign code and without reading their tensors.

Such a file is a zip archive whose entries are not compressed: `NAME/data.pkl` is the pickle, `NAME/data/KEY` the bytes
of storage KEY, so that a tensor is a range of the file. Each entry has a CRC-32.
"""

from __future__ import annotations

import os
import pickle
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .file_diagnosis import explain
from .safe_pickle import ForbiddenNameError, SafeUnpickler
from .stored_tensor import Storage

LOCAL_HEADER = struct.Struct("<4s22xHH")
LOCAL_SIGNATURE = b"PK\x03\x04"
MAX_PICKLE_BYTES = 1 << 30


@dataclass(frozen=True)
class TorchFile:
    """An opened file.

    Args:
        path: Where it is.
        root: What was saved; its tensors are `StoredTensor`s.
        storages: Every storage that the pickle uses, by key.
    """

    path: Path
    root: Any
    storages: dict[str, Storage]


class Archive:
    """The entries of a torch file.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        """Reads the directory at the file's end.

        Raises:
            ValueError: It is no zip archive, has no pickle, or holds compressed data.
        """
        self.path = path
        try:
            with zipfile.ZipFile(path) as archive:
                self.entries = {entry.filename: entry for entry in archive.infolist()}
                name = next((name for name in self.entries if name.endswith("/data.pkl")), None)
                if name is None or self.entries[name].file_size > MAX_PICKLE_BYTES:
                    raise ValueError(f"{path}: no file of torch.save: it has no data.pkl, or one of more than 1 GiB.")
                self.folder = name.removesuffix("data.pkl")
                self.pickle = archive.read(name)
                order = f"{self.folder}byteorder"
                if order in self.entries and archive.read(order) != b"little":
                    raise ValueError(f"{path}: written on a big-endian machine; only little-endian files are read.")
        except zipfile.BadZipFile as error:
            raise ValueError(
                f"{path}: no whole file of torch.save ({error})."
                + (
                    explain(path)
                    or " It is truncated, damaged, or of torch before 1.6: copy it again, or take another checkpoint."
                )
            ) from error
        self.size = path.stat().st_size
        self.storages: dict[str, Storage] = {}

    def open_storage(self, key: str, dtype: torch.dtype, num_elements: int) -> Storage:
        """The place of a storage.

        Raises:
            ValueError: It is not there, is compressed, or has another size than the pickle says.
        """
        if key not in self.storages:
            name = f"{self.folder}data/{key}"
            entry = self.entries.get(name)
            if entry is None:
                raise ValueError(f"storage {key} is missing")
            expected = num_elements * dtype.itemsize
            if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != expected:
                raise ValueError(f"storage {key} has {entry.file_size} bytes instead of {expected}, or is compressed")
            offset = self.find_data(entry)
            self.storages[key] = Storage(self.path, offset, num_elements, dtype, entry.CRC)
        storage = self.storages[key]
        if (storage.dtype, storage.num_elements) != (dtype, num_elements):
            raise ValueError(f"storage {key} is used as {dtype} and as {storage.dtype}")
        return storage

    def find_data(self, entry: zipfile.ZipInfo) -> int:
        """Byte at which an entry's data begins, behind its own header.

        Raises:
            ValueError: There is no header, or the data ends behind the file.
        """
        with open(self.path, "rb") as file:
            head = os.pread(file.fileno(), LOCAL_HEADER.size, entry.header_offset)
        if len(head) != LOCAL_HEADER.size or not head.startswith(LOCAL_SIGNATURE):
            raise ValueError(f"no entry at byte {entry.header_offset}")
        _, name_length, extra_length = LOCAL_HEADER.unpack(head)
        offset = entry.header_offset + LOCAL_HEADER.size + int(name_length) + int(extra_length)
        if offset + entry.file_size > self.size:
            raise ValueError(f"{entry.filename} ends behind the end of the file")
        return int(offset)


def open_torch_file(path: Path) -> TorchFile:
    """Opens a file of `torch.save`.

    Raises:
        ValueError: It is missing, damaged, or its pickle names what no checkpoint needs; nothing was executed.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file.")
    archive = Archive(path)
    try:
        root = SafeUnpickler(archive.pickle, path, archive.open_storage).load()
    except ForbiddenNameError:
        raise
    except (pickle.UnpicklingError, ValueError, TypeError, KeyError, IndexError, AttributeError, EOFError) as error:
        raise ValueError(f"{path}: its pickle cannot be read: {error}. The file is damaged or foreign.") from error
    return TorchFile(path, root, archive.storages)
