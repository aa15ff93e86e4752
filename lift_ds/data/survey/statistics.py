"""What all rows of a data set amount to: lengths, targets, coverage, duplicates, padding and packing."""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from lift_ds.data.order.dealing import BatchRule
from lift_ds.data.order.stream import Packer
from lift_ds.data.reader import Skipped
from lift_ds.data.text.chat import Tokens

from .rows import SurveyedRow

PERCENTILES = (5, 25, 50, 75, 95, 99)
COVERED_SHARES = (0.9, 0.99)
HASH_BYTES = 8
SHOWN_ROWS = 2  # of each source


@dataclass(frozen=True)
class SurveyReport:
    """What was found.

    Args:
        numbers: Everything that the JSON report holds, except locations of duplicates.
        duplicate_ids: int64 sample ids of each group of equal rows, largest groups first.
        first_rows: The first good documents of each source.
    """

    numbers: dict[str, Any]
    duplicate_ids: list[np.ndarray]
    first_rows: list[list[Tokens]]


class TokenStatistics:
    """Counts rows as they come.

    Args:
        num_checked: How many first rows of a source a run looks at before it begins.
    """

    def __init__(self, num_ids: int, capacity: int, group_names: list[str], num_checked: int) -> None:
        self.num_ids, self.capacity, self.group_names = num_ids, capacity, group_names
        self.lengths, self.target_lengths = array("q"), array("q")
        self.sample_ids, self.hashes = array("q"), array("Q")
        self.token_counts = np.zeros(num_ids, dtype=np.int64)
        self.target_counts = np.zeros(num_ids, dtype=np.int64)
        self.source_counts = np.zeros((len(group_names), 3), dtype=np.int64)  # good, bad, too long
        self.num_checked, self.skipped_first = num_checked, [0] * len(group_names)
        self.unused = [Counter[str]() for _ in group_names]
        self.packer: Packer[None] = Packer(capacity)
        self.num_packs = 0
        self.first_rows = [list[Tokens]() for _ in group_names]
        self.problems: list[dict[str, str]] = []

    def add(self, row: SurveyedRow) -> None:
        """Counts one row."""
        kinds = {None: 0, Skipped.BAD: 1, Skipped.LONG: 2}
        is_first = self.source_counts[row.group].sum() < self.num_checked
        self.skipped_first[row.group] += is_first and row.reason is not None
        self.source_counts[row.group, kinds[row.reason]] += 1
        self.unused[row.group].update(row.unused)
        if row.reason is not None:
            self.problems.append({"where": row.where, "kind": row.reason.value, "problem": row.problem})
        if row.tokens is None:
            return
        ids, targets = row.tokens.ids, row.tokens.ids[row.tokens.response_mask]
        self.lengths.append(len(ids))
        self.target_lengths.append(len(targets))
        self.sample_ids.append(row.sample_id)
        digest = hashlib.blake2b(ids.astype("<i8").tobytes(), digest_size=HASH_BYTES).digest()
        self.hashes.append(int.from_bytes(digest, "little"))
        np.add.at(self.token_counts, ids, 1)
        np.add.at(self.target_counts, targets, 1)
        self.num_packs += self.packer.add(None, len(ids)) is not None
        if len(self.first_rows[row.group]) < SHOWN_ROWS:
            self.first_rows[row.group].append(row.tokens)

    def report(self, global_batch: int, rule: BatchRule) -> SurveyReport:
        """Everything that was counted; the batches are for the padding of `data.packing=none`."""
        lengths, targets = np.array(self.lengths, dtype=np.int64), np.array(self.target_lengths, dtype=np.int64)
        good, bad, long = self.source_counts.sum(axis=0).tolist()
        num_packs = self.num_packs + len(self.packer.open)
        num_tokens = int(lengths.sum())
        duplicates = find_duplicates(np.array(self.hashes, dtype=np.uint64), np.array(self.sample_ids, dtype=np.int64))
        numbers = {
            "rows": {"all": good + bad + long, "good": good, "bad": bad, "too_long": long},
            "sources": [
                {"name": name, **dict(zip(("good", "bad", "too_long"), counts, strict=True))}
                | {"skipped_of_first": skipped / max(min(sum(counts), self.num_checked), 1), "unused": dict(unused)}
                for name, counts, skipped, unused in zip(
                    self.group_names, self.source_counts.tolist(), self.skipped_first, self.unused, strict=True
                )
            ],
            "lengths": {
                "row": describe_lengths(lengths),
                "prompt": describe_lengths(lengths - targets),
                "target": describe_lengths(targets),
            },
            "tokens": {
                "all": num_tokens,
                "targets": int(targets.sum()),
                "target_share": _ratio(targets.sum(), num_tokens),
            },
            "coverage": {
                "ids": self.num_ids,
                "used": int(np.count_nonzero(self.token_counts)),
                "used_in_targets": int(np.count_nonzero(self.target_counts)),
                "ids_for_target_share": {
                    f"{share}": ids_for_share(self.target_counts, share) for share in COVERED_SHARES
                },
            },
            "duplicates": {"groups": len(duplicates), "surplus_rows": sum(len(ids) - 1 for ids in duplicates)},
            "padding": {
                "global_batch": global_batch,
                "micro_batch": rule.max_rows,
                "micro_batch_tokens": rule.max_tokens,
                "waste": padding_waste(lengths, global_batch, rule),
            },
            "packing": {
                "pack_length": self.capacity,
                "packs": num_packs,
                "fill": _ratio(num_tokens, num_packs * self.capacity),
            },
            "problems": self.problems,
        }
        return SurveyReport(numbers, duplicates, self.first_rows)


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole else 0.0


def describe_lengths(lengths: np.ndarray) -> dict[str, Any]:
    """Smallest, largest, mean and percentiles (the length of a row that exists) and rows by power of two.

    A histogram's key k counts lengths from 2^k to 2^(k+1) - 1; "0" has 0 and 1.
    """
    if not len(lengths):
        return {}
    percentiles = np.percentile(lengths, PERCENTILES, method="inverted_cdf").astype(int).tolist()
    exponents, counts = np.unique(np.frexp(np.maximum(lengths, 1))[1] - 1, return_counts=True)
    return {
        "min": int(lengths.min()),
        "max": int(lengths.max()),
        "mean": float(lengths.mean()),
        "percentiles": {str(percentile): value for percentile, value in zip(PERCENTILES, percentiles, strict=True)},
        "histogram": {
            str(exponent): count for exponent, count in zip(exponents.tolist(), counts.tolist(), strict=True)
        },
    }


def ids_for_share(counts: np.ndarray, share: float) -> int:
    """The least number of ids that make at least this share of all occurrences, the commonest first."""
    cumulated = np.cumsum(np.sort(counts)[::-1])
    return int(np.searchsorted(cumulated, share * cumulated[-1])) + 1 if cumulated[-1] else 0


def padding_waste(lengths: np.ndarray, global_batch: int, rule: BatchRule) -> float:
    """Share of padding among the tokens of all forwards, with `data.packing=none` on one rank.

    As the loader does, each step's rows (`global_batch` of them, here in file order) are cut into micro-batches, each
    padded to its longest row: waste = 1 - sum(lengths) / sum(rows x longest).
    """
    padded = 0
    for start in range(0, len(lengths), global_batch):
        step = lengths[start : start + global_batch].tolist()
        parts = rule.cut([rule.size([length]) for length in step], 1)[0]
        padded += sum(len(part) * max(step[place] for place in part) for part in parts)
    return 1.0 - _ratio(lengths.sum(), padded) if padded else 0.0


def find_duplicates(hashes: np.ndarray, sample_ids: np.ndarray) -> list[np.ndarray]:
    """Sample ids of rows with equal hashes, in groups of two or more: the largest first, then by their first row."""
    order = np.argsort(hashes, kind="stable")
    borders = np.array([0, *(np.flatnonzero(np.diff(hashes[order])) + 1), len(order)])
    repeated = np.flatnonzero(np.diff(borders) > 1)
    groups = [sample_ids[order[borders[group] : borders[group + 1]]] for group in repeated]
    return sorted(groups, key=lambda ids: (-len(ids), ids[0]))
