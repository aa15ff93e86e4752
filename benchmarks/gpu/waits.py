"""How often the host waits for the device in a micro-batch: in this package's passes, and in DeepSpeed's."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import throughput
import torch
from correctness import REPOSITORY, draw, noised_batch, small_config, step_root
from whole_steps import DeviceWeights, WholeSteps

from lift_ds.objectives import objective_settings

OBJECTIVES: tuple[tuple[str, dict[str, Any]], ...] = (
    *((method, {}) for method in ("vanilla", "lift2", "lift3", "easy", "hard", "random", "gift")),
    *(("lift3", {"scoring": scoring}) for scoring in ("approximate", "buffer", "memory")),
    ("vanilla", {"complementary": True}),
)


def sync(device: torch.device, is_quick: bool) -> dict[str, float]:
    """How often the host waits for the device from noise to the end of backward: in our passes, and in DeepSpeed's.

    Ours may wait once, under GIFT. DeepSpeed's are counted in one micro-batch under ZeRO-2 and ZeRO-3, a line each.
    """
    figures = dict.fromkeys(("waits", "waits_gift"), 0.0)
    documents = draw([97, 128, 250])
    for method, options in OBJECTIVES:
        for is_packed in (False, True):
            root = step_root(device, torch.float32, objective_settings(method, **options), is_packed, lora_dropout=0.1)
            batch, scale = noised_batch(documents, root.objective.settings), torch.full((len(documents),), 1e-2)
            for _ in range(2):  # handles and workspaces are made in the first
                with waiting(device) as places:
                    root(batch, scale, (0, 0), device)[0].backward()
            name = "waits_gift" if method == "gift" else "waits"
            figures[name] = max(figures[name], float(len(places)))
            figures |= {f"{method}: {place}": float(count) for place, count in Counter(places).items()}
    throughput.start(device)
    for stage in (2, 3):
        settings, config = objective_settings(method="lift3"), small_config()
        engine_json = REPOSITORY / "ds_configs" / f"zero{stage}.json"
        steps = WholeSteps(
            config, DeviceWeights(config), engine_json, settings, len(documents), has_bf16=device.type == "cuda"
        )
        batch = noised_batch(documents, settings)
        for _ in range(3):  # ZeRO-3 records the order of its parameters in the first
            with waiting(device) as places:
                steps.engine.forward_backward(batch, torch.full((len(documents),), 1e-2), (0, 0))
            steps.engine.update()
        figures[f"waits_zero{stage}"] = float(len(places))
        figures |= {f"zero{stage}: {place}": float(count) for place, count in Counter(places).items()}
    return figures


@contextmanager
def waiting(device: torch.device) -> Iterator[list[str]]:
    """Places, one for each time that the host waits for the GPU inside; torch does not tell where it is a CPU."""
    places: list[str] = []
    if device.type != "cuda":
        yield places
        return
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield places
        finally:
            torch.cuda.set_sync_debug_mode("default")
    places += [f"{Path(each.filename).name}:{each.lineno}" for each in caught if "synchroniz" in str(each.message)]
