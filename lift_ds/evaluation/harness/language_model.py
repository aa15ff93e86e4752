"""A masked diffusion model as lm-evaluation-harness asks it.

Every process tells the harness that it is the only one, so that each builds the same requests, with the same
examples; what is computed for them is dealt out here. Left to the harness, which gives each process documents of its
own, examples drawn at random would depend on the number of processes, and the last requests would be answered twice.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache, partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM, CacheHook
from rich.console import Console
from rich.progress import track

from lift_ds.evaluation.asking.answering import Answerer
from lift_ds.models.families import start_token_of
from lift_ds.ranks.shares import Ranks
from lift_ds.sampling.block_rule import longest_answered

from .answers import Answers
from .batches import Bar, Batches
from .likelihood import Estimate, Likelihood, Pair, key_of
from .settings import HarnessSettings
from .texts import Messages, Texts

PACKAGE = Path(__file__).parents[2]


class DiffusionLM(LM):
    """What the harness asks for requests; all ranks construct this and call it with the same ones.

    `name` is the model's, for the harness's records; `identity` its weights', to which belongs what `settings.progress`
    keeps.

    Raises:
        ValueError: `max_length` is longer than the model allows, it cannot answer as the settings say, or the folder of
            `settings.progress` cannot be used.
    """

    def __init__(
        self, answerer: Answerer, ranks: Ranks, settings: HarnessSettings, name: str = "lift_ds", identity: str = ""
    ) -> None:
        super().__init__()
        config, encoder = answerer.model.config, answerer.encoder
        longest = longest_answered(config)
        if settings.max_length is not None and settings.max_length > longest:
            raise ValueError(f"max_length={settings.max_length}: the model was made for {longest} tokens at most.")
        settings = settings.for_model(config)
        self._device, self.tokenizer, self.max_length = ranks.device, encoder.tokenizer, settings.max_length or longest
        self.ranks, self.settings, self.name, self.dtype = ranks, settings, name, answerer.model.dtype
        start = start_token_of(config)
        start_ids, chat_format = () if start is None else (start,), answerer.chat_format
        self.texts = Texts(encoder, start_ids, self.max_length, settings.on_long, chat_format)
        folder = None if settings.progress is None else Path(settings.progress)
        if folder is not None and not identity:
            raise ValueError(f"progress={settings.progress}: needs an identity of the weights that answer.")
        if folder is not None:  # the first rank's device and code stand for all
            device = torch.cuda.get_device_name(ranks.device) if ranks.device.type == "cuda" else ranks.device.type
            identity = ranks.on_main(lambda: f"{identity} {self.dtype} {device} {code_identity()}")
        self.batches = Batches(ranks, folder, identity)
        self.answers = Answers(answerer, self.texts, settings, self.batches)
        self.likelihood = Likelihood(answerer, self.batches, settings.batch_size, settings.mc_num, settings.seed)
        self.estimates: list[dict[str, Any]] = []

    def generate_until(self, requests: Sequence[Instance]) -> list[str]:
        """Answers to (context, generation arguments)."""
        return self.answers.run(self.answers.jobs(request.args for request in requests), self._bar("answers"))

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        """Bounds of log p of (context, continuation), and whether greedy decoding gives the continuation.

        Equal requests are computed once. An empty continuation is certain.
        """
        pairs = [self.texts.pair(*request.args) for request in requests]
        bounds = self._bounds(requests, [[pair] if pair.target else [] for pair in pairs])
        greedy = {pair: not pair.target for pair in pairs}
        asked = [pair for pair in greedy if pair.target]
        if self.settings.check_greedy:
            greedy |= zip(asked, self.likelihood.are_greedy(asked, self._bar("greedy decoding")), strict=True)
        return [(bound, greedy[pair]) for bound, pair in zip(bounds, pairs, strict=True)]

    def loglikelihood_rolling(self, requests: Sequence[Instance]) -> list[float]:
        """Bounds of log p of whole texts, part by part; see `Texts.windows`."""
        return self._bounds(requests, [list(self.texts.windows(*request.args)) for request in requests])

    def _bounds(self, requests: Sequence[Instance], parts: Sequence[Sequence[Pair]]) -> list[float]:
        """Bounds of log p of each request, the sum of its parts, which are independent; keeps and writes estimates."""
        asked = list(dict.fromkeys(chain(*parts)))
        found = dict(zip(asked, self.likelihood.estimates(asked, self._bar("masks")), strict=True))
        bounds = []
        for request, pairs in zip(requests, parts, strict=True):
            of_parts = [found[pair] for pair in pairs]
            bound = Estimate(
                math.fsum(part.loglikelihood for part in of_parts),
                math.hypot(*(part.standard_error for part in of_parts)),
                sum(part.num_masks for part in of_parts),
            )
            bounds.append(bound.loglikelihood)
            names = {"task": request.task_name, "doc_id": request.doc_id, "choice": request.idx}
            self.estimates.append(names | asdict(bound))
        if self.settings.estimates is not None and self.ranks.rank == 0:
            lines = "".join(json.dumps(estimate) + "\n" for estimate in self.estimates)
            Path(self.settings.estimates).write_text(lines, encoding="utf-8")
        return bounds

    def get_model_info(self) -> dict[str, Any]:
        """What the harness writes beside its results: settings, processes, and how sure the likelihoods are."""
        errors = [estimate["standard_error"] for estimate in self.estimates]
        return {
            "lift_ds": self.settings.model_dump(),
            "model_dtype": str(self.dtype).removeprefix("torch."),
            "num_processes": self.ranks.world_size,
            "num_prompts_truncated": self.texts.num_truncated,
            "num_batches_kept": self.batches.num_kept,
            "likelihoods": {
                "num_requests": len(errors),
                "num_exact_bounds": sum(error == 0 for error in errors),
                "mean_standard_error": sum(errors) / max(len(errors), 1),
                "largest_standard_error": max(errors, default=0.0),
            },
        }

    def apply_chat_template(self, chat_history: Messages, add_generation_prompt: bool = True) -> str:
        """Text of a chat; without a generation prompt its last message is the beginning of the answer."""
        return self.texts.render(chat_history, invite=add_generation_prompt)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The template that `apply_chat_template` uses; a ValueError where another one is asked for by name."""
        if isinstance(chat_template, str):
            raise ValueError(
                f"--apply_chat_template {chat_template}: give the flag alone, and chat_template={chat_template} in "
                "--model_args."
            )
        return self.tokenizer.chat_template if chat_template else None

    @property
    def tokenizer_name(self) -> str:
        """Names tokenizer, template and system text in the harness's cache of requests."""
        system = self.texts.chat_format.system or ""
        template = key_of(tuple(f"{self.tokenizer.chat_template or ''}{system}".encode()))
        return f"{self.name.replace('/', '__')}-{template:016x}"

    def set_cache_hook(self, cache_hook: CacheHook) -> None:
        """Takes the harness's cache of answers; of several processes each would have its own, and other requests."""
        if self.ranks.world_size > 1:
            raise ValueError(f"--use_cache: with one process only, here are {self.ranks.world_size}; leave it away.")
        super().set_cache_hook(cache_hook)

    def _bar(self, what: str) -> Bar:
        console = Console(stderr=True)
        is_silent = self.ranks.rank != 0 or not console.is_terminal
        return partial(track, description=what, console=console, transient=True, disable=is_silent)


@cache
def code_identity() -> str:
    """Names torch and this package as they are now: results of a version that was mended are not taken for new ones."""
    digest = hashlib.blake2b(torch.__version__.encode(), digest_size=16)
    for path in sorted(PACKAGE.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
