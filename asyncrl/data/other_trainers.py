"""`asyncrl prepare --from verl | trl`: data sets of other trainers, with the columns `prompt` and `answer`.

Both can be read as they are, too, by `data.prompt_column` and `data.answer_column`, but for TRL's conversations that
hold the answer as their last message.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from asyncrl.data.file_formats import Record, read_records
from asyncrl.data.splits import Split, find_split, split_files, split_of
from asyncrl.errors import DataError

_TRL_ANSWERS = ("answer", "solution", "ground_truth", "completion")


def read_foreign(layout: str, source: Path) -> dict[Split, list[Record]]:
    """The records by split, each with `prompt`, `answer` and the row's other columns.

    Args:
        layout: one of LAYOUTS.
        source: a file, which is one split, by its name (else train), or a folder of splits.

    Raises:
        DataError: nothing there, or a row that does not have that layout.
    """
    convert = LAYOUTS[layout]
    if source.is_dir():
        files: dict[Split, list[Path]] = {"train": split_files(source, "train")}
        if held_out := find_split(source, "test"):
            files["test"] = held_out
    else:
        files = {split_of(source): split_files(source, "train")}
    return {
        split: [convert(place, record) for file in found for place, record in read_records(file, None)]
        for split, found in files.items()
    }


def _from_verl(place: str, record: Record) -> Record:
    """`reward_model.ground_truth` becomes the answer."""
    reward_model = record.get("reward_model")
    if "prompt" not in record or not isinstance(reward_model, dict) or "ground_truth" not in reward_model:
        raise DataError(
            f"{place}: verl's layout has the columns prompt and reward_model.ground_truth; it has {', '.join(record)}"
        )
    others = {name: value for name, value in record.items() if name not in ("prompt", "reward_model", "answer")}
    return {"prompt": record["prompt"], "answer": reward_model["ground_truth"], **others}


def _from_trl(place: str, record: Record) -> Record:
    """The prompt, or the messages up to the last, which is the answer where no column has one."""
    others = {name: value for name, value in record.items() if name not in ("prompt", "messages", *_TRL_ANSWERS)}
    answer = next((record[name] for name in _TRL_ANSWERS if record.get(name) is not None), None)
    prompt: Any = record.get("prompt")
    messages = record.get("messages")
    if prompt is None and isinstance(messages, list) and messages:
        ends_in_answer = isinstance(messages[-1], dict) and messages[-1].get("role") == "assistant"
        prompt = messages[:-1] if ends_in_answer else messages
        if answer is None and ends_in_answer:
            answer = messages[-1].get("content")
    if isinstance(answer, list) and answer and isinstance(answer[-1], dict):
        answer = answer[-1].get("content")  # a completion that is a conversation of its own
    if prompt is None or answer is None:
        raise DataError(
            f"{place}: TRL's layout has a prompt and one of {', '.join(_TRL_ANSWERS)}, or messages that end in an "
            f"answer; it has {', '.join(record)}"
        )
    return {"prompt": prompt, "answer": answer, **others}


LAYOUTS: dict[str, Callable[[str, Record], Record]] = {"verl": _from_verl, "trl": _from_trl}
