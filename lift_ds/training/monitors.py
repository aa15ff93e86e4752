"""The monitors that DeepSpeed's JSON switches on: they get the run's settings once, and numbers of every step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lift_ds.storage.run_record import write_run

SCALARS = ("loss", "grad_norm", "lr", "tokens_per_second", "peak_memory_gib", "mfu")


class Monitors:
    """What writes to tensorboard, wandb and CSV files, through DeepSpeed's `MonitorMaster`."""

    def __init__(self, master: Any) -> None:
        self.master = master

    def write_settings(self, record: dict[str, Any]) -> None:
        """Passes on what `run.json` holds; the rank that monitors calls it before the first step."""
        master = self.master
        if master.wandb_monitor is not None:
            import wandb

            wandb.config.update(record, allow_val_change=True)  # a run that goes on may have other values
        if master.tb_monitor is not None:
            indented = json.dumps(record, indent=2).replace("\n", "\n    ")
            master.tb_monitor.summary_writer.add_text("run.json", f"    {indented}")
        if master.csv_monitor is not None:
            write_run(Path(master.csv_monitor.log_dir), record)

    def write_step(self, record: dict[str, Any], step: int) -> None:
        """Passes on a step's numbers, where they are known."""
        if self.master.enabled:
            known = [(f"train/{name}", record[name], step) for name in SCALARS if record[name] is not None]
            self.master.write_events(known)
