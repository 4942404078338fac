"""A prompt as a list of messages: checked, and as one text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from asyncrl.errors import DataError
from asyncrl.types import MESSAGE_ROLES

Message = dict[str, Any]

_LAST_ROLES = ("user", "tool")


def check_messages(place: str, value: Sequence[Any]) -> list[Message]:
    """The messages with their content as text; what is null in them is left out (parquet fills up with nulls).

    Args:
        place: file, line and column, for messages.

    Raises:
        DataError: no messages, one without role or text, an unknown role, or a last one that is not to be answered.
    """
    messages = [_message(f"{place}[{number}]", message) for number, message in enumerate(value)]
    if not messages:
        raise DataError(f"{place} is an empty list of messages")
    last = messages[-1]["role"]
    if last not in _LAST_ROLES:
        raise DataError(
            f"{place}: the last message has the role {last!r}; a prompt ends with what the model is to answer, a "
            "message of the user (or of a tool)"
        )
    return messages


def as_text(messages: Sequence[Message]) -> str:
    """The contents, a line break between them: what stands for the conversation where no template is applied."""
    return "\n".join(message["content"] for message in messages)


def _message(place: str, value: Any) -> Message:
    if not isinstance(value, dict) or "role" not in value or "content" not in value:
        found = ", ".join(value) if isinstance(value, dict) else type(value).__name__
        raise DataError(f"{place} must be an object with role and content, not {found}")
    message = {name: part for name, part in value.items() if part is not None}
    role = message.get("role")
    if role not in MESSAGE_ROLES:
        raise DataError(f"{place}: unknown role {role!r}; use one of {', '.join(MESSAGE_ROLES)}")
    message["content"] = _content(place, message)
    return message


def _content(place: str, message: Message) -> str:
    """Text, also when it is written as a list of text parts."""
    content = message.get("content", "")
    if isinstance(content, list):
        if not all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in content):
            raise DataError(f"{place}: content must be text; images and other parts are not supported")
        content = "".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise DataError(f"{place}: content must be text, not {type(content).__name__}")
    if not content.strip() and message["role"] != "assistant":
        raise DataError(f"{place}: the message of the {message['role']} is empty")
    return content
