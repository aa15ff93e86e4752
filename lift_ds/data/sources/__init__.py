"""Where rows come from: files on this machine or behind a URL, hub data sets, built-in tasks."""

from .builtin import BUILTIN_PREFIX, Builtin
from .filesystem import Retry
from .listing import FILE_KINDS, open_groups, open_sources
from .manifest import FoundSource, Group, Manifest, SourceGroup, check_same_files
from .source import Row

__all__ = [
    "BUILTIN_PREFIX",
    "FILE_KINDS",
    "Builtin",
    "FoundSource",
    "Group",
    "Manifest",
    "Retry",
    "Row",
    "SourceGroup",
    "check_same_files",
    "open_groups",
    "open_sources",
]
