"""A run's end: its last or best checkpoint as a Hugging Face folder, read again and compared with what was trained."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path

import torch

from lift_ds.export.adapters import convert_adapters
from lift_ds.export.convert import ConversionOptions, prepare_conversion
from lift_ds.export.verify import verify_export
from lift_ds.models.weights import load_pretrained
from lift_ds.storage.manifest import BEST, LATEST, pointed

from .engine import Engine
from .inputs import Prepared
from .summary import print_summary

FLOAT32_TOLERANCE = 1e-5
BF16_TOLERANCE = 5e-2


@dataclass(frozen=True)
class FinalExport:
    """The export at the end of a run."""

    prepared: Prepared
    engine: Engine
    is_bf16: bool
    checkpoints: Path

    def write(self, logits: torch.Tensor | None) -> None:
        """Writes, reloads and compares the export with `probe_logits`, and prints the summary; for one rank to do.

        Raises:
            RuntimeError: No checkpoint is the best one, which is to be exported, as none had a finite value; or the
                export's logits differ from the trained model's by more than rounding explains.
        """
        run, output = self.prepared.run, self.checkpoints.parent
        newest = pointed(self.checkpoints / LATEST)
        best = self._best_checkpoint()
        chosen = best if best is not None and run.checkpoint.export == "best" else newest
        files = {"run folder": output, "checkpoint": newest} | ({} if best is None else {"best": best})
        files["export"] = _free_name(output / "export")
        conversion = prepare_conversion(chosen, ConversionOptions())
        conversion.write(files["export"])
        if run.lora.rank:
            files["adapters"] = _free_name(output / "adapters")
            convert_adapters(chosen, files["adapters"])
        if chosen != newest:
            verify_export(conversion, files["export"])
            reloaded = f"every tensor and the logits of the export are those of {chosen.name}"
        else:
            difference = "not compared" if logits is None else self._compare(files["export"], logits)
            reloaded = f"largest difference of the export's logits from the trained model's: {difference}"
        print_summary(output, files)
        print(f"reloaded       {reloaded}")

    def _best_checkpoint(self) -> Path | None:
        settings, pointer = self.prepared.run.checkpoint, self.checkpoints / BEST
        if settings.best_by == "none":
            return None
        if not pointer.is_file() and settings.export == "best":
            raise RuntimeError(
                f"no checkpoint is the best: none had a finite {settings.best_by}. "
                f"tools/zero_to_hf.py {self.checkpoints.parent} exports the last one."
            )
        return pointed(pointer) if pointer.is_file() else None

    def probe_logits(self) -> torch.Tensor | None:
        """The trained model's logits (1, L, V) of one fully masked response, float32 on the CPU; every rank calls it.

        `None` where there is no held-out document, and on all ranks but 0, which compares them.
        """
        if not self.prepared.data.held_out:
            return None
        with self.engine.evaluating() as model:
            hidden = model.encode(self._probe_ids())
            if self.engine.rank == 0:
                return model.head(hidden).cpu().float()
            model.head(hidden[:, :1])  # for rank 0 to gather the matrix
            return None

    def _probe_ids(self) -> torch.Tensor:
        document = self.prepared.data.held_out[0]
        ids, response_mask = (torch.from_numpy(part)[None] for part in (document.ids, document.response_mask))
        return ids.masked_fill(response_mask, self.prepared.config.mask_token_id).to(self.engine.device)

    def _compare(self, export: Path, logits: torch.Tensor) -> str:
        model, _ = load_pretrained(export)
        torch.nn.Module.to(model, device=self.engine.device)
        with torch.no_grad():
            reloaded = model(input_ids=self._probe_ids()).logits.float().cpu()
        difference = float((reloaded - logits).abs().max() / logits.abs().max())
        tolerance = BF16_TOLERANCE if self.is_bf16 else FLOAT32_TOLERANCE
        if difference > tolerance:
            raise RuntimeError(
                f"{export}: logits differ by {difference:.1e} of the largest; at most {tolerance} is expected."
            )
        return f"{difference:.1e}"


def _free_name(path: Path) -> Path:
    candidates = chain([path], (path.with_name(f"{path.name}-{number}") for number in count(2)))
    return next(candidate for candidate in candidates if not candidate.exists())
