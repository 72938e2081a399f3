"""``moesaic chat`` talks through pipes, and in a terminal, where Ctrl-C ends only an answer."""

import io
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from moesaic.checkpoint.save import save
from moesaic.cli.main import main
from moesaic.config.chat import ChatConfig
from moesaic.config.model import ModelConfig
from moesaic.data.bpe import train_bpe
from moesaic.infer.chat import Conversation
from moesaic.model.build import build_model

TEMPLATE = (
    "{% for m in messages %}{{ m['role'] ~ ':' ~ m['content'] ~ ',' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
SETTINGS = {"temperature": 0.0, "max_new_tokens": 3, "dtype": "float32", "context": 4096}


@pytest.fixture(scope="module")
def folder(
    tmp_path_factory: pytest.TempPathFactory, tiny_config: Callable[..., ModelConfig]
) -> Path:
    path = tmp_path_factory.mktemp("chat") / "model"
    config = tiny_config("v1", vocab_size=300, max_position_embeddings=4096, eos_token_id=None)
    save(path, config, build_model(config, seed=1).state_dict(), "float32")
    train_bpe(["one two three four five, " * 20], 300).save(path)
    file = path / "tokenizer_config.json"
    settings = {**json.loads(file.read_text()), "chat_template": TEMPLATE}
    settings["eos_token"] = None
    file.write_text(json.dumps(settings))
    return path


def command(folder: Path, **changes: object) -> list[str]:
    given = [f"{name}={value}" for name, value in {**SETTINGS, **changes}.items()]
    words = [sys.executable, "-m", "moesaic", "chat", str(folder)]
    return [*words, *(word for each in given for word in ("--set", each))]


Printed = tuple[int, str, str]
"""Exit status, standard output, standard error."""


@pytest.fixture
def piped(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[Path, str | bytes], Printed]:
    """``piped(folder, text)``: what a conversation prints when text is its standard input."""

    def run(folder: Path, text: str | bytes) -> Printed:
        sent = text if isinstance(text, bytes) else text.encode()
        monkeypatch.setattr(sys, "argv", command(folder)[2:])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(sent)))
        with pytest.raises(SystemExit) as stop:
            main()
        printed = capsys.readouterr()
        return int(stop.value.code or 0), printed.out, printed.err

    return run


def answers(folder: Path, *messages: str, system: str = "") -> list[str]:
    """What one conversation answers to these messages, as it is printed."""
    conversation = Conversation.load(folder, ChatConfig.parse({**SETTINGS, "system": system}))
    return ["".join(conversation.answer(message)).lstrip() for message in messages]


Piped = Callable[[Path, str | bytes], Printed]


def test_through_a_pipe_lines_are_messages_and_only_answers_come_out(folder: Path, piped: Piped):
    sent = 'one\n\ntwo \\\nthree\n"""\nfour\n\n/five\n"""\n/usr/bin too'
    told = answers(folder, "one", "two \nthree", "four\n\n/five", "/usr/bin too")
    assert piped(folder, sent) == (0, "".join(f"{text}\n" for text in told), "")


def test_commands_change_the_conversation(folder: Path, piped: Piped):
    sent = "one\n/reset\none\n/system five, five\n/reset\none\n/exit\none\n"
    [plain], [told] = answers(folder, "one"), answers(folder, "one", system="five, five")
    assert piped(folder, sent)[:2] == (0, f"{plain}\n{plain}\n{told}\n")
    assert plain != told


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        ("/rest\n", "/rest is not one of /reset, /system, /help, /exit; did you mean 'reset'?"),
        ('"""\none\n', "the input ends inside a block"),
        (b"\xff\n", "the standard input is not UTF-8"),
        ("one, " * 5000 + "\n", "begin anew with /reset"),
    ],
    ids=["command", "block", "bytes", "length"],
)
def test_what_is_wrong_in_a_pipe_ends_with_2(
    folder: Path, piped: Piped, sent: str | bytes, message: str
):
    status, _, told = piped(folder, sent)
    assert status == 2
    assert message in told


def test_a_folder_without_a_template_is_told_how_to_choose_one(
    folder: Path, tmp_path: Path, piped: Piped
):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "tokenizer_config.json").unlink()
    status, _, told = piped(tmp_path, "one\n")
    assert status == 2
    assert "--set chat_template=deepseek-v2 or deepseek-v3" in told


class Terminal:
    """The other side of a terminal."""

    def __init__(self, side: int) -> None:
        self.side, self.seen = side, ""

    def type(self, text: str) -> None:
        os.write(self.side, text.encode())

    def interrupt_until(self, text: str) -> None:
        """Press Ctrl-C, and again where it met the moment before the line is read: readline
        then takes notice of it with the next key."""
        for _ in range(30):
            self.type("\x03")
            with suppress(AssertionError):
                self.wait_for(text, timeout_s=2)
                return
        raise AssertionError(f"{text!r} was not shown, but {self.seen!r}")

    def wait_for(self, text: str, timeout_s: float = 60) -> str:
        """What was shown before this text, since the text before it."""
        until = time.monotonic() + timeout_s
        while text not in self.seen:
            ready, _, _ = select.select([self.side], [], [], until - time.monotonic())
            assert ready, f"{text!r} was not shown, but {self.seen!r}"
            self.seen += os.read(self.side, 4096).decode(errors="replace")
        before, _, self.seen = self.seen.partition(text)
        return before


@contextmanager
def terminal(folder: Path, **changes: object) -> Iterator[tuple[Terminal, subprocess.Popen[bytes]]]:
    """A conversation in a terminal of its own."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        command(folder, **changes),
        start_new_session=True,
        env={**os.environ, "TERM": "dumb", "OMP_NUM_THREADS": "1"},
        preexec_fn=own_terminal,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    try:
        yield Terminal(ours), process
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def own_terminal() -> None:
    """Let Ctrl-C on the terminal reach this process, as a shell would."""
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_ctrl_c_stops_the_answer_and_ctrl_d_leaves(folder: Path):
    with terminal(folder, max_new_tokens=4000) as (shown, process):
        shown.wait_for("> ")
        shown.type("one\n")
        shown.wait_for("one\r\n")
        shown.wait_for("e")  # an answer of thousands of tokens has begun
        shown.type("\x03")
        shown.wait_for("\r\n> ")
        shown.interrupt_until("Ctrl-D leaves.")
        shown.wait_for("> ")
        shown.type("/rest\n")
        shown.wait_for("did you mean 'reset'?")
        shown.wait_for("> ")
        shown.type("/help\n")
        shown.wait_for("forget what was said")
        shown.wait_for("> ")
        shown.type("\x04")
        assert process.wait(60) == 0


def test_a_terminal_shows_the_same_answers(folder: Path):
    [first] = answers(folder, "one\ntwo")
    with terminal(folder) as (shown, process):
        shown.wait_for("> ")
        shown.type("one\\\n")
        shown.wait_for(". ")
        shown.type("two\n")
        shown.wait_for("two\r\n")
        assert shown.wait_for("> ").replace("\r\n", "\n").strip() == first.strip()
        shown.type("/exit\n")
        assert process.wait(60) == 0
