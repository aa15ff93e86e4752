"""Measurements of `data.py` on files: pre-tokenised rows, packs, resume and memory."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lift_ds.data.order.dealing import BatchRule
from lift_ds.data.order.lanes import Lanes
from lift_ds.data.order.loader import StepLoader
from lift_ds.data.order.stream import PackStream
from lift_ds.data.reader import RowReader
from lift_ds.data.sources import Manifest, open_sources
from lift_ds.data.text.chat import ChatEncoder
from lift_ds.objectives import objective_settings
from lift_ds.training.draws import make_noise_rule

STEP_ROWS = 128
ROWS_PER_GROUP = 1000
PACK_LENGTH = 4096
NUM_LANES = 64
SCHEMA = pa.schema({"input_ids": pa.list_(pa.int32()), "target_mask": pa.list_(pa.bool_())})
Figures = dict[str, float]


def write_rows(path: Path, lengths: np.ndarray, seed: int, num_ids: int) -> None:
    """A parquet file of random tokens; the first fifth of each row is prompt."""
    generator = np.random.default_rng(seed)
    with pq.ParquetWriter(path, SCHEMA, compression="none") as writer:
        for start in range(0, len(lengths), ROWS_PER_GROUP):
            sizes = lengths[start : start + ROWS_PER_GROUP]
            offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)
            ids = generator.integers(3, num_ids, offsets[-1], dtype=np.int32)
            position = np.arange(offsets[-1]) - np.repeat(offsets[:-1], sizes)
            targets = position >= np.repeat(sizes // 5, sizes)
            columns = [pa.ListArray.from_arrays(offsets, values) for values in (ids, targets)]
            writer.write_table(pa.Table.from_arrays(columns, schema=SCHEMA))


def open_steps(
    files: list[Path], encoder: ChatEncoder, capacity: int | None, cache: Path | None = None, rows: int = STEP_ROWS
) -> StepLoader:
    """The steps of a single rank over pre-tokenised files."""
    manifest = Manifest(open_sources([str(file) for file in files], 0, "train", 1), cache)
    manifest.save_indexes()
    lanes = Lanes(manifest, set(), NUM_LANES, window_chunks=4, seed=0)
    stream = PackStream(lanes, RowReader(manifest, encoder, None), capacity)
    return StepLoader(stream, make_noise_rule(objective_settings(), 0, rows), rows, BatchRule(16), 0, 1, pad_token_id=0)


def steps_of(loader: StepLoader) -> Iterator[Any]:
    """Steps made in this thread."""
    state = loader.state
    while True:
        batch = loader.make_step(loader.step, state)
        loader.step, state = loader.step + 1, batch.state
        yield batch


def loader_over_datasets(encoder: ChatEncoder, pairs: int, is_quick: bool) -> Figures:
    """Rows a second of whole steps over those of `datasets` streaming in a StatefulDataLoader, both padded."""
    import torch
    from datasets import load_dataset
    from torch.nn.utils.rnn import pad_sequence
    from torchdata.stateful_dataloader import StatefulDataLoader

    def pad(rows: list[dict[str, list[int]]]) -> list[torch.Tensor]:
        return [pad_sequence([torch.tensor(row[name]) for row in rows], batch_first=True) for name in SCHEMA.names]

    num_steps, num_pairs = (4, 2) if is_quick else (40, pairs)
    num_rows = (1 + num_pairs) * num_steps * STEP_ROWS
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.parquet"
        lengths = np.random.default_rng(1).lognormal(np.log(300), 0.6, num_rows)
        write_rows(path, lengths.clip(8, PACK_LENGTH).astype(int), 1, encoder.num_ids)
        streamed = load_dataset("parquet", data_files=str(path), split="train", streaming=True)
        baseline = iter(StatefulDataLoader(streamed, batch_size=STEP_ROWS, collate_fn=pad))
        ours = steps_of(open_steps([path], encoder, None))
        seconds: dict[str, list[float]] = {"datasets": [], "ours": []}
        for index in range(1 + num_pairs):
            for name, batches in (("datasets", baseline), ("ours", ours)):
                began = time.perf_counter()
                for _ in range(num_steps if index else 1):
                    next(batches)
                if index:
                    seconds[name].append((time.perf_counter() - began) / num_steps)
    ratio = statistics.median(seconds["datasets"]) / statistics.median(seconds["ours"])
    rates = {name: STEP_ROWS / statistics.median(times) for name, times in seconds.items()}
    print(f"pre-tokenised rows a second: datasets {rates['datasets']:,.0f}, ours {rates['ours']:,.0f}: {ratio:.1f} x")
    return {"loader_over_datasets": ratio}


def packs_and_state(encoder: ChatEncoder, is_quick: bool) -> Figures:
    """Fill of packs on a log-normal mix (median 400, sigma 0.8), and the size of a lane's state among them."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.parquet"
        lengths = np.random.default_rng(2).lognormal(np.log(400), 0.8, 4000 if is_quick else 40_000)
        write_rows(path, lengths.clip(8, PACK_LENGTH).astype(int), 2, encoder.num_ids)
        loader = open_steps([path], encoder, PACK_LENGTH)
        batches = [next(steps) for steps in [steps_of(loader)] for _ in range(4 if is_quick else 30)]
    fill = sum(batch.num_tokens for batch in batches) / (len(batches) * STEP_ROWS * PACK_LENGTH)
    sizes = [len(json.dumps(lane)) for lane in batches[-1].state["lanes"].values()]
    print(f"packs of {PACK_LENGTH:,}: fill {fill:.3f}; state of a lane: mean {statistics.mean(sizes):,.0f} bytes")
    return {"packing_fill": fill, "state_bytes_per_lane": statistics.mean(sizes), "state_bytes_largest": max(sizes)}


def resume(encoder: ChatEncoder, is_quick: bool) -> Figures:
    """Seconds from a saved position in the middle of a parquet set to the first step; indexes are kept."""
    num_files, rows = (2, 4000) if is_quick else (8, 208_000)
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"part-{number}.parquet" for number in range(num_files)]
        for number, path in enumerate(files):
            write_rows(path, np.full(rows, 500), number, encoder.num_ids)
        size = sum(path.stat().st_size for path in files)
        cache = Path(folder) / "index"
        first = open_steps(files, encoder, PACK_LENGTH, cache)
        position = first.stream.state()
        middle = first.stream.lanes.orders[0].num_windows // 2
        for lane in position["lanes"].values():  # as if half of the epoch had been read
            lane["cursors"] = [[middle, 3]]
        began = time.perf_counter()
        again = open_steps(files, encoder, PACK_LENGTH, cache, rows=16)
        again.stream.load_state(position)
        opened = time.perf_counter() - began
        again.make_step(0, again.stream.state())
        seconds = time.perf_counter() - began
    print(f"resume in the middle of {size / 1e9:.2f} GB: {opened:.2f} s to open, {seconds:.2f} s to the first 16 packs")
    return {"resume_seconds": seconds, "resume_gb": size / 1e9}


def memory(encoder: ChatEncoder, is_quick: bool) -> Figures:
    """Growth of resident memory from a tenth of many short rows to their end."""
    num_rows = 100_000 if is_quick else 10_000_000
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.parquet"
        write_rows(path, np.full(num_rows, 8), 3, encoder.num_ids)
        loader = open_steps([path], encoder, None, rows=4096)
        batches = steps_of(loader)
        num_steps = num_rows // 4096
        levels = []
        for step in range(num_steps):
            next(batches)
            if step == num_steps // 10 or step == num_steps - 1:
                levels.append(resident_mib())
    print(f"resident memory over {num_rows:,} rows: {levels[0]:,.0f} MiB at a tenth, {levels[-1]:,.0f} MiB at the end")
    return {"memory_mib_at_a_tenth": levels[0], "memory_growth_mib": levels[-1] - levels[0]}


def resident_mib() -> float:
    """Memory of this process now."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024
