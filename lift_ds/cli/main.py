"""`lift-ds VERB ...`: every command line under one name; a verb's module is imported when the verb is asked for."""

from __future__ import annotations

import difflib
import importlib
import sys

# verb: its module in this folder, and what it does
VERBS = {
    "train": ("train", "fine-tune a masked diffusion language model"),
    "supervise": ("supervise", "keep a run going: start it again after failures"),
    "watch": ("watch", "how runs are doing, live in the terminal"),
    "plan": ("plan", "say what a run will need, before its first step"),
    "prepare-data": ("prepare_data", "check all rows of a data set, and write its tokens"),
    "export": ("zero_to_hf", "a checkpoint as a Hugging Face folder"),
    "zero-to-hf": ("zero_to_hf", "the same as export"),
    "generate": ("generate", "answer prompts, or chat"),
    "evaluate": ("evaluate", "answer the problems of reasoning tasks, and score the answers"),
    "score": ("score", "score answers that exist already"),
    "lm-eval": ("lm_eval", "lm-evaluation-harness's own command, which knows the model lift_ds"),
    "learnability": ("learnability", "how surely common and rare tokens are predicted at each mask level"),
    "inspect-checkpoint": ("inspect_checkpoint", "what a checkpoint holds, and how two of them differ"),
    "average-checkpoints": ("average_checkpoints", "the mean of several checkpoints as a Hugging Face folder"),
    "reshard": ("reshard", "a checkpoint for another number of ranks"),
    "merge-lora": ("merge_lora", "a base model and LoRA adapters as one folder"),
    "make-diffusion-model": ("make_diffusion_model", "an autoregressive model as a masked diffusion model"),
}
USAGE = """usage: lift-ds VERB ...

{verbs}

`lift-ds VERB --help` explains a verb's flags. On several ranks:
    torchrun --nproc_per_node 2 -m lift_ds.cli.main train --deepspeed ds_configs/zero3.json ..."""


def main(argv: list[str] | None = None) -> None:
    """Entry point; exits as the verb's own command does, and with 2 where there is no such verb."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words and words[0].startswith("--local_rank="):  # DeepSpeed's launcher puts it first
        del words[0]
    if not words or words[0] in ("-h", "--help"):
        width = max(map(len, VERBS))
        print(USAGE.format(verbs="\n".join(f"  {verb:{width}}  {purpose}" for verb, (_, purpose) in VERBS.items())))
        return
    verb, *rest = words
    if verb not in VERBS:
        close = difflib.get_close_matches(verb, VERBS, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]}? " if close else ""
        print(f"error: lift-ds has no verb {verb!r}; {hint}`lift-ds --help` lists all", file=sys.stderr)
        sys.exit(2)
    sys.argv[0] = f"lift-ds {verb}"  # what the verb's help calls it
    importlib.import_module(f"lift_ds.cli.{VERBS[verb][0]}").main(rest)


if __name__ == "__main__":
    main()
