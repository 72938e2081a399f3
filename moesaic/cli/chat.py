"""``moesaic chat``: a conversation with a checkpoint, in the terminal or through a pipe."""

import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moesaic.cli.visible import visible
from moesaic.config.chat import ChatConfig
from moesaic.errors import MoesaicError, RequestError, suggest

if TYPE_CHECKING:
    from moesaic.infer.chat import Conversation

_DEFAULTS = ChatConfig()
_QUOTES = '"""'
_COMMANDS = {
    "reset": "forget what was said",
    "system": "TEXT is told to the model before the conversation; without TEXT nothing is",
    "help": "show this",
    "exit": "leave, as Ctrl-D does",
}
_HINT = 'A line ending in \\ goes on, """ begins and ends a block; Ctrl-C stops an answer.'


def chat(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A checkpoint folder.")],
    temperature: Annotated[
        float, typer.Option(help="0 takes the likeliest token, 1 the model's own distribution.")
    ] = _DEFAULTS.temperature,
    top_p: Annotated[
        float, typer.Option(help="Draw among the likeliest tokens of this probability together.")
    ] = _DEFAULTS.top_p,
    max_new_tokens: Annotated[
        int, typer.Option(help="Most tokens of an answer.")
    ] = _DEFAULTS.max_new_tokens,
    seed: Annotated[int, typer.Option(help="Another seed, other answers.")] = _DEFAULTS.seed,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", help="Answer otherwise, as context=4096.", metavar="NAME=VALUE"),
    ] = None,
) -> None:
    r'''Talk with a model. Answers appear as they are written; the model remembers the conversation.

    A line is a message. One that ends in \ goes on in the next line, and what stands between
    lines of """ is one message. /reset forgets what was said, /system TEXT tells the model
    something before the conversation, /exit leaves. Ctrl-C stops an answer, Ctrl-D leaves.

    Without a terminal every line of the standard input is a message in the same way, and only
    answers go to the standard output.

    Settings of --set: system, context, chat_template (deepseek-v2, deepseek-v3 or deepseek-r1,
    where the folder has none), dtype, device, form (on a CPU; lossless: the same weights in
    three quarters of the memory; int8 or int4: rounded ones in less), memory (most bytes of
    weights, as 8GiB: experts that do not fit are read when they are chosen), speculate (always
    or auto: the model's prediction module drafts tokens), top_k, stop.
    '''
    from moesaic.config.load import parse_changes
    from moesaic.infer.chat import Conversation
    from moesaic.kernels.allocator import keep_freed_memory

    given = [f"temperature={temperature}", f"top_p={top_p}"]
    given += [f"max_new_tokens={max_new_tokens}", f"seed={seed}"]
    config = parse_changes(ChatConfig, [*given, *(changes or [])])
    if config.memory is None and config.device == "cpu":
        keep_freed_memory()
    conversation = Conversation.load(folder, config)
    if _is_terminal():
        _tell(f"{_HINT}\n/help lists what else there is.")
        _with_line_editing()
    _talk(conversation)


def _talk(conversation: "Conversation") -> None:
    """Take messages until there are no more; in a terminal a wrong one does not end it."""
    for text, is_block in _messages():
        try:
            if is_block or not _obey(conversation, text):
                _answer(conversation, text)
        except EOFError:
            return
        except MoesaicError as error:
            if not _is_terminal():
                raise
            _tell(f"moesaic: {error}")


def _obey(conversation: "Conversation", text: str) -> bool:
    """Do what a line like ``/reset`` says; False if it is a message such as a path.

    Raises:
        EOFError: to leave.
        RequestError: if there is no such command.
    """
    found = re.fullmatch(r"/(\w+)(?:\s+(.*))?", text.strip(), re.DOTALL)
    if not found:
        return False
    name, argument = found[1], found[2] or ""
    if name not in _COMMANDS:
        raise RequestError(
            f"/{name} is not one of {', '.join(f'/{each}' for each in _COMMANDS)}"
            f"{suggest(name, _COMMANDS)}; put {_QUOTES} around a message that begins with /"
        )
    if name == "exit":
        raise EOFError
    if name == "help":
        _tell("\n".join(f"/{each:8}{told}" for each, told in _COMMANDS.items()) + f"\n{_HINT}")
    elif name == "reset":
        conversation.reset()
    else:
        conversation.system = argument
    return True


def _answer(conversation: "Conversation", text: str) -> None:
    """Print an answer as it is written; in a terminal Ctrl-C ends it."""
    begun = False
    with _interruptible() as stopped:
        try:
            for piece in conversation.answer(text, stopped):
                shown = piece if begun else piece.lstrip()
                begun = begun or bool(shown)
                print(visible(shown), end="", flush=True)
        finally:
            if begun or not _is_terminal():
                print(flush=True)


@contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """What says whether Ctrl-C was pressed; through a pipe it ends the program as always."""
    pressed: list[int] = []
    if not _is_terminal():
        yield lambda: False
        return
    before = signal.signal(signal.SIGINT, lambda number, _: pressed.append(number))
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, before)


def _messages() -> Iterator[tuple[str, bool]]:
    """Messages as they are typed, and whether each was a block; blank lines are none."""
    while True:
        try:
            text, is_block = _read_message()
        except EOFError:
            if _is_terminal():
                print(file=sys.stderr)
            return
        except KeyboardInterrupt:
            if not _is_terminal():
                raise
            _tell("\nCtrl-D leaves.")
            continue
        if text.strip():
            yield text, is_block


def _read_message() -> tuple[str, bool]:
    """One message of one or several lines.

    Raises:
        EOFError: if none follows.
        RequestError: if the input ends inside a block.
    """
    line = _read_line("> ")
    if line.lstrip().startswith(_QUOTES):
        return _read_block(line.lstrip().removeprefix(_QUOTES)), True
    lines = [line]
    while lines[-1].endswith("\\"):
        lines[-1] = lines[-1][:-1]
        with suppress(EOFError):  # the message is what there is
            lines.append(_read_line(". "))
    return "\n".join(lines), False


def _read_block(first: str) -> str:
    """The lines up to closing quotes; what follows them in their line is part of no message."""
    lines = [first]
    while not lines[-1].rstrip().endswith(_QUOTES):
        try:
            lines.append(_read_line(". "))
        except EOFError:
            if _is_terminal():
                raise
            raise RequestError(
                f"the input ends inside a block; end it with a line of {_QUOTES}"
            ) from None
    lines[-1] = lines[-1].rstrip().removesuffix(_QUOTES)
    return "\n".join(lines).strip("\n")


def _read_line(prompt: str) -> str:
    """A line without its end.

    Raises:
        EOFError: if none follows.
    """
    if _is_terminal() and sys.stdout.isatty():
        return input(prompt)
    if _is_terminal():
        print(prompt, end="", file=sys.stderr, flush=True)
    try:
        line = sys.stdin.buffer.readline().decode("utf-8")
    except UnicodeDecodeError as error:
        raise RequestError(f"the standard input is not UTF-8 ({error}); convert it first") from None
    if not line:
        raise EOFError
    return line.removesuffix("\n").removesuffix("\r")


def _with_line_editing() -> None:
    """Arrow keys move in the line and bring back earlier ones, where Python has readline."""
    with suppress(ImportError):
        import readline  # noqa: F401  (importing it is what input() needs)


def _is_terminal() -> bool:
    return sys.stdin.isatty()


def _tell(text: str) -> None:
    """Say something that is no answer."""
    print(text, file=sys.stderr, flush=True)
