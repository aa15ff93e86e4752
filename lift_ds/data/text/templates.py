"""Chat templates by name, and which one a tokenizer is used with."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_HEADERS = "<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>"
_ANSWER_HEADER = "<|start_header_id|>assistant<|end_header_id|>\n\n"

TEMPLATES: dict[str, str] = {
    "llada": "{{ bos_token }}{% for message in messages %}{{ '" + _HEADERS + "' }}{% endfor %}"
    "{{ '" + _ANSWER_HEADER + "' }}",
    "llama3": "{{ bos_token }}{% for message in messages %}{{ '" + _HEADERS + "' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '" + _ANSWER_HEADER + "' }}{% endif %}",
    "chatml": "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
}
CONTROL_TOKEN = re.compile(r"<\|\w+\|>")


def use_template(tokenizer: PreTrainedTokenizerBase, chat_template: str | None) -> None:
    """Gives the tokenizer the configured template; its own one stays where none is configured.

    Args:
        tokenizer: Gets the template as its `chat_template`.
        chat_template: Name in `TEMPLATES`, path of a jinja file, or `None`.

    Raises:
        ValueError: It is neither a name nor a file, or a named template writes a token that the tokenizer does not
            have, so that it would be spelled out.
    """
    if chat_template is None:
        return
    if chat_template not in TEMPLATES:
        tokenizer.chat_template = read_template(chat_template)
        return
    source = TEMPLATES[chat_template]
    known = tokenizer.get_vocab()
    unknown = sorted(set(CONTROL_TOKEN.findall(source)) - set(known))
    if unknown:
        raise ValueError(
            f"data.chat_template={chat_template}: the tokenizer has no {', '.join(unknown)}, so they would be spelled "
            "out. Take the template that the model was made with, or write it to a jinja file and name that."
        )
    tokenizer.chat_template = source


def read_template(path: str) -> str:
    """Text of a jinja file.

    Raises:
        ValueError: There is no such file, or it is empty or no text.
    """
    allowed = f"allowed: {', '.join(TEMPLATES)}, or the path of a jinja file"
    if not Path(path).is_file():
        raise ValueError(f"data.chat_template={path!r} is neither a name nor a file; {allowed}.")
    try:
        source = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"data.chat_template={path!r}: {error}; {allowed}.") from error
    if not source.strip():
        raise ValueError(f"data.chat_template={path!r} is empty; {allowed}.")
    return source
