"""Checks all rows of a data set before a run, says what is in it, and writes its tokens.

Reads and tokenises every row as training would, and reports bad rows, lengths, targets, duplicates, padding and
packing. No weights are loaded. Exits with 1 where a row would stop a run (data.on_bad_row and data.on_long), with 2 for
wrong arguments.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import MofNCompleteColumn

from lift_ds.config.loading import ConfigError, load_run_config
from lift_ds.config.run import RunConfig
from lift_ds.data.order.dealing import BatchRule
from lift_ds.data.reader import BadRowError, RowReader, Skipped
from lift_ds.data.sources import Retry, open_groups
from lift_ds.data.survey import SurveyReport, TokenShardWriter, TokenStatistics, survey
from lift_ds.data.survey.display import marked_text, show_report
from lift_ds.data.survey.token_shards import check_target
from lift_ds.data.text.prepared import token_settings, tokenizer_hash
from lift_ds.models.families import read_config
from lift_ds.models.vocabulary import check_tokenizer, load_tokenizer
from lift_ds.models.weights import BUILTIN_BASE, resolve_folder
from lift_ds.training.inputs import make_encoder
from lift_ds.training.readers import open_reader, pack_capacity

from .tool import StrictParser, flag, progress, tool

DOTTED_KEY = re.compile(r"[a-z_]+(\.[a-z_0-9]+)+")
SHOWN_GROUPS = 5
SHOWN_LOCATIONS = 3
MIB = 1 << 20


def resolve(arguments: argparse.Namespace) -> RunConfig:
    """The config of a run on this data, or a ConfigError with all that is missing or wrong."""
    overrides = [text for text in arguments.inputs if is_override(text)]
    paths = [text for text in arguments.inputs if not is_override(text)]
    flags: dict[str, Any] = {"data.path": paths if len(paths) > 1 else paths[0]} if paths else {}
    shown = {"data.path": " ".join(paths)} if paths else {}
    if arguments.model:
        flags["model.path"], shown["model.path"] = arguments.model, f"--model {arguments.model}"
    run, problems = load_run_config(arguments.config, overrides, flags, shown)
    keys = {override.partition("=")[0] for override in overrides}
    if not paths and arguments.config is None and not keys & {"data.path", "data.sources"}:
        problems.append("no data: name files, data.path=... or data.sources=...")
    if not arguments.model and arguments.config is None and "model.path" not in keys:
        problems.append(f"--model is needed, for its tokenizer: a folder, hub name or {BUILTIN_BASE}")
    for name, least in (("micro_batch", 1), ("workers", 0), ("shard_mib", 1)):
        value = getattr(arguments, name)
        if value is not None and value < least:
            problems.append(f"--{name.replace('_', '-')}={value}: at least {least}")
    if problems:
        raise ConfigError(problems)
    return run


def is_override(text: str) -> bool:
    """Whether an argument is key=value; a path may have a `=` too, as year=2025/rows.parquet."""
    key, sign, _ = text.partition("=")
    return bool(sign) and (DOTTED_KEY.fullmatch(key) is not None or key in RunConfig.model_fields)


def open_rows(run: RunConfig) -> RowReader:
    """Opens tokenizer and data as training does, but lets no bad row stop it.

    Raises:
        BadRowError: No row can be read, so that the columns are not known.
        ValueError: Something is missing or wrong.
        ConnectionError: A server did not answer.
    """
    folder = resolve_folder(run.model.path, with_weights=False)
    config = read_config(folder)
    tokenizer = load_tokenizer(folder)
    if tokenizer is None:
        raise ValueError(f"{folder}: no tokenizer; name a model that has one.")
    check_tokenizer(config, tokenizer, folder)
    encoder = make_encoder(run.data, tokenizer, config)
    pack_capacity(run.data, encoder.max_length)  # refuses packs that are too short
    data = run.data.model_copy(update={"on_bad_row": "skip"})
    groups = open_groups(data.source_list(), data.builtin_seed, "train", data.builtin_rows, Retry())
    return open_reader(data, encoder, groups)


def plan(run: RunConfig, reader: RowReader, arguments: argparse.Namespace) -> str:
    """What would be read and written, as lines."""
    lines = ["would read:"]
    for group, columns in zip(reader.manifest.groups, reader.columns, strict=True):
        lines.append(f"  {group.name}: {group.num_rows:,} rows, columns {columns.named()}")
    lines.append(f"with the tokenizer of {run.model.path}, at most {reader.encoder.max_length:,} tokens a row")
    lines += [f"  {name}: {value!r}" for name, value in token_settings(reader.encoder, reader.rules).items()]
    lines += ["would write:", f"  the report to the screen{f', {arguments.json}' if arguments.json else ''}"]
    if arguments.write is not None:
        lines.append(f"  tokens to {arguments.write}: parquet files of about {arguments.shard_mib} MiB, prepared.json")
    return "\n".join(lines)


def prepare_data(run: RunConfig, reader: RowReader, arguments: argparse.Namespace) -> bool:
    """Looks at all rows, reports, and writes their tokens; returns whether a run could use all of the data as it is.

    Raises:
        ValueError: A file cannot be decoded, or the folder to write is in use.
        OSError: A file cannot be written.
    """
    names = [group.name for group in reader.manifest.groups]
    capacity = pack_capacity(run.data, reader.encoder.max_length)
    statistics = TokenStatistics(reader.encoder.num_ids, capacity, names, -(-run.data.check_rows // len(names)))
    console = Console(highlight=False, markup=False)
    choices = {Skipped.BAD: run.data.on_bad_row, Skipped.LONG: run.data.on_long}
    stopping = {reason for reason, choice in choices.items() if choice == "error"}
    is_usable = True
    with TokenShardWriter(arguments.write, arguments.shard_mib * MIB) if arguments.write else nullcontext() as writer:
        with progress("rows", reader.manifest.num_rows, MofNCompleteColumn()) as advance:
            for rows in survey(reader, arguments.workers):
                for row in rows:
                    statistics.add(row)
                    is_usable = is_usable and row.reason not in stopping
                    if writer is not None and is_usable and row.tokens is not None:
                        writer.add(row.tokens, row.group)
                advance(len(rows))
        rows = arguments.micro_batch
        rule = BatchRule(rows, run.data.micro_batch_tokens if rows is None else None)
        report = statistics.report(run.optim.global_batch, rule)
        report.numbers["duplicates"]["locations"] = locate_duplicates(report, reader)
        show_report(console, report.numbers, report.first_rows, reader.encoder.tokenizer)
        if arguments.json is not None:
            write_report(arguments.json, report, reader)
        for source in report.numbers["sources"]:
            share = source["skipped_of_first"]
            if share > run.data.max_skipped or share == 1:
                is_usable = False
                allowed = f"more than data.max_skipped={run.data.max_skipped:g} allows"
                reason = "and a run needs one that can be used" if share == 1 else allowed
                line = f"{source['name']}: {share:.1%} of the first rows would be skipped, {reason}"
                console.print(line, soft_wrap=True)
        is_usable = is_usable and report.numbers["rows"]["good"] > 0
        if writer is not None:
            result = "not written; set data.on_bad_row, data.on_long and data.max_skipped to leave rows out."
            if is_usable:
                writer.publish(describe(run, reader, report))
                result = f"{len(writer.shards)} parquet file(s)"
            console.print(f"{arguments.write}: {result}", soft_wrap=True)
    return is_usable


def locate_duplicates(report: SurveyReport, reader: RowReader) -> list[list[str]]:
    """File and line of the first rows of the largest groups."""
    locations = []
    for ids in report.duplicate_ids[:SHOWN_GROUPS]:
        shown = [document.where for document in reader.by_sample_id(ids[:SHOWN_LOCATIONS].tolist())]
        hidden = len(ids) - len(shown)
        locations.append([*shown, f"{hidden:,} more"] if hidden > 0 else shown)
    return locations


def write_report(path: Path, report: SurveyReport, reader: RowReader) -> None:
    """The report as JSON, with the first rows of each source as text: targets stand between « and »."""
    texts = [[marked_text(document, reader.encoder.tokenizer) for document in rows] for rows in report.first_rows]
    text = json.dumps(report.numbers | {"first_rows": texts}, indent=2, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8", errors="backslashreplace")


def describe(run: RunConfig, reader: RowReader, report: SurveyReport) -> dict[str, Any]:
    """What `prepared.json` says of the tokens."""
    encoder, sources = reader.encoder, report.numbers["sources"]
    return {
        "rows": report.numbers["rows"],
        "sources": [
            {**counts, "weight": group.weight, "columns": columns.named()}
            for counts, group, columns in zip(sources, reader.manifest.groups, reader.columns, strict=True)
        ],
        "tokens": report.numbers["tokens"],
        "files": reader.manifest.files,
        "model": run.model.path,
        "tokenizer_hash": tokenizer_hash(encoder.tokenizer),
        "settings": token_settings(encoder, reader.rules)
        | {"data.max_length": encoder.max_length, "data.on_long": run.data.on_long},
    }


@tool(
    __doc__,
    flag("inputs", nargs="*", metavar="FILE | key=value", help="as data.path; overrides such as data.columns.prompt=q"),
    flag("--config", type=Path, metavar="YAML", help="recipe, as in launchers/recipes"),
    flag("--model", help=f"same as model.path=...: a folder, hub name or {BUILTIN_BASE}"),
    flag("--micro-batch", type=int, help="rows of a forward, for the padding (default: by data.micro_batch_tokens)"),
    flag("--workers", type=int, default=0, help="processes that tokenise (default 0: this one)"),
    flag("--json", type=Path, metavar="FILE", help="write the report there too, with all bad rows"),
    flag("--write", type=Path, metavar="FOLDER", help="write the tokens as parquet files to train from"),
    flag("--shard-mib", type=int, default=256, help="size of such a file (default 256)"),
    flag("--dry-run", action="store_true", help="print what would be read and written, and stop"),
    kind=StrictParser,
)
def main(arguments: argparse.Namespace) -> bool:
    """Does what the flags ask for; returns whether no row would stop a run."""
    run = resolve(arguments)
    if arguments.write is not None:
        check_target(arguments.write)
    try:
        reader = open_rows(run)
        if not arguments.dry_run:
            return prepare_data(run, reader, arguments)
    except BadRowError as error:
        print(f"error: {error}", file=sys.stderr)
        return False
    print(plan(run, reader, arguments))
    return True
