"""What a run reads, opened and checked from its config: model folder, weights, training steps, held-out documents."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from lift_ds.config.run import RunConfig
from lift_ds.data.batch import Document
from lift_ds.data.order.lanes import Lanes, choose_held_out
from lift_ds.data.order.loader import StepLoader
from lift_ds.data.order.stream import PackStream
from lift_ds.data.reader import RowReader
from lift_ds.data.settings import DataConfig
from lift_ds.data.sources import Manifest, SourceGroup
from lift_ds.data.survey.rows import check_first_rows
from lift_ds.data.text.chat import ChatEncoder
from lift_ds.data.text.templates import use_template
from lift_ds.data.text.turns import RowRules
from lift_ds.models.families import max_length_of, start_token_of
from lift_ds.models.vocabulary import check_tokenizer, load_tokenizer
from lift_ds.models.weights import NewWeights, WeightSource
from lift_ds.storage.safetensors_folder import SafetensorsFolder

from .draws import make_noise_rule
from .run_files import ModelFolder, RunSources, list_sources, open_model

INDEX_FOLDER = "index"

LANE_ROWS, PACKED_LANE_ROWS = 16, 1024


@dataclass(frozen=True)
class RunData:
    """What training reads.

    Args:
        encoder: Conversations to tokens.
        reader: Training rows as documents.
        stream: Training rows as packs, in their order.
        held_out: Documents that are never trained on.
        num_rows: Training rows, held-out ones included.
        manifests: All that was opened; their indexes can be kept once the run has a folder.
    """

    encoder: ChatEncoder
    reader: RowReader
    stream: PackStream
    held_out: list[Document]
    num_rows: int
    manifests: list[Manifest]

    def save_indexes(self) -> None:
        """Keeps the files' indexes in the run folder; for one rank to do."""
        for manifest in self.manifests:
            manifest.save_indexes()


def make_encoder(data: DataConfig, tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig) -> ChatEncoder:
    """The encoder that the config asks for.

    Raises:
        ValueError: `data.chat_template` names no template, or not one of this tokenizer, or it cannot be repeated.
    """
    use_template(tokenizer, data.chat_template)
    return ChatEncoder(
        tokenizer,
        end_token_id=int(config.eos_token_id),
        max_length=data.max_length or data.pack_length or max_length_of(config),
        pad_targets=data.pad_targets,
        pad_to_multiple=data.pad_to_multiple,
        train_on=data.train_on,
        truncate=data.on_long == "truncate",
        start_token_id=start_token_of(config),
        clock=datetime.fromisoformat(data.clock) if data.clock else None,
        may_drop=data.dropped_text == "allow",
    )


def open_reader(
    data: DataConfig, encoder: ChatEncoder, groups: list[SourceGroup], cache_dir: Path | None = None
) -> RowReader:
    """The rows of some sources.

    Args:
        data: How they are read.
        encoder: Conversations to tokens.
        groups: What is read.
        cache_dir: Where indexes may be kept.

    Raises:
        ValueError: A file is malformed, or its first row does not fit the columns.
        ConnectionError: A server did not answer.
    """
    return RowReader(
        Manifest(groups, cache_dir),
        encoder,
        data.columns if data.columns.named() else None,
        RowRules(data.system, data.reasoning, frozenset(data.ignore)),
        skip_long=data.on_long == "skip",
        skip_bad=data.on_bad_row == "skip",
    )


def pack_capacity(data: DataConfig, max_length: int) -> int:
    """Most tokens of a pack.

    Args:
        data: May name it.
        max_length: Most tokens of a document.

    Raises:
        ValueError: A document may be longer than a pack.
    """
    capacity = data.pack_length or max_length
    if capacity < max_length:
        raise ValueError(
            f"data.pack_length={capacity} is less than data.max_length={max_length}: rows between would fit no "
            "pack; lower data.max_length or raise data.pack_length."
        )
    return capacity


def fitting_lanes(wanted: int, num_rows: int, is_packed: bool) -> int:
    """Fewer lanes for small data: each needs rows of its own, and packs hold some of them back while they are open.

    Args:
        wanted: Lanes of the config; halved until they fit.
        num_rows: Rows of the data.
        is_packed: Whether lanes pack them.
    """
    rows_per_lane = PACKED_LANE_ROWS if is_packed else LANE_ROWS
    while wanted > 1 and num_rows < wanted * rows_per_lane:
        wanted //= 2
    return wanted


def open_data(
    run: RunConfig, tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig, sources: RunSources | None = None
) -> RunData:
    """Scans the files, sets held-out rows apart and reads those.

    Args:
        run: The run config.
        tokenizer: The model's.
        config: The model's.
        sources: From `list_sources`, where they are listed already.

    Raises:
        ValueError: A file is missing, empty or malformed, a row does not fit the columns, or too many of `eval.path`
            are skipped.
        ConnectionError: A server did not answer.
    """
    data = run.data
    encoder = make_encoder(data, tokenizer, config)
    sources = sources or list_sources(run)
    cache_dir = Path(run.output) / INDEX_FOLDER
    training = open_reader(data, encoder, sources.training, cache_dir)
    manifests = [training.manifest]
    held_out_ids: set[int] = set()
    held_out: list[Document] = []
    if run.eval.rows:
        if sources.held_out is not None:
            apart = open_reader(data, encoder, sources.held_out, cache_dir)
            manifests.append(apart.manifest)
            check_first_rows(apart, min(run.eval.rows, data.check_rows), data.max_skipped)
            held_out = list(apart.by_sample_id(range(min(run.eval.rows, apart.manifest.num_rows))))
        else:
            held_out_ids = choose_held_out(training.manifest, run.eval.rows, run.seed)
            held_out = list(training.by_sample_id(sorted(held_out_ids)))
        if not held_out:
            raise ValueError(
                "every held-out row is longer than data.max_length, or bad, and skipped; raise data.max_length, or set "
                "data.on_bad_row=error to see what is wrong."
            )
    capacity = None if data.packing == "none" else pack_capacity(data, encoder.max_length)
    num_lanes = fitting_lanes(data.lanes, training.manifest.num_rows, capacity is not None)
    lanes = Lanes(training.manifest, held_out_ids, num_lanes, data.window_chunks, run.seed)
    training.min_chunks = lanes.window_chunks_open
    stream = PackStream(lanes, training, capacity)
    return RunData(encoder, training, stream, held_out, training.manifest.num_rows, manifests)


def make_loader(
    run: RunConfig, data: RunData, micro_batch: int, rank: int, world_size: int, pad_token_id: int, first_step: int
) -> StepLoader:
    """This rank's training steps from `first_step` on; the lanes must stand there already."""
    return StepLoader(
        data.stream,
        make_noise_rule(run.objective, run.seed, run.optim.global_batch),
        global_batch=run.optim.global_batch,
        micro_batch=micro_batch,
        rank=rank,
        world_size=world_size,
        pad_token_id=pad_token_id,
        first_step=first_step,
        num_workers=run.data.workers,
    )


@dataclass(frozen=True)
class Prepared:
    """Everything but the weights that is opened and checked before an engine exists.

    Args:
        run: Run config.
        folder: Where model config and tokenizer were found.
        config: The model's config.
        data: Training and held-out data.
    """

    run: RunConfig
    folder: Path
    config: PretrainedConfig
    data: RunData


def prepare(run: RunConfig, model: ModelFolder | None = None, sources: RunSources | None = None) -> Prepared:
    """Opens model folder and data, and checks both.

    Args:
        run: The run config.
        model: From `open_model`, where it is open already.
        sources: From `list_sources`, where they are listed already.

    Raises:
        ValueError: Something is missing or does not fit; see the functions that it calls.
    """
    model = model or open_model(run.model.path, not run.model.from_scratch)
    folder, config = model.folder, model.config
    tokenizer = load_tokenizer(folder)
    if tokenizer is None:
        raise ValueError(f"{folder}: no tokenizer; training needs one to read text.")
    check_tokenizer(config, tokenizer, folder)
    return Prepared(run, folder, config, open_data(run, tokenizer, config, sources))


def open_weights(prepared: Prepared) -> WeightSource:
    """The weights that a run starts from.

    Raises:
        ValueError: The folder has none, or a file cannot be read.
    """
    if prepared.run.model.from_scratch:
        return NewWeights(prepared.config, prepared.run.seed)
    return SafetensorsFolder(prepared.folder)
