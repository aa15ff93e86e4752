"""Chat templates: by name, and what they do with time, with an answer's header and with the arguments of calls."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .objects import with_function
from .turns import Message

if TYPE_CHECKING:  # tools that write a chat format read no tokenizer
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
CLOCK = re.compile(r"\bstrftime_now\s*\(")
PLAIN_CALL = re.compile(r"\bstrftime_now\s*\(\s*(?:format\s*=\s*)?(?:'([^'\\]*)'|\"([^\"\\]*)\")\s*\)")
CHANCE = re.compile(r"\|\s*random\b|\blipsum\s*\(")
CANNOT = "the chat template cannot render a plain chat"
REMEDY = "name one that can: data.chat_template=FILE"
WORDS = {"wordofkey": "wordofvalue"}
FUNCTION = {"name": "wordofname", "arguments": WORDS}
PROBE: tuple[Message, Message] = (
    {"role": "user", "content": "a"},
    # Mistral's templates want ids of nine characters
    {"role": "assistant", "content": "", "tool_calls": [{"id": "abcdefgh1", "type": "function", "function": FUNCTION}]},
)


def use_template(tokenizer: PreTrainedTokenizerBase, chat_template: str | None) -> None:
    """Gives the tokenizer a template of `TEMPLATES` or of a jinja file; its own one stays where none is configured.

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


def has_clock(template: str) -> bool:
    """Whether a template asks for the time."""
    return CLOCK.search(template) is not None


def stop_clock(template: str, clock: datetime) -> str:
    """The template with what its clock shows at one time in place of the clock.

    Raises:
        ValueError: It asks for the time in a format that it makes itself, or draws by chance.
    """
    if CHANCE.search(template):
        raise ValueError(
            "the chat template draws by chance (random, lipsum), so the same row would have other tokens each time; "
            "take that out: data.chat_template=FILE."
        )
    stopped = PLAIN_CALL.sub(
        lambda call: json.dumps(clock.strftime(call[1] if call[1] is not None else call[2]), ensure_ascii=False),
        template,
    )
    if has_clock(stopped):
        raise ValueError(
            "the chat template asks for the time in a format that is not written out; write it as "
            "strftime_now('%d %b %Y'): data.chat_template=FILE."
        )
    return stopped


def find_invitation(tokenizer: PreTrainedTokenizerBase, template: str | None = None) -> str:
    """The header that a template appends to invite the assistant's turn.

    Some templates (LLaDA's) append it always, whatever `add_generation_prompt` says. It is then what follows the end
    of turn after the last message; the end of turn is what precedes the known header of a user's turn. Others
    (Mistral's) have no header: what closes a user's turn invites the answer.

    Raises:
        ValueError: The template cannot render a plain chat, or leaves its texts out.
    """

    def render(roles: str, invite: bool) -> str:
        names = {"u": "user", "a": "assistant"}
        turns = [{"role": names[role], "content": f"<{turn}>"} for turn, role in enumerate(roles)]
        try:
            text = str(
                tokenizer.apply_chat_template(
                    turns, chat_template=template, tokenize=False, add_generation_prompt=invite
                )
            )
        except Exception as error:  # templates raise what they like
            raise ValueError(f"{CANNOT}: {type(error).__name__}: {error}; {REMEDY}") from error
        if "<0>" not in text:
            raise ValueError(f"{CANNOT}: it leaves out a user's text; {REMEDY}")
        return text

    invited, plain = render("u", True), render("u", False)
    if invited != plain:
        return invited[len(plain) :]
    after_user = invited.split("<0>")[1]
    user_to_assistant = render("ua", False).split("<0>")[1].split("<1>")[0]
    if after_user != user_to_assistant:
        return ""
    after_answer_then_user = render("uau", False).split("<1>")[1].split("<2>")[0]
    start_then_user = invited.split("<0>")[0]
    end_of_turn = _end_before(tokenizer, after_answer_then_user, start_then_user)
    return after_user[len(end_of_turn) :] if after_user.startswith(end_of_turn) else ""


def _end_before(tokenizer: PreTrainedTokenizerBase, end_and_user: str, start: str) -> str:
    """The end of turn: `end_and_user` without the user's header, which it shares, token by token, with `start`."""
    end_ids = tokenizer(end_and_user, add_special_tokens=False).input_ids
    start_ids = tokenizer(start, add_special_tokens=False).input_ids
    while end_ids and start_ids and end_ids[-1] == start_ids[-1]:
        end_ids.pop()
        start_ids.pop()
    for length in range(len(end_and_user) + 1):  # decoding would lose what a tokenizer normalises
        end_of_turn = end_and_user[:length]
        if tokenizer(end_of_turn, add_special_tokens=False).input_ids == end_ids:
            break
    return end_of_turn


def needs_text(render: Callable[[Sequence[Message]], str]) -> bool:
    """Whether a template raises of arguments that are an object, or writes them as Python does, and takes JSON text."""

    def is_written(messages: Sequence[Message]) -> bool:
        try:
            text = render(messages)
        except Exception:  # templates raise what they like
            return False
        return "wordofname" in text and "wordofvalue" in text and str(WORDS) not in text

    return not is_written(PROBE) and is_written([with_text(message) for message in PROBE])


def with_text(message: Message) -> Message:
    """A message with its calls' arguments as JSON text."""
    if "tool_calls" not in message:
        return message
    return message | {"tool_calls": [with_function(call, _as_text) for call in message["tool_calls"]]}


def _as_text(function: dict[str, Any]) -> dict[str, Any]:
    return function | {"arguments": json.dumps(function["arguments"], ensure_ascii=False)}
