"""Packs of documents from each lane: read, tokenised and packed in the lane's own order.

A lane's packs depend on nothing but the data, the seed and the settings: not on other lanes, ranks or time. Its state
is where its cursors stand and which samples wait in its open packs, by reference: they are read anew after a resume.

Packing is best fit: each document goes into the open pack that it fills best. Where none has room, a new one is opened,
or, with all of them open, the fullest is closed and handed on. What comes out depends on the lengths and their order.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from lift_ds.data.batch import Document
from lift_ds.data.reader import RowReader, Skipped
from lift_ds.data.text.prepared import changed_settings, token_settings, tokenizer_hash

from .lanes import Lanes, Position, SampleRef, locate

Item = TypeVar("Item")

READ_AHEAD = 32
MAX_OPEN = 6


@dataclass(eq=False)
class Pack(Generic[Item]):
    """Some items and their tokens in all; equal to itself only."""

    items: list[Item] = field(default_factory=list)
    num_tokens: int = 0


class Packer(Generic[Item]):
    """Packs items as they come; at most `max_open` packs, of at most `capacity` tokens, are open at a time."""

    def __init__(self, capacity: int, max_open: int = MAX_OPEN) -> None:
        self.capacity, self.max_open = capacity, max_open
        self.open: list[Pack[Item]] = []

    def add(self, item: Item, length: int) -> Pack[Item] | None:
        """Places an item; returns the pack that had to be closed for it, if any.

        Raises:
            ValueError: It is longer than a pack.
        """
        if length > self.capacity:
            raise ValueError(f"a document of {length} tokens in packs of {self.capacity}.")
        fitting = [pack for pack in self.open if pack.num_tokens + length <= self.capacity]
        closed = None
        if fitting:
            chosen = max(fitting, key=lambda pack: pack.num_tokens)
        else:
            if len(self.open) == self.max_open:
                closed = max(self.open, key=lambda pack: pack.num_tokens)
                self.open.remove(closed)
            chosen = Pack()
            self.open.append(chosen)
        chosen.items.append(item)
        chosen.num_tokens += length
        return closed


@dataclass
class Waiting:
    """A sample in an open pack; its document is read again where a resume left only the reference."""

    ref: SampleRef
    num_tokens: int
    document: Document | None


@dataclass
class LanePack:
    """What one slot of a step holds, and how many rows were left out on the way to it: too long, or bad."""

    documents: list[Document] = field(default_factory=list)
    num_long: int = 0
    num_bad: int = 0


class PackStream:
    """Endless packs of every lane.

    Args:
        capacity: Most tokens of a pack; `None` for packs of one document, or of none where it is left out.

    Attributes:
        read_ahead: Samples of a lane that are tokenised in one call; 1 where other ranks take most of them.
    """

    def __init__(self, lanes: Lanes, reader: RowReader, capacity: int | None) -> None:
        self.lanes, self.reader, self.capacity = lanes, reader, capacity
        self.read_ahead = READ_AHEAD
        self.waiting: dict[int, deque[tuple[SampleRef, Position, Document | Exception]]] = {}
        self.num_left_out = 0
        self.packers: dict[int, Packer[Waiting]] = {}
        self.num_taken = [0] * lanes.num_lanes

    def take(self, lane: int, is_own: bool) -> tuple[LanePack | None, dict[str, Any]]:
        """The lane's next pack, and the lane's state after it.

        `None` stands for a pack that another rank takes; its rows are read only where packing needs their lengths.

        Raises:
            ValueError: A row is malformed or too long and not skipped; the message names file and line.
        """
        self.num_taken[lane] += 1
        pack = None
        if is_own or self.capacity is not None:
            pack = self._read_pack(lane)
        else:
            self.lanes.next(lane)
        return pack if is_own else None, self.lane_state(lane)

    def _read_pack(self, lane: int) -> LanePack:
        """A pack of the lane's next row, or of rows until one is full; what is skipped on the way is counted."""
        pack, closed = LanePack(), None
        while closed is None:
            ref, document = self._next_document(lane)
            pack.num_long += document is Skipped.LONG
            pack.num_bad += document is Skipped.BAD
            if self.capacity is None:
                pack.documents = [] if isinstance(document, Skipped) else [document]
                return pack
            if not isinstance(document, Skipped):
                length = len(document.ids)
                closed = self._packer(lane).add(Waiting(ref, length, document), length)
        pack.documents = [item.document or self.reader.document(item.ref) for item in closed.items]
        return pack

    def _next_document(self, lane: int) -> tuple[SampleRef, Document | Skipped]:
        waiting = self.waiting.setdefault(lane, deque())
        if not waiting:
            ahead = self.lanes.peek(lane, self.read_ahead)
            documents = self.reader.read_batch([ref for ref, _ in ahead])  # fewer where a chunk cannot be read
            waiting.extend((*position, document) for position, document in zip(ahead, documents, strict=False))
        ref, position, content = waiting.popleft()
        document = self.reader.settle(content)
        self.lanes.move(lane, position)
        self.num_left_out = self.num_left_out + 1 if isinstance(document, Skipped) else 0
        if self.num_left_out > self.lanes.manifest.num_rows:
            raise ValueError(
                f"{self.num_left_out} rows in a row were left out as too long or bad, more than the data has: none can "
                "be used. Look at them with tools/prepare_data.py."
            )
        return ref, document

    def _packer(self, lane: int) -> Packer[Waiting]:
        assert self.capacity is not None
        return self.packers.setdefault(lane, Packer(self.capacity))

    def lane_state(self, lane: int) -> dict[str, Any]:
        """What a checkpoint keeps of one lane; an open pack is a flat list of epoch, sample id and length."""
        waiting = [
            [number for item in pack.items for number in (item.ref.epoch, item.ref.sample_id, item.num_tokens)]
            for pack in (self._packer(lane).open if self.capacity is not None else [])
        ]
        return self.lanes.lane_state(lane) | {"num_taken": self.num_taken[lane], "open": waiting}

    def load_lane(self, lane: int, state: dict[str, Any]) -> None:
        """Continues one lane from its state."""
        self.lanes.load_lane(lane, state)
        self.waiting.pop(lane, None)
        self.num_taken[lane] = state["num_taken"]
        if self.capacity is not None:
            self._packer(lane).open = [
                Pack(
                    [
                        Waiting(locate(self.lanes.manifest, epoch, sample_id), length, None)
                        for epoch, sample_id, length in zip(flat[::3], flat[1::3], flat[2::3], strict=True)
                    ],
                    sum(flat[2::3]),
                )
                for flat in state["open"]
            ]

    def identity(self) -> dict[str, Any]:
        """What must be the same for a state to mean the same."""
        tokens = token_settings(self.reader.encoder, self.reader.rules) | {
            "tokenizer": tokenizer_hash(self.reader.encoder.tokenizer),
            "data.max_length": self.reader.encoder.max_length,
        }
        return self.lanes.identity() | {"data.pack_length": self.capacity} | tokens

    def state(self) -> dict[str, Any]:
        """Where every lane stands, and what that rests on."""
        lanes = {str(lane): self.lane_state(lane) for lane in range(self.lanes.num_lanes)}
        return {"identity": self.identity(), "manifest": self.lanes.manifest.state(), "lanes": lanes}

    def check_state(self, state: dict[str, Any]) -> None:
        """Checks that a state means the same here.

        Raises:
            ValueError: The data, the seed or the lanes are not those of the checkpoint.
        """
        changed = self.lanes.manifest.find_changes(state["manifest"])
        mine = self.identity()
        changed += [
            f"{name} was {state['identity'].get(name)!r} and is {mine.get(name)!r}"
            for name in changed_settings(state["identity"], mine)
        ]
        if changed:
            raise ValueError(
                f"the checkpoint's data position does not fit this run: {'; '.join(changed)}. "
                "Resume with the same data and settings, or start a new run from its weights."
            )

    def load_state(self, state: dict[str, Any]) -> None:
        """Continues every lane, where `check_state` raises nothing."""
        self.check_state(state)
        for lane, kept in state["lanes"].items():
            self.load_lane(int(lane), kept)


def part_of_state(state: dict[str, Any], rank: int, world_size: int) -> dict[str, Any]:
    """The lanes of which a rank tells the others where they stand, so that each lane travels once.

    Where the ranks N divide the lanes, lane v is read by rank v mod N; elsewhere all ranks follow all lanes.
    """
    return {"lanes": {lane: kept for lane, kept in state["lanes"].items() if int(lane) % world_size == rank}}


def merge_states(states: list[dict[str, Any]]) -> dict[str, Any]:
    """The data position of a run from a rank's and those of others, or their parts.

    Each lane is as the rank has it that took most from it.
    """
    lanes: dict[str, Any] = {}
    for state in states:
        for lane, kept in state["lanes"].items():
            if lane not in lanes or int(kept["num_taken"]) > int(lanes[lane]["num_taken"]):
                lanes[lane] = kept
    return states[0] | {"lanes": dict(sorted(lanes.items(), key=lambda each: int(each[0])))}
