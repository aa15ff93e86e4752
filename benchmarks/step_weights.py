"""How unequally a step's tokens weigh: how many of equal weight would average as well, and the heaviest one's share.

    python benchmarks/step_weights.py --json step_weights.json

One rank takes steps of the built-in base on built-in rows, 64 documents a step, for each way of drawing and weighing
tokens, on the same rows; nothing is learned (learning rate 0), so that all see the same model. Of each step

    effective share    (sum w)^2 / (R sum w^2) over its R learned tokens
    largest share      max w / sum w

and of the steps the medians, and the largest share that came up. No baseline but `vanilla`, the first row.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from whole_steps import WholeSteps

from lift_ds.config.run import RunConfig
from lift_ds.config.training import OptimConfig
from lift_ds.data.batch import Document
from lift_ds.models.attention import attention_kernels
from lift_ds.objectives import objective_settings
from lift_ds.ranks.launch import read_launch
from lift_ds.ranks.running import leave
from lift_ds.storage.safetensors_folder import SafetensorsFolder
from lift_ds.training.engine import start_distributed
from lift_ds.training.inputs import Prepared, prepare

REPOSITORY = Path(__file__).resolve().parents[1]
ARMS: dict[str, dict[str, Any]] = {
    "vanilla": {"method": "vanilla"},
    "vanilla, iid levels": {"method": "vanilla", "t_sampling": "iid"},
    "vanilla, t_min=0.05": {"method": "vanilla", "t_min": 0.05},
    "vanilla, no 1/t": {"method": "vanilla", "time_scaling": False},
    "vanilla, complementary": {"method": "vanilla", "complementary": True},
    "LIFT-3": {"method": "lift3"},
    "LIFT-3, t_min=0.05": {"method": "lift3", "t_min": 0.05},
    "LIFT-3, complementary": {"method": "lift3", "complementary": True},
    "LIFT-3, CART x 1/t": {"method": "lift3", "token_weight": "cart"},
    "GIFT": {"method": "gift"},
}
BATCH = 64


def draw_rows(count: int) -> tuple[Prepared, list[Document]]:
    """The built-in base and rows of the built-in tasks, without fillers."""
    run = RunConfig.model_validate({"data": {"path": "builtin:reasoning", "check_rows": 0}, "eval": {"rows": 0}})
    prepared = prepare(run)
    return prepared, list(prepared.data.reader.by_sample_id(range(count)))


def main() -> None:
    """Measures every arm and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40, help="steps of an arm")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--quick", action="store_true", help="smoke test: nothing to be quoted")
    arguments = parser.parse_args()
    num_steps = 2 if arguments.quick else arguments.steps
    start_distributed(read_launch())
    prepared, rows = draw_rows(num_steps * BATCH)
    steps = WholeSteps(
        prepared.config,
        SafetensorsFolder(prepared.folder),
        REPOSITORY / "ds_configs" / "zero2_micro16.json",
        objective_settings(method="vanilla"),
        BATCH,
        has_bf16=False,
        optim=OptimConfig(lr=1e-30, global_batch=BATCH, weight_decay=0.0),
    )
    figures: dict[str, Any] = {}
    print("| | effective share | largest share | at most |\n| --- | --- | --- | --- |")
    with attention_kernels(steps.engine.root.kernel):
        for name, options in ARMS.items():
            steps.learn(objective_settings(**options))
            effective, largest = [], []
            for number in range(num_steps):
                steps.step(rows[number * BATCH : (number + 1) * BATCH], number)
                record = steps.record
                effective.append(record["effective_num_learned"] / record["num_learned"])
                largest.append(record["largest_weight_share"])
            middle, heaviest = statistics.median(effective), statistics.median(largest)
            print(f"| {name} | {middle:.3f} | {heaviest:.3f} | {max(largest):.3f} |", flush=True)
            key = name.lower().replace(",", "").replace("/", "_").replace("=", "_").replace(" ", "_").replace("-", "")
            figures |= {
                f"{key}_effective_share": middle,
                f"{key}_largest_share": heaviest,
                f"{key}_at_most": max(largest),
            }
    if arguments.quick:
        figures["quick"] = True
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")
    sys.stdout.flush()
    leave(0)


if __name__ == "__main__":
    main()
