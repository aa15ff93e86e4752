"""The model card of an exported folder: facts of the run, and how to load the folder."""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

import yaml

from lift_ds.data.sources.card import CARD_NAME, FRONT_MATTER
from lift_ds.data.text.chat_format import ChatFormat
from lift_ds.text_files import load_yaml

LICENCE_KEYS = ("license", "license_name", "license_link")
HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+")

LOADING = """## Load

```python
from transformers import AutoModel, AutoTokenizer

model = AutoModel.from_pretrained("FOLDER", trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained("FOLDER", trust_remote_code=True)
```
"""


def model_card(
    summary: dict[str, Any], run: dict[str, Any] | None, chat_format: ChatFormat | None, base: dict[str, Any]
) -> str:
    """The card's text.

    Args:
        summary: Facts of the conversion.
        run: Of the run that wrote the checkpoint, where it was ours.
        chat_format: How its chats became tokens, where that is known.
        base: What the base's own card says, see `read_metadata`.
    """
    facts = {
        "parameters": f"{summary['num_parameters']:,}",
        "weights": f"{summary['dtype']}, from the float32 master weights",
        "checkpoint": f"step {summary['step']}, ZeRO-{summary['zero_stage']} on {summary['world_size']} ranks",
    }
    if steps := summary.get("averaged_steps"):
        facts["mean of"] = f"{len(steps.split(', '))} checkpoints (steps {steps})"
    title, metadata = "Weights of a ZeRO checkpoint", {"library_name": "transformers"} | inherited(base, run)
    if run is not None:
        title = "A masked diffusion language model, fine-tuned with LIFT"
        metadata["tags"] = ["masked-diffusion", "lift"]
        facts |= _facts_of_run(run)
    facts["licence"] = _licence_line(metadata)
    if chat_format is not None:
        facts |= _facts_of_format(chat_format)
    rows = "\n".join(f"| {name} | {value} |" for name, value in facts.items())
    head = yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)
    return f"---\n{head}---\n\n# {title}\n\n| | |\n| --- | --- |\n{rows}\n\n{LOADING}"


def read_metadata(folder: Path) -> dict[str, Any]:
    """What the card of a model's folder says in its front matter; nothing where there is none that can be read."""
    path = folder / CARD_NAME
    if not path.is_file():
        return {}
    found = FRONT_MATTER.match(path.read_text(encoding="utf-8", errors="replace"))
    try:
        loaded = load_yaml(found[1]) if found else {}
    except (ValueError, yaml.YAMLError):  # people's own: an export does not end for it, and says "unknown"
        return {}
    return loaded if isinstance(loaded, dict) else {}


def inherited(base: dict[str, Any], run: dict[str, Any] | None) -> dict[str, Any]:
    """License and base of a fine-tuned model, as the hub reads them: the base's license, `unknown` where it says none.

    The base is named where a run began from a hub name, or from a folder whose own card names one. Weights that began
    anew have neither.
    """
    model = {} if run is None else run["run"]["model"]
    if model.get("from_scratch"):
        return {}
    licence = {key: base[key] for key in LICENCE_KEYS if base.get(key)}
    path = str(model.get("path", ""))
    is_hub_name = HUB_NAME.fullmatch(path) and not Path(path).exists()
    named = path if is_hub_name else base.get("base_model")
    return ({"license": "unknown"} | licence) | ({"base_model": named} if named else {})


def _licence_line(metadata: dict[str, Any]) -> str:
    if "license" not in metadata:
        return "none is set: the weights began anew"
    if metadata["license"] == "unknown":
        return "unknown: the base came without a card that names one; look it up before you pass this on"
    return f"{_cell(str(metadata.get('license_name', metadata['license'])))}, the base's"


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
