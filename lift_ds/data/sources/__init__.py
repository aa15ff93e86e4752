"""Where rows come from: files on this machine or behind a URL, hub data sets, built-in tasks."""

from .builtin import BUILTIN_PREFIX, Builtin
from .filesystem import Retry
from .listing import FILE_KINDS, open_groups, open_sources
from .manifest import Group, Manifest, SourceGroup
from .source import Row

__all__ = [
    "BUILTIN_PREFIX",
    "FILE_KINDS",
    "Builtin",
    "Group",
    "Manifest",
    "Retry",
    "Row",
    "SourceGroup",
    "open_groups",
    "open_sources",
]
