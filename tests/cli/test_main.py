"""The command line's frame: help, version, exit codes."""

import subprocess
import sys

import pytest

import moesaic
from moesaic.cli import main as command_line
from moesaic.cli.main import VERBS, load_command, main
from moesaic.errors import CheckpointError, TrainingError

PARTS = tuple(f"moesaic.cli.{verb}" for verb in VERBS)


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The exit code of a command."""
    monkeypatch.setattr(sys, "argv", ["moesaic", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    return int(stopped.value.code or 0)


def test_help_lists_every_command(monkeypatch: pytest.MonkeyPatch, capsys):
    assert run(monkeypatch, "--help") == 0
    text = capsys.readouterr().out
    for verb, summary in VERBS.items():
        assert f" {verb} " in text
        assert summary in text


def test_no_command_prints_the_help(monkeypatch: pytest.MonkeyPatch, capsys):
    assert run(monkeypatch) == 2
    printed = capsys.readouterr()
    assert "Usage: moesaic" in printed.out
    assert printed.err == ""


def test_listing_the_commands_imports_none_of_them():
    code = (
        "import sys\nfrom moesaic.cli.main import main\ntry: main()\nexcept SystemExit: pass\n"
        f"print(*(set(sys.modules) & set({PARTS!r})), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, "-h"], capture_output=True, text=True)
    assert done.stderr.strip() == ""


def test_the_version_is_the_packages(monkeypatch: pytest.MonkeyPatch, capsys):
    assert run(monkeypatch, "--version") == 0
    assert capsys.readouterr().out == f"moesaic {moesaic.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plna"], "'plna' is not a command; did you mean 'plan'?"),
        (["sing"], "'sing' is not a command; see moesaic --help"),
        (["plan"], "Missing argument 'PRESET'."),
        (["plan", "tiny", "--train-experts", "many"], "'many' is not a valid integer"),
        (["plan", "tinny"], "'tinny' is neither a preset nor a folder; did you mean 'tiny'?"),
    ],
)
def test_a_wrong_request_is_one_message_and_exit_2(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys
):
    assert run(monkeypatch, *arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("moesaic: ")
    assert message in printed.err


@pytest.mark.parametrize(
    ("error", "status"),
    [(CheckpointError("no such folder"), 2), (TrainingError("the loss is nan"), 1)],
)
def test_a_failed_run_is_exit_1_and_a_wrong_file_exit_2(
    error: Exception, status: int, monkeypatch: pytest.MonkeyPatch, capsys
):
    def fail(**_: object) -> None:
        raise error

    monkeypatch.setattr(command_line, "app", fail)
    assert run(monkeypatch, "anything") == status
    assert capsys.readouterr().err == f"moesaic: {error}\n"


@pytest.mark.parametrize(
    ("error", "amount"),
    [
        (MemoryError(), ""),
        (RuntimeError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0"), " for 2.50 GiB"),
        (RuntimeError("can't allocate memory: you tried to allocate 9 bytes."), " for 9 bytes"),
    ],
)
def test_too_little_memory_is_one_message_with_what_to_do(
    error: Exception, amount: str, monkeypatch: pytest.MonkeyPatch, capsys
):
    def fail(**_: object) -> None:
        raise error

    monkeypatch.setattr(command_line, "app", fail)
    assert run(monkeypatch, "anything") == 1
    more = amount and f"{amount} more"
    told = capsys.readouterr().err
    assert told.startswith(f"moesaic: the memory does not suffice{more}; ask for less at once")
    assert told.count("\n") == 1


def test_a_full_disk_is_one_message(monkeypatch: pytest.MonkeyPatch, capsys):
    def fail(**_: object) -> None:
        raise OSError(28, "No space left on device", "model/x.safetensors")

    monkeypatch.setattr(command_line, "app", fail)
    assert run(monkeypatch, "anything") == 1
    assert capsys.readouterr().err == (
        "moesaic: a file or the output cannot be read or written: [Errno 28] No space left on "
        "device: 'model/x.safetensors'\n"
    )


def test_a_mistake_of_our_own_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch):
    def fail(**_: object) -> None:
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(sys, "argv", ["moesaic", "anything"])
    monkeypatch.setattr(command_line, "app", fail)
    with pytest.raises(RuntimeError, match="shapes differ"):
        main()


def test_an_interrupted_command_is_exit_130(monkeypatch: pytest.MonkeyPatch):
    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("moesaic.config.presets.find_model", interrupt)
    assert run(monkeypatch, "plan", "tiny") == 130


@pytest.mark.parametrize("verb", VERBS)
def test_a_listed_command_is_a_function_of_that_name(verb: str):
    command = load_command(verb)
    assert command.name == verb
    assert command.callback is not None
    # A function named ``eval`` would hide Python's own.
    assert command.callback.__name__ == {"eval": "evaluate"}.get(verb, verb)


def test_help_shows_what_stands_in_brackets(monkeypatch: pytest.MonkeyPatch, capsys):
    assert run(monkeypatch, "train", "--help") == 0
    assert "with a table [esft] some of its experts" in " ".join(capsys.readouterr().out.split())
