"""The chat format of a run, and what the model that it begins from was taught instead."""

from __future__ import annotations

from lift_ds.data.text.chat_format import KEYS, ChatFormat, format_of_settings, read_format, template_text
from lift_ds.data.text.prepared import folder_of, read_prepared

from .inputs import Prepared


def chat_format_of(prepared: Prepared) -> ChatFormat:
    """How a run's chats become tokens.

    Raises:
        ValueError: What stands beside tokens that were made before is damaged.
        ConnectionError: A server did not answer.
    """
    reader, data = prepared.data.reader, prepared.run.data.model_dump()
    template = template_text(reader.encoder.tokenizer)
    data["clock"] = reader.encoder.renderer.clock.isoformat()
    for group, mapping in zip(reader.manifest.groups, reader.columns, strict=True):
        if mapping.input_ids is not None:  # tokens that were made before, in the format that stands beside them
            made = read_prepared(folder_of(reader.manifest.chunks[group.first_chunk].source)) or {"settings": {}}
            data |= {
                key.removeprefix("data."): value for key, value in made["settings"].items() if key in KEYS.values()
            }
    columns = [mapping.named() for mapping in reader.columns]
    return format_of_settings(data, columns, template)


def describe_other_format(prepared: Prepared) -> list[str]:
    """A line where the model was trained in another format than this run trains it in; `data.*` decides.

    Raises:
        ValueError: The model's format cannot be read.
    """
    taught = read_format(prepared.folder)
    differ = [] if taught is None else taught.differences(chat_format_of(prepared), "clock")
    if not differ:
        return []
    before, now = (", ".join(f"{entry[0]}={entry[side]}" for entry in differ) for side in (1, 2))
    return [f"{prepared.folder} was trained with {before}; this run: {now}"]
