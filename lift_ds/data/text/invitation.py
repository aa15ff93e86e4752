"""The header with which a chat template invites the assistant's turn."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase


def find_invitation(tokenizer: PreTrainedTokenizerBase, template: str | None = None) -> str:
    """The header that a template appends to invite the assistant's turn.

    Some templates (LLaDA's) append it always, whatever `add_generation_prompt` says. It is then what follows the end
    of turn after the last message; the end of turn is what precedes the known header of a user's turn.
    """

    def render(roles: str, invite: bool) -> str:
        names = {"u": "user", "a": "assistant"}
        turns = [{"role": names[role], "content": f"<{turn}>"} for turn, role in enumerate(roles)]
        return str(
            tokenizer.apply_chat_template(turns, chat_template=template, tokenize=False, add_generation_prompt=invite)
        )

    invited, plain = render("u", True), render("u", False)
    if invited != plain:
        return invited[len(plain) :]
    after_user = invited.split("<0>")[1]
    user_to_assistant = render("ua", False).split("<0>")[1].split("<1>")[0]
    if after_user != user_to_assistant:
        return ""
    after_answer_then_user = render("uau", False).split("<1>")[1].split("<2>")[0]
    start_then_user = invited.split("<0>")[0]
    end_of_turn = common_prefix_tokens(tokenizer, after_user, after_answer_then_user, start_then_user)
    return after_user[len(end_of_turn) :]


def common_prefix_tokens(tokenizer: PreTrainedTokenizerBase, end_and_invite: str, end_and_user: str, start: str) -> str:
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
    assert end_and_invite.startswith(end_of_turn), (end_and_invite, end_of_turn)
    return end_of_turn
