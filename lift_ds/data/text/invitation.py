"""The header with which a chat template invites the assistant's turn."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

CANNOT = "the chat template cannot render a plain chat"
REMEDY = "name one that can: data.chat_template=FILE"


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
    end_of_turn = end_before(tokenizer, after_answer_then_user, start_then_user)
    return after_user[len(end_of_turn) :] if after_user.startswith(end_of_turn) else ""


def end_before(tokenizer: PreTrainedTokenizerBase, end_and_user: str, start: str) -> str:
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
