import io
import signal

import pytest
from rich.console import Console

from moesaic.train.interrupt import stop_on_signal
from moesaic.train.progress import Lines, Seen, display


def seen(step: int, speed: float = 22_500.0) -> Seen:
    return Seen(step=step, steps=500, loss=2.34812, tokens_per_s=speed, memory_bytes=20_900_000_000)


def test_a_line_has_units_and_fixed_widths():
    assert seen(120).line(22_500) == "step 120/500 | loss 2.3481 | 22.50 k tok/s | 20.9 GB"
    assert seen(7).line(22_500).startswith("step   7/500 | ")


def test_without_a_terminal_there_is_a_line_now_and_then_and_for_the_last_step():
    stream = io.StringIO()
    lines = Lines(stream, every_s=1e9)
    for step in range(1, 501):
        lines.step(seen(step))
    first, last = stream.getvalue().splitlines()
    assert first.startswith("step   1/500")
    assert last == "step 500/500 | loss 2.3481 | 22.50 k tok/s | 20.9 GB"


def test_a_line_says_how_much_time_is_left():
    stream = io.StringIO()
    lines = Lines(stream, every_s=0.0)
    for step in (1, 2):
        lines.step(seen(step))
    assert stream.getvalue().splitlines()[1].endswith(" s left")


def test_the_shown_speed_follows_slowly():
    stream = io.StringIO()
    lines = Lines(stream, every_s=0.0)
    lines.step(seen(1, speed=1000))
    lines.step(seen(2, speed=2000))
    assert "| 1.10 k tok/s |" in stream.getvalue().splitlines()[1]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_on_a_terminal_there_is_a_bar_and_what_is_said_stands_above_it():
    terminal = Terminal()
    assert Console(file=terminal).is_terminal
    with display(terminal) as shown:
        shown.step(seen(120))
        shown.say("step 100 held out | english 3.2000 [nats]")
    assert "step 120/500 | loss 2.3481" in terminal.getvalue()
    assert "step 100 held out | english 3.2000 [nats]" in terminal.getvalue()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_noted_and_a_second_one_acts(number: int):
    handler = signal.getsignal(number)
    with stop_on_signal() as stop:
        assert not stop()
        signal.raise_signal(number)
        assert stop()
        assert signal.getsignal(number) is handler
    assert signal.getsignal(number) is handler


def test_a_second_ctrl_c_interrupts_at_once():
    with stop_on_signal():
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
