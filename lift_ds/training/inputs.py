"""What a run reads, opened and checked from its config: model folder, weights, training steps, held-out documents."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from lift_ds.config.run import RunConfig
from lift_ds.data.batch import Document
from lift_ds.data.order.dealing import BatchRule
from lift_ds.data.order.lanes import Lanes, choose_held_out
from lift_ds.data.order.loader import StepLoader
from lift_ds.data.order.stream import PackStream
from lift_ds.data.reader import RowReader
from lift_ds.data.settings import DataConfig
from lift_ds.data.sources import Manifest
from lift_ds.data.survey.rows import check_first_rows
from lift_ds.data.text.chat import ChatEncoder
from lift_ds.data.text.chat_format import KEYS, ChatFormat, format_of_settings, read_format, template_text
from lift_ds.data.text.prepared import folder_of, read_prepared
from lift_ds.data.text.templates import use_template
from lift_ds.evaluation.settings import EvalConfig
from lift_ds.models.blocks import check_block_size
from lift_ds.models.families import max_length_of, start_token_of
from lift_ds.models.registry import family_of, is_blockwise
from lift_ds.models.vocabulary import check_tokenizer, load_tokenizer
from lift_ds.models.weights import NewWeights, WeightSource
from lift_ds.objectives.settings import ObjectiveSettings
from lift_ds.planning.flops import Arithmetic
from lift_ds.ranks.background import BackgroundGroup, Links
from lift_ds.ranks.once import ALONE, Once
from lift_ds.ranks.shares import Ranks
from lift_ds.sampling.block_rule import check_settings
from lift_ds.sampling.settings import FixedSteps, SamplingSettings
from lift_ds.storage.checkpoint_weights import CheckpointWeights
from lift_ds.storage.safetensors_folder import SafetensorsFolder

from .draws import make_noise_rule
from .memory import DifficultyMemory
from .readers import fitting_lanes, open_reader_once, pack_capacity
from .routing import require_router
from .run_files import ModelFolder, RunSources, list_sources, open_model

INDEX_FOLDER = "index"


@dataclass(frozen=True)
class RunData:
    """What training reads: rows as documents and, in their order, as packs.

    Args:
        encoder: Conversations to tokens.
        reader: Training rows.
        stream: The packs.
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


def open_data(
    run: RunConfig,
    tokenizer: PreTrainedTokenizerBase,
    config: PretrainedConfig,
    sources: RunSources | None = None,
    once: Once | None = None,
) -> RunData:
    """Scans the files, sets held-out rows apart and reads those; on rank 0, which tells the others.

    Raises:
        ValueError: A file is missing, empty or malformed, a row does not fit the columns, or too many of `eval.path`
            are skipped.
        ConnectionError: A server did not answer.
    """
    data, sources, once = run.data, sources or list_sources(run), once or Once(None)
    encoder = make_encoder(data, tokenizer, config)
    cache_dir = Path(run.output) / INDEX_FOLDER
    training = open_reader_once(data, encoder, sources.training, cache_dir, once, "training")
    manifests = [training.manifest]
    held_out_ids, held_out = set[int](), list[Document]()
    if run.eval.rows:
        if sources.held_out is not None:
            apart = open_reader_once(data, encoder, sources.held_out, cache_dir, once, "held-out")
            manifests.append(apart.manifest)

            def read() -> list[Document]:
                check_first_rows(apart, min(run.eval.rows, data.check_rows), data.max_skipped)
                return list(apart.by_sample_id(range(min(run.eval.rows, apart.manifest.num_rows))))
        else:
            held_out_ids = choose_held_out(training.manifest, run.eval.rows, run.seed)

            def read() -> list[Document]:
                return list(training.by_sample_id(sorted(held_out_ids)))

        held_out = once.per_run("reading the held-out rows", read)
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


@dataclass(frozen=True)
class Prepared:
    """Everything but the weights that is opened and checked before an engine exists; `folder` is the model's.

    `checkpoint` is what the weights are read from where they are another run's.
    """

    run: RunConfig
    folder: Path
    config: PretrainedConfig
    data: RunData
    checkpoint: Path | None = None


def prepare(
    run: RunConfig, model: ModelFolder | None = None, sources: RunSources | None = None, once: Once = ALONE
) -> Prepared:
    """Opens model folder and data, from `open_model` and `list_sources` where they are open already, and checks both.

    Raises:
        ValueError: Something is missing or does not fit; see the functions that it calls.
    """
    model = model or open_model(run.model.path, not run.model.from_scratch, once)
    check_answers(run, model.config)
    require_router(run, model.config)
    level_block_size(run.objective, model.config)
    tokenizer = load_tokenizer(model.folder)
    if tokenizer is None:
        raise ValueError(f"{model.folder}: no tokenizer; training needs one to read text.")
    check_tokenizer(model.config, tokenizer, model.folder)
    data = open_data(run, tokenizer, model.config, sources, once)
    return Prepared(run, model.folder, model.config, data, model.checkpoint)


def check_answers(run: RunConfig, config: PretrainedConfig) -> None:
    """Whether the model can make the answers that a run asks for.

    Raises:
        ValueError: It denoises block after block, and `eval.*` says otherwise.
    """
    asked = run.eval
    if asked.solve_items or asked.solve_every or asked.watch_every or run.checkpoint.best_by == "solve_rate":
        check_settings(answer_settings(asked, config), config, asked.prefix)


def answer_settings(asked: EvalConfig, config: PretrainedConfig) -> SamplingSettings:
    """How answers are made while a model trains; one with blocks of its own may stop at an end token."""
    lengths = asked.model_dump(include=set(FixedSteps.model_fields))
    return SamplingSettings(**lengths, stop_early=is_blockwise(config))


def level_block_size(objective: ObjectiveSettings, config: PretrainedConfig) -> int | None:
    """Tokens of a block where each has a level of its own; `None` where each document has one.

    Raises:
        ValueError: The model has no blocks.
    """
    if objective.level_per == "document":
        return None
    if not is_blockwise(config):
        raise ValueError(
            f"objective.level_per=block: {family_of(config).name} does not denoise block after block; use "
            "objective.level_per=document."
        )
    return check_block_size(config)


def batch_rule(prepared: Prepared, max_rows: int | None) -> BatchRule:
    """How steps are cut into micro-batches: by rows where `max_rows` is given, else by `data.micro_batch_tokens`."""
    data = prepared.run.data
    return BatchRule(
        max_rows,
        data.micro_batch_tokens if max_rows is None else None,
        is_packed=data.packing != "none",
        pair_cost=Arithmetic.of(prepared.config).pair_cost,
    )


def make_loader(
    prepared: Prepared, max_rows: int | None, ranks: Ranks, first_step: int, memory: DifficultyMemory | None = None
) -> StepLoader:
    """This rank's training steps from `first_step` on; the lanes must stand there already. All ranks call it.

    Where rows are remembered, `memory` is looked up in the loader's thread.
    """
    run = prepared.run
    links: Links | None = BackgroundGroup() if memory is None and ranks.world_size > 1 else None
    return StepLoader(
        prepared.data.stream,
        make_noise_rule(
            run.objective, run.seed, run.optim.global_batch, level_block_size(run.objective, prepared.config)
        ),
        global_batch=run.optim.global_batch,
        batch_rule=batch_rule(prepared, max_rows),
        rank=ranks.rank,
        world_size=ranks.world_size,
        pad_token_id=prepared.config.pad_token_id,
        first_step=first_step,
        num_workers=run.data.workers,
        links=links if memory is None else memory.ranks.links,
        num_steps=run.optim.steps,
        difficulties=memory,
        stopping=None if memory is None else memory.ranks.stopping,
    )


def open_weights(prepared: Prepared) -> WeightSource:
    """The weights that a run starts from.

    Raises:
        ValueError: The folder has none, or a file cannot be read.
    """
    if prepared.run.model.from_scratch:
        return NewWeights(prepared.config, prepared.run.seed)
    if prepared.checkpoint is not None:
        return CheckpointWeights(prepared.checkpoint)
    return SafetensorsFolder(prepared.folder)


def chat_format_of(prepared: Prepared) -> ChatFormat:
    """How a run's chats become tokens.

    Raises:
        ValueError: What stands beside tokens that were made before is damaged.
        ConnectionError: A server did not answer.
    """
    reader, data = prepared.data.reader, prepared.run.data.model_dump()
    data["clock"] = reader.encoder.renderer.clock.isoformat()
    for group, mapping in zip(reader.manifest.groups, reader.columns, strict=True):
        if mapping.input_ids is not None:  # tokens that were made before, in the format that stands beside them
            made = read_prepared(folder_of(reader.manifest.chunks[group.first_chunk].source)) or {"settings": {}}
            data |= {
                key.removeprefix("data."): value for key, value in made["settings"].items() if key in KEYS.values()
            }
    columns = [mapping.named() for mapping in reader.columns]
    return format_of_settings(data, columns, template_text(reader.encoder.tokenizer))


def describe_other_format(prepared: Prepared) -> list[str]:
    """A line where the model was trained in another format than this run trains it in; `data.*` decides.

    Raises:
        ValueError: The model's format cannot be read.
    """
    taught = read_format(prepared.folder)
    differ = [] if taught is None else taught.differences(chat_format_of(prepared), "clock")
    if not differ:
        return []
    before, now = (", ".join(f"{entry[0]}={entry[side]}" for entry in differ) for side in (1, 2))
    return [f"{prepared.folder} was trained with {before}; this run: {now}"]
