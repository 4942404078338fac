from __future__ import annotations

import argparse
import io
import re
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from asyncrl import cli
from asyncrl.errors import RunError
from asyncrl.run.plain_text import plain
from asyncrl.watch.console import LiveView

CLEAR_SCREEN = "\x1b[2J"
WINDOW_TITLE = "\x1b]0;owned\x07"
C1_SEQUENCE = "\x9b31m"
TURNED = "\u202egnp.exe"


@given(st.text())
def test_nothing_that_a_terminal_obeys_is_left(text: str) -> None:
    shown = plain(text)
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]", shown)
    shown.encode()  # no lone surrogate is left, so it can be written


@given(st.text(string.ascii_letters + string.digits + string.punctuation + " \n\täλ漢😀"))
def test_ordinary_text_stays_as_it_is(text: str) -> None:
    assert plain(text) == text


def test_an_event_cannot_drive_the_terminal() -> None:
    out = io.StringIO()
    view = LiveView(Console(file=out, force_terminal=False), 1)
    for attack in (CLEAR_SCREEN, WINDOW_TITLE, C1_SEQUENCE, TURNED, "[red]markup[/red]"):
        view.event(f"replay: prompt 3 was quarantined: {attack}")
    assert not set("\x1b\x07\x9b\u202e") & set(out.getvalue())
    assert r"\x1b[2J" in out.getvalue()
    assert "[red]markup[/red]" in out.getvalue()


def test_an_error_of_a_run_that_quotes_a_model_cannot_drive_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(arguments: argparse.Namespace) -> int:
        raise RunError(f"11 prompts quarantined; the last: {CLEAR_SCREEN}{WINDOW_TITLE}")

    monkeypatch.setitem(cli.COMMANDS, "launch", fail)
    assert cli.main(["launch"]) == 1
    assert capsys.readouterr().err == "the run failed: 11 prompts quarantined; the last: \\x1b[2J\\x1b]0;owned\\x07\n"
