"""The order of work where a call returns before its work has ended, on an accelerator that only takes notes."""

from __future__ import annotations

from types import TracebackType
from typing import Any

import pytest
import torch

from asyncrl.publish.gather import gather
from asyncrl.publish.streams import own_stream


class Stream:
    def __init__(self, name: str, notes: list[str]) -> None:
        self._name, self._notes = name, notes

    def wait_stream(self, other: Stream) -> None:
        self._notes.append(f"{self._name} waits for {other._name}")

    def synchronize(self) -> None:
        self._notes.append(f"the host waits for {self._name}")

    def __enter__(self) -> None:
        self._notes.append(f"on {self._name}")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._notes.append(f"off {self._name}")


@pytest.fixture
def notes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    notes: list[str] = []
    training = Stream("training's stream", notes)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_stream", lambda *device: training)
    monkeypatch.setattr(torch, "Stream", lambda device: Stream("its own stream", notes))
    return notes


def test_what_is_packed_and_sent_begins_after_what_was_gathered_and_has_ended_when_a_transfer_returns(
    notes: list[str],
) -> None:
    with own_stream(torch.device("meta")):
        notes.append("packed, sent")
    assert notes == [
        "its own stream waits for training's stream",
        "on its own stream",
        "packed, sent",
        "off its own stream",
        "the host waits for its own stream",
    ]


def test_gathering_has_ended_when_it_returns(notes: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Half-gathered weights would be read by the thread that publishes, and have the checksums of what was sent."""
    copy: Any = torch.Tensor.copy_

    def noted(self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        notes.append("copied")
        return copy(self, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "copy_", noted)
    gather([("a", torch.ones(3)), ("b", torch.ones(3))], torch.bfloat16, True, 1 << 20)
    assert notes == ["copied", "copied", "the host waits for training's stream"]
