"""A look at all rows before a run: which are bad, how long they are, what they hold, and their tokens as shards."""

from .rows import survey
from .statistics import SurveyReport, TokenStatistics
from .token_shards import TokenShardWriter

__all__ = ["SurveyReport", "TokenShardWriter", "TokenStatistics", "survey"]
