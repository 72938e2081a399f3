"""What a model wrote cannot steer the terminal that shows it."""

import io
import sys

import pytest

from moesaic.cli.visible import visible


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_control_characters_are_shown_in_a_terminal(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "stdout", Terminal())
    assert visible("\x1b[2J\x9b1m\r\x7f\a") == "␛[2J\ufffd1m␍␡␇"
    assert visible("é\tb\nc 日") == "é\tb\nc 日"


def test_what_no_terminal_reads_stays_as_it_is(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    assert visible("\x1b[2J\r") == "\x1b[2J\r"
