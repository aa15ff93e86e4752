"""What a file is that is not what its name says: a git-lfs pointer, an error page, an empty or unfinished download.

Asked only where a file's format was refused, so that it costs nothing otherwise.
"""

from __future__ import annotations

import re
from pathlib import Path

HEAD_BYTES = 512
LFS_MARK = b"version https://git-lfs.github.com/spec/"
LFS_SIZE = re.compile(rb"^size (\d+)\s*$", re.MULTILINE)
PAGE_MARKS = (b"<!doctype html", b"<html", b"<head", b"<body", b"<?xml", b"<error>")
REFUSALS = frozenset(  # what servers send in place of a file, as text of one line
    "entry not found|not found|404: not found|page not found|access denied|forbidden|unauthorized|repository not found|"
    "invalid username or password|internal server error|bad gateway".split("|")
)
AGAIN = "download it again"
UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
MAGIC: dict[bytes, tuple[str, tuple[str, ...]]] = {  # what it is, and the endings that say so
    b"\x1f\x8b": ("is compressed with gzip; decompress it, or give its name the ending .gz", (".gz",)),
    b"\x28\xb5\x2f\xfd": ("is compressed with zstd; decompress it, or give its name the ending .zst", (".zst",)),
    b"BZh": ("is compressed with bzip2; decompress it", ()),
    b"\xfd7zXZ\x00": ("is compressed with xz; decompress it", ()),
    b"PK\x03\x04": ("is a zip archive; unpack it", (".bin", ".pt", ".pth", ".ckpt")),
    b"PAR1": ("is a parquet file; name it .parquet", (".parquet",)),
    b"ARROW1": ("is an Arrow file; name it .arrow", (".arrow", ".feather")),
    b"GGUF": ("is a GGUF file; name it .gguf", (".gguf",)),
    b"%PDF": ("is a PDF", ()),
    b"\x89HDF": ("is an HDF5 file", ()),
}


def diagnose(head: bytes, name: str = "") -> str | None:
    """What a file is, and what to do, as the rest of a sentence; `None` where its bytes do not tell.

    Args:
        head: Its first `HEAD_BYTES` bytes, or all of them.
        name: Its name: what that promises is not told.
    """
    text = head.strip().lower()
    if not head:
        return f"is empty; {AGAIN}"
    if head.startswith(LFS_MARK):
        size = LFS_SIZE.search(head)
        missing = f"{int(size[1]):,} bytes are missing" if size else "its content is missing"
        return f"is a git-lfs pointer, {missing}; run `git lfs pull` where it was cloned, or {AGAIN}"
    if text.startswith(PAGE_MARKS):
        return f"is an HTML or XML page, as servers send it in place of a file; {AGAIN}, and look at the address"
    words = head.strip().decode("ascii", "replace")
    if words.rstrip(".").lower() in REFUSALS:
        return f"is a server's refusal ({words!r}); {AGAIN}, and look at the address and your access"
    if not head.strip(b"\x00"):
        return f"begins with {len(head)} zero bytes, as an interrupted download or a full disk leaves them; {AGAIN}"
    if head.startswith(UTF16_MARKS) or _is_wide(head):
        return "is text in UTF-16; save it as UTF-8"
    kind, endings = next((known for mark, known in MAGIC.items() if head.startswith(mark)), (None, ()))
    return None if name.lower().partition("?")[0].endswith(endings) else kind


def _is_wide(head: bytes) -> bool:
    """Whether bytes without a mark look like text in UTF-16: every second byte is zero at first, and no other."""
    even, odd = head[:16:2], head[1:16:2]
    return len(head) >= 16 and ((not any(even) and all(odd)) or (not any(odd) and all(even)))


def explain(path: Path) -> str:
    """What a file on this machine is, as a sentence behind a message; empty where its first bytes do not tell."""
    try:
        with open(path, "rb") as file:
            found = diagnose(file.read(HEAD_BYTES), path.name)
    except OSError:
        return ""
    return "" if found is None else f" {path.name} {found}."


def refuse_foreign(path: Path) -> None:
    """Checks the first bytes of a small file that a library would read without a word, whatever is in it.

    Raises:
        ValueError: It is a git-lfs pointer, a page, or another thing that `diagnose` knows.
    """
    found = explain(path) if path.is_file() else ""
    if found:
        raise ValueError(f"{path.parent}:{found}")
