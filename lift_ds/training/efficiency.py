"""Which share of what the devices can do a step reached (MFU, model FLOPs utilisation).

    mfu = operations that the update needs / (seconds of the step x peak operations a second of all ranks' devices)

What is needed is `Arithmetic.training` of every document; the scoring pass and recomputation do not count, their time
does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PretrainedConfig

from lift_ds.config.run import RunConfig
from lift_ds.planning.flops import Arithmetic, peak_flops
from lift_ds.ranks.shares import Ranks

TERA = 1e12


@dataclass(frozen=True)
class Efficiency:
    """What a step's MFU follows from.

    Args:
        arithmetic: The model's; `None` where it is not known.
        peak: Operations a second of all ranks' devices; `None` where one of them is not known.
    """

    arithmetic: Arithmetic | None
    peak: float | None

    @staticmethod
    def of(run: RunConfig, config: PretrainedConfig, ranks: Ranks) -> Efficiency:
        """Of a run's model and devices; a collective."""
        arithmetic = None
        with suppress(ValueError):  # a family of one's own: it trains all the same
            arithmetic = Arithmetic.of(config, run.lora.rank, tuple(run.lora.targets))
        name = torch.cuda.get_device_name(ranks.device) if ranks.device.type == "cuda" else ranks.device.type
        own = peak_flops(name) if run.model.peak_tflops is None else run.model.peak_tflops * TERA
        total = float(ranks.all_reduce(torch.tensor([math.nan if own is None else own], dtype=torch.float64)))
        return Efficiency(arithmetic, None if math.isnan(total) else total)

    def measured(self, record: Mapping[str, Any]) -> dict[str, float | None]:
        """`needed_tflop` and `mfu` of a step's record."""
        if self.arithmetic is None:
            return {"needed_tflop": None, "mfu": None}
        counts = (record["num_input_tokens"], record["num_attention_pairs"], record["num_learned"])
        needed = self.arithmetic.training_of_all(*counts)
        mfu = None if self.peak is None else needed / (record["seconds"] * self.peak)
        return {"needed_tflop": needed / TERA, "mfu": mfu}
