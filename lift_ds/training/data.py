"""What a run reads, opened and checked from its config: model folder, weights, training steps, held-out documents."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from lift_ds.config import DataConfig, RunConfig
from lift_ds.data.batch import Document
from lift_ds.data.chat import ChatEncoder
from lift_ds.data.lanes import Lanes, choose_held_out
from lift_ds.data.loader import RowReader, StepLoader
from lift_ds.data.sources import BUILTIN_PREFIX, Manifest, open_sources
from lift_ds.data.templates import use_template
from lift_ds.models.families import check_tokenizer, max_length_of, read_config
from lift_ds.models.weights import NewWeights, SafetensorsFolder, WeightSource, load_tokenizer, resolve_folder

from .draws import make_noise_rule


@dataclass(frozen=True)
class RunData:
    """What training reads.

    Args:
        encoder: Conversations to tokens.
        reader: Training rows as documents.
        lanes: Their order.
        held_out: Documents that are never trained on.
        num_rows: Training rows, held-out ones included.
    """

    encoder: ChatEncoder
    reader: RowReader
    lanes: Lanes
    held_out: list[Document]
    num_rows: int


def as_list(path: str | list[str]) -> list[str]:
    """One path or several."""
    return [path] if isinstance(path, str) else path


def make_encoder(data: DataConfig, tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig) -> ChatEncoder:
    """The encoder that the config asks for.

    Raises:
        ValueError: `data.chat_template` names no template, or not one of this tokenizer.
    """
    use_template(tokenizer, data.chat_template)
    return ChatEncoder(
        tokenizer,
        end_token_id=int(config.eos_token_id),
        max_length=data.max_length or max_length_of(config),
        pad_targets=data.pad_targets,
        pad_to_multiple=data.pad_to_multiple,
        train_on=data.train_on,
        truncate=data.on_long == "truncate",
    )


def open_data(run: RunConfig, tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig) -> RunData:
    """Opens the files, sets held-out rows apart and reads those.

    Raises:
        ValueError: A file is missing, empty or malformed, or a row does not fit the columns.
    """
    data = run.data
    encoder = make_encoder(data, tokenizer, config)
    columns = data.columns if data.columns.named() else None
    paths = as_list(data.path)

    def reader(paths: list[str], split: str, num_rows: int) -> RowReader:
        manifest = Manifest(open_sources(paths, data.builtin_seed, split, num_rows))
        max_chunks = max(64, 2 * data.lanes * data.window_chunks)
        return RowReader(manifest, encoder, columns, data.system, data.on_long == "skip", max_chunks)

    training = reader(paths, "train", data.builtin_rows)
    held_out_ids: set[int] = set()
    held_out: list[Document] = []
    if run.eval.rows:
        is_builtin = all(path.startswith(BUILTIN_PREFIX) for path in paths)
        if run.eval.path is not None or is_builtin:
            apart = reader(as_list(run.eval.path or paths), "test", run.eval.rows)
            held_out = list(apart.by_sample_id(range(min(run.eval.rows, apart.manifest.num_rows))))
        else:
            held_out_ids = choose_held_out(training.manifest, run.eval.rows, run.seed)
            held_out = list(training.by_sample_id(sorted(held_out_ids)))
        if not held_out:
            raise ValueError("every held-out row is longer than data.max_length and skipped; raise it.")
    lanes = Lanes(training.manifest, held_out_ids, data.lanes, data.window_chunks, run.seed)
    return RunData(encoder, training, lanes, held_out, training.manifest.num_rows)


def check_first_rows(data: RunData, count: int) -> int:
    """Reads and tokenises the first rows, so that bad ones are found before training; returns how many.

    Raises:
        ValueError: A row is malformed or too long; the message names file and line.
    """
    first_rows = range(min(count, data.num_rows))
    return sum(1 for _ in data.reader.by_sample_id(first_rows))


def make_loader(
    run: RunConfig, data: RunData, micro_batch: int, rank: int, world_size: int, pad_token_id: int, first_step: int
) -> StepLoader:
    """This rank's training steps from `first_step` on; the lanes must stand there already."""
    return StepLoader(
        data.lanes,
        data.reader,
        make_noise_rule(run.objective, run.seed, run.optim.global_batch),
        global_batch=run.optim.global_batch,
        micro_batch=micro_batch,
        rank=rank,
        world_size=world_size,
        pad_token_id=pad_token_id,
        first_step=first_step,
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


def prepare(run: RunConfig, with_weights: bool = True) -> Prepared:
    """Opens model folder and data, and checks both.

    Args:
        run: The run config.
        with_weights: Fetch the weights of a hub name too.

    Raises:
        ValueError: Something is missing or does not fit; see the functions that it calls.
    """
    folder = resolve_folder(run.model.path, with_weights and not run.model.from_scratch)
    config = read_config(folder)
    tokenizer = load_tokenizer(folder)
    if tokenizer is None:
        raise ValueError(f"{folder}: no tokenizer; training needs one to read text.")
    check_tokenizer(config, tokenizer, folder)
    return Prepared(run, folder, config, open_data(run, tokenizer, config))


def open_weights(prepared: Prepared) -> WeightSource:
    """The weights that a run starts from.

    Raises:
        ValueError: The folder has none, or a file cannot be read.
    """
    if prepared.run.model.from_scratch:
        return NewWeights(prepared.config, prepared.run.seed)
    return SafetensorsFolder(prepared.folder)
