#!/bin/bash
# Writes the runs of this folder anew: make.sh CHECKOUT FOLDER
#   CHECKOUT  this repository at commit 857c343; an environment with its constraints.txt is on PATH
#   FOLDER    what to make, like this folder; it must not exist
set -euo pipefail
checkout=$(realpath "$1")
mkdir "$2" && cd "$2"

export PYTHONPATH=$checkout DS_ACCELERATOR=cpu OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1
# The same instructions on every x86 processor since 2013, so that a later resume can be compared bit for bit.
export ATEN_CPU_CAPABILITY=avx2 MKL_CBWR=COMPATIBLE ONEDNN_MAX_CPU_ISA=AVX2

# On a processor without float16, DeepSpeed 0.19.8 took the float32 that 857c343 asked for under ZeRO-3 for bf16. Told
# that this one has it, it computes in float32, as on the others.
cat > train.py <<'END'
from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator
from lift_ds.cli.train import main

CPU_Accelerator.is_fp16_supported = lambda self: True
main()
END

train() {
  deepspeed --num_gpus 2 --master_port 29857 train.py \
    --deepspeed "$checkout/ds_configs/zero3.json" --model model --data rows.jsonl "$@"
}

# 48 short rows of the built-in tasks, and the base's tokenizer with a model of 34,000 weights.
python - "$checkout" <<'END'
import json, shutil, sys
from pathlib import Path
from lift_ds.config import SourceConfig
from lift_ds.data.sources import Manifest, Retry, open_groups

base = Path(sys.argv[1]) / "lift_ds" / "assets" / "base"
rows = Manifest(open_groups([SourceConfig(path="builtin:reasoning")], 0, "train", 48, Retry()))
lines = [json.dumps(row.values) + "\n" for chunk in range(len(rows.chunks)) for row in rows.read(chunk)]
Path("rows.jsonl").write_text("".join(lines))
Path("model").mkdir()
for path in base.iterdir():
    if path.suffix != ".safetensors":
        shutil.copy(path, Path("model") / path.name)
config = json.loads((base / "config.json").read_text())
config |= {"d_model": 8, "n_layers": 2, "n_heads": 2, "n_kv_heads": 2, "mlp_hidden_size": 16}
Path("model/config.json").write_text(json.dumps(config, indent=2) + "\n")
END
train --output new_weights model.from_scratch=true optim.steps=1 optim.lr=1e-9 eval.rows=0
cp new_weights/export/model.safetensors model/

common=(optim.steps=6 optim.global_batch=4 optim.warmup_ratio=0.2 checkpoint.save_every=3 eval.every=0 eval.rows=4
  data.lanes=2)
# So high a rate that the checkpoint of step 3 stays the best one.
train --output full "${common[@]}" objective.method=vanilla optim.lr=0.2 optim.schedule=constant seed=1 \
  checkpoint.best_by=heldout_loss difficulty.enabled=false
lora=(optim.lr=1e-2 lora.rank=4 lora.alpha=8 lora.dropout=0.2)
train --output lora "${common[@]}" "${lora[@]}" objective.method=vanilla data.packing=best_fit data.pack_length=256 \
  difficulty.enabled=false
# With adapters too, so that the folder stays small.
train --output buffers "${common[@]}" "${lora[@]}" objective.method=lift3 objective.scoring=buffer \
  objective.warm_start_steps=2 objective.refresh_share=0.5 difficulty.sync_every=2 difficulty.decay=0.9

# What is left of each run is what an interruption after step 3 leaves; what the rest of it computed is expected. The
# files that every checkpoint has alike are stored once.
python - <<'END'
import json, shutil
from pathlib import Path

for run in map(Path, ("full", "lora", "buffers")):
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    records = [json.loads(line) for line in lines]
    later = [record for record in records if record["step"] > 3]
    steps = [record for record in later if record["kind"] == "step"]
    expected = {str(record["step"]): [record["loss"], record["grad_norm"]] for record in steps}
    (heldout,) = (record["mean"] for record in later if record["kind"] == "heldout")
    (run / "expected.json").write_text(json.dumps({"steps": expected, "heldout_loss": heldout}, indent=1) + "\n")
    kept = [line for line, record in zip(lines, records, strict=True) if record["step"] <= 3]
    (run / "metrics.jsonl").write_text("".join(kept))
    log = (run / "log.txt").read_text().splitlines(keepends=True)
    (run / "log.txt").write_text("".join(line for line in log if " step 6: " not in line))
    checkpoints = run / "checkpoints"
    assert not (checkpoints / "best").is_file() or (checkpoints / "best").read_text().startswith("step-000003\n")
    (checkpoints / "latest").write_text("step-000003\n")
    for path in (checkpoints / "step-000006", run / "export", run / "adapters", run / "index"):
        shutil.rmtree(path, ignore_errors=True)
    (checkpoints / "step-000003" / "hf" / "tokenizer.json").unlink()
    for name in ("zero_to_fp32", "zero_to_torch"):  # DeepSpeed's; .txt, because they are no code of this project
        shutil.move(checkpoints / "step-000003" / f"{name}.py", f"{name}.txt")
END
rm -r new_weights train.py
