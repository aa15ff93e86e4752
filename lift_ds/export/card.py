"""The model card of an exported folder: facts of the run, and how to load the folder."""

from __future__ import annotations

import html
from typing import Any

from lift_ds.data.text.chat_format import ChatFormat

LOADING = """## Load

```python
from transformers import AutoModel, AutoTokenizer

model = AutoModel.from_pretrained("FOLDER", trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained("FOLDER", trust_remote_code=True)
```
"""


def model_card(summary: dict[str, Any], run: dict[str, Any] | None, chat_format: ChatFormat | None = None) -> str:
    """The card's text, by facts of the conversion, and of the run that wrote the checkpoint, where it was ours."""
    facts = {
        "parameters": f"{summary['num_parameters']:,}",
        "weights": f"{summary['dtype']}, from the float32 master weights",
        "checkpoint": f"step {summary['step']}, ZeRO-{summary['zero_stage']} on {summary['world_size']} ranks",
    }
    if steps := summary.get("averaged_steps"):
        facts["mean of"] = f"{len(steps.split(', '))} checkpoints (steps {steps})"
    title, tags = "Weights of a ZeRO checkpoint", ""
    if run is not None:
        title, tags = "A masked diffusion language model, fine-tuned with LIFT", "tags:\n- masked-diffusion\n- lift\n"
        facts |= _facts_of_run(run)
    if chat_format is not None:
        facts |= _facts_of_format(chat_format)
    rows = "\n".join(f"| {name} | {value} |" for name, value in facts.items())
    return f"---\nlibrary_name: transformers\n{tags}---\n\n# {title}\n\n| | |\n| --- | --- |\n{rows}\n\n{LOADING}"


def _facts_of_format(chat_format: ChatFormat) -> dict[str, str]:
    template = "none" if chat_format.template is None else "`chat_template.jinja`, or the tokenizer's own"
    multiple = f", to a multiple of {chat_format.pad_to_multiple} tokens" if chat_format.pad_targets == "all" else ""
    facts = {"chat template": template, "end tokens": chat_format.pad_targets + multiple}
    known = {"system text": chat_format.system, "answers": chat_format.wrapping, "clock": chat_format.clock}
    return facts | {name: _cell(text) for name, text in known.items() if text is not None}


def _cell(text: str) -> str:
    return "<br>".join(html.escape(text).replace("|", "\\|").splitlines())


def _facts_of_run(run: dict[str, Any]) -> dict[str, str]:
    config = run["run"]
    optim, objective, lora, data = (config[section] for section in ("optim", "objective", "lora", "data"))
    sources = data["sources"] or [{"path": data["path"]}]
    adapters = {"adapters": f"rank {lora['rank']}, alpha {lora['alpha']:g}, merged"} if lora["rank"] else {}
    return {
        "base": str(config["model"]["path"]),
        "data": ", ".join(str(source["path"]) for source in sources),
        "objective": objective["method"] + (f", scoring {objective['scoring']}" if "scoring" in objective else ""),
        "optimizer": f"AdamW, lr {optim['lr']:g}, {optim['schedule']}, {optim['steps']} steps of "
        f"{optim['global_batch']} documents",
        "seed": str(config["seed"]),
        **adapters,
    }
