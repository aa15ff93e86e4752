"""Real ranks that read data, save their position and go on from others'; started by `test_elastic`.

    torchrun --nproc_per_node N tests/distributed/elastic.py save|continue FOLDER

`save` reads from the start and leaves a position at every cut; `continue` goes on from the positions of every number of
ranks. Both write, for each step, a digest of every document with its noise, over all ranks.
"""

from __future__ import annotations

import hashlib
import json
import sys
from itertools import product
from pathlib import Path

import torch
import torch.distributed as dist
from transformers import AutoTokenizer

from lift_ds.data.batch import MicroBatch
from lift_ds.data.order.dealing import BatchRule
from lift_ds.data.order.lanes import Lanes
from lift_ds.data.order.loader import StepLoader
from lift_ds.data.order.stream import PackStream, merge_states
from lift_ds.data.reader import RowReader
from lift_ds.data.sources import Manifest, open_sources
from lift_ds.data.text.chat import ChatEncoder
from lift_ds.objectives import objective_settings
from lift_ds.ranks.background import BackgroundGroup
from lift_ds.training.draws import make_noise_rule

NUM_STEPS, GLOBAL_BATCH, CUTS = 9, 12, (1, 4, 8)
SETTINGS = list(product(("rows.jsonl", "rows.parquet"), (None, 96)))


def make_loader(
    folder: Path, file: str, capacity: int | None, position: Path | None, first_step: int, num_steps: int | None = None
) -> StepLoader:
    """This rank's loader from a saved position."""
    manifest = Manifest(open_sources([str(folder / file)], 0, "train", 10))
    reader = RowReader(manifest, ChatEncoder(AutoTokenizer.from_pretrained(folder / "model"), 1, 96), None)
    stream = PackStream(Lanes(manifest, {3, 5}, num_lanes=8, window_chunks=2, seed=3), reader, capacity)
    if position is not None:
        stream.load_state(json.loads((position / "lanes.json").read_text()))
    rule, world = make_noise_rule(objective_settings(), 3, GLOBAL_BATCH), dist.get_world_size()
    batch_rule = BatchRule(max_tokens=40 * (1 + world % 3), is_packed=capacity is not None)
    links = BackgroundGroup() if world > 1 else None
    rank = dist.get_rank()
    return StepLoader(
        stream, rule, GLOBAL_BATCH, batch_rule, rank, world, 1, first_step, links=links, num_steps=num_steps
    )


def documents(batch: MicroBatch) -> list[tuple[int, str]]:
    """Sample id and digest of each document with its noise."""
    found = []
    for row, sample in enumerate(batch.sample_ids):
        length = int(batch.attention_mask[row].sum())
        parts = [batch.t[row], batch.rho[row], batch.component[row]]
        parts += [each[row, :length] for each in (batch.clean_ids, batch.response_mask, batch.mask_uniform)]
        data = b"".join(part.contiguous().numpy().tobytes() for part in parts)
        found.append((sample, hashlib.sha256(data).hexdigest()))
    return [each for each in found if each[0] >= 0]


def run(loader: StepLoader, first_step: int, name: str, folder: Path) -> None:
    """Reads to the last step; writes the digests, and the position after each cut."""
    digests, world = {}, dist.get_world_size()
    for step in range(first_step, NUM_STEPS):
        batch = next(loader)
        everyones: list = [None] * world
        dist.all_gather_object(everyones, [each for micro in batch.micro_batches for each in documents(micro)])
        digests[step] = sorted(each for part in everyones for each in part)
        positions: list = [None] * world
        dist.all_gather_object(positions, loader.state)
        if first_step == 0 and step + 1 in CUTS and dist.get_rank() == 0:
            position = folder / "positions" / f"{world}-{name}-{step + 1}"
            position.mkdir(parents=True)
            (position / "lanes.json").write_text(json.dumps(merge_states(positions)))
    loader.close()
    if dist.get_rank() == 0:
        (folder / f"digests-{world}-{name}-{first_step}.json").write_text(json.dumps(digests))


def main() -> None:
    mode, folder = sys.argv[1], Path(sys.argv[2])
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    for file, capacity in SETTINGS:
        name = f"{file}-{capacity}"
        if mode == "save":
            run(make_loader(folder, file, capacity, None, 0), 0, name, folder)
            continue
        for position in sorted((folder / "positions").glob(f"*-{name}-*")):
            cut = int(position.name.rsplit("-", 1)[1])
            before = position.name.split("-")[0]
            run(make_loader(folder, file, capacity, position, cut), cut, f"{name}-from-{before}", folder)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
