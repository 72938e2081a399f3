"""``moesaic generate`` prints what the model writes, and only that."""

import io
import json
import re
import signal
import sys
from pathlib import Path

import jsonschema
import pytest

import moesaic
from moesaic.checkpoint.save import save
from moesaic.cli.main import main
from moesaic.config.model import ModelConfig
from moesaic.config.presets import get_preset
from moesaic.data.bpe import train_bpe
from moesaic.model.build import build_model

CONFIG: ModelConfig = get_preset("tiny-v2").changed(
    vocab_size=300, hidden_size=32, num_hidden_layers=2, initializer_range=0.1, eos_token_id=None
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cli") / "model"
    save(path, CONFIG, build_model(CONFIG, seed=1).state_dict(), "float32")
    train_bpe(["one two three four five, " * 20], 300).save(path)
    return path


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int:
    """Exit status of ``moesaic generate`` with these arguments."""
    monkeypatch.setattr(sys, "argv", ["moesaic", "generate", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        main()
    return int(stop.value.code or 0)


def test_the_new_text_is_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    options = ("--max-new-tokens", "12", "--temperature", "0.9", "--seed", "3")
    assert run(monkeypatch, folder, "one two", *options, "--set", "top_p=0.8") == 0
    [text] = moesaic.generate(
        folder, "one two", max_new_tokens=12, temperature=0.9, top_p=0.8, seed=3
    )
    assert capsys.readouterr().out == text.text + "\n"


def test_json_holds_text_and_tokens(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    assert run(monkeypatch, folder, "one", "--max-new-tokens", "5", "--json") == 0
    [text] = moesaic.generate(folder, "one", max_new_tokens=5)
    assert json.loads(capsys.readouterr().out) == {
        "prompt": "one",
        "text": text.text,
        "ids": list(text.ids),
        "prompt_ids": list(text.prompt_ids),
        "ending": "length",
    }


def test_drafts_of_the_prediction_module_leave_the_likeliest_text_and_are_told_of(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    folder: Path,
) -> None:
    config = get_preset("tiny-v3").changed(vocab_size=300, num_hidden_layers=2, eos_token_id=None)
    save(tmp_path, config, build_model(config, seed=1).state_dict(), "float32")
    train_bpe(["one two three four five, " * 20], 300).save(tmp_path)
    options = ("--max-new-tokens", "12", "--temperature", "0", "--json")
    told = []
    for way in ("never", "always"):
        assert run(monkeypatch, tmp_path, "one two", *options, "--set", f"speculate={way}") == 0
        told.append(json.loads(capsys.readouterr().out))
    assert told[0]["ids"] == told[1]["ids"]
    assert "speculation" not in told[0]
    assert told[1]["speculation"]["drafts"] > 0
    assert run(monkeypatch, folder, "one two", *options, "--set", "speculate=always") == 2
    assert "the model has no prediction module" in capsys.readouterr().err


def test_a_dash_reads_the_prompt_from_standard_input(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("één\n\n".encode())))
    assert run(monkeypatch, folder, "-", "--max-new-tokens", "2", "--json") == 0
    assert json.loads(capsys.readouterr().out)["prompt"] == "één\n"


def test_standard_input_that_is_no_text_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff")))
    assert run(monkeypatch, folder, "-") == 2
    assert "the prompt on standard input is not UTF-8" in capsys.readouterr().err


class _Interrupting(io.StringIO):
    """A terminal at which Ctrl-C is pressed when the third piece appears."""

    written = 0

    def write(self, text: str) -> int:
        self.written += 1
        if self.written == 5:  # each print writes its text and its end
            signal.raise_signal(signal.SIGINT)
        return super().write(text)


def test_interrupting_ends_the_line_and_exits_with_130(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    terminal = _Interrupting()
    monkeypatch.setattr(sys, "stdout", terminal)
    assert run(monkeypatch, folder, "one", "--max-new-tokens", "100") == 130
    assert terminal.getvalue().endswith("\n")
    assert terminal.written < 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("one", "--temperature", "-1"), "temperature=-1.0"),
        (("one", "--max-new-tokens", "9000"), "max_position_embeddings=8192"),
        (("one", "--set", "dtype=float31"), "dtype='float31'"),
        (("\udcff",), "half of a surrogate pair, which is no character; give it in UTF-8"),
        (("one", "--set", "device=gpu"), "device='gpu' is not here"),
        (("one", "--set", "device=cuda:99"), "; give cpu"),
        (
            ("one", "--set", "stop=END"),
            """stop='END' is not allowed; it should be a list, as ["a",""",
        ),
    ],
)
def test_a_wrong_request_exits_with_2_and_prints_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    folder: Path,
    arguments: tuple[str, ...],
    message: str,
) -> None:
    assert run(monkeypatch, folder, *arguments) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.out == ""


def test_a_bounded_memory_changes_no_token_and_is_told_of(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    options = ("--max-new-tokens", "6", "--temperature", "0")
    assert run(monkeypatch, folder, "one two", *options) == 0
    expected = capsys.readouterr().out
    assert run(monkeypatch, folder, "one two", *options, "--memory", "512KiB") == 0
    printed = capsys.readouterr()
    assert printed.out == expected
    assert re.search(
        r"^experts: \d+ of 64 held in .* \| there when needed [\d.]+% of \d+ \| read .* \| "
        r"\d+ of \d+ guesses were needed \| waited [\d.]+ s$",
        printed.err,
        re.MULTILINE,
    )
    assert run(monkeypatch, folder, "one two", *options, "--memory", "512KiB", "--json") == 0
    told = json.loads(capsys.readouterr().out)["experts"]
    assert told["bytes"] < 512 * 1024
    assert told["hit_rate"] == told["held"] / told["asked"]


def test_a_memory_that_holds_too_little_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    assert run(monkeypatch, folder, "one", "--memory", "100KiB") == 2
    assert "memory=100.0 KiB is too little for" in capsys.readouterr().err
    assert run(monkeypatch, folder, "one", "--set", "form=int5") == 2
    assert "form='int5'" in capsys.readouterr().err
    assert run(monkeypatch, folder, "one", "--memory", "much") == 2
    assert "'much' is not a size; write a number and one of" in capsys.readouterr().err


SCHEMA = {
    "type": "object",
    "properties": {"n": {"type": "integer", "maximum": 99, "minimum": 0}, "yes": {"const": True}},
    "required": ["n", "yes"],
    "additionalProperties": False,
}


@pytest.fixture
def schema(tmp_path: Path) -> Path:
    (tmp_path / "schema.json").write_text(json.dumps(SCHEMA))
    return tmp_path / "schema.json"


def test_a_schema_makes_the_text_json_of_its_form(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    folder: Path,
    schema: Path,
) -> None:
    assert run(monkeypatch, folder, "one two", "--schema", schema, "--set", "stop=[]") == 0
    printed = capsys.readouterr()
    [text] = moesaic.generate(folder, "one two", structured_outputs={"json": SCHEMA})
    assert printed.out == text.text + "\n"
    assert printed.err == ""
    jsonschema.validate(json.loads(printed.out), SCHEMA)


def test_a_text_that_is_cut_within_its_form_is_told_of(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    folder: Path,
    schema: Path,
) -> None:
    assert run(monkeypatch, folder, "one", "--schema", schema, "--max-new-tokens", "3") == 0
    assert "is only the beginning of what was asked for; raise --max" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "pattern"),
    [
        ("regex=[0-9]{4}", "[0-9]{4}"),
        ('choice=["yes", "no"]', "yes|no"),
        ("grammar=digits.lark", "[0-9]{2}"),
    ],
)
def test_an_expression_choices_or_a_grammar_are_followed_in_the_same_way(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    folder: Path,
    tmp_path: Path,
    change: str,
    pattern: str,
) -> None:
    (tmp_path / "digits.lark").write_text('start: DIGIT DIGIT\nDIGIT: "0".."9"')
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, folder, "one", "--set", change) == 0
    assert re.fullmatch(pattern, capsys.readouterr().out.removesuffix("\n"))


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("{", "the schema is not JSON"),
        ("[]", "the schema is a list; it should be an object"),
        ('{"type": "text"}', "the schema cannot be enforced: "),
    ],
)
def test_a_wrong_schema_is_told_before_the_model_is_read(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    folder: Path,
    schema: Path,
    written: str,
    message: str,
) -> None:
    schema.write_text(written)
    options = ("--schema", schema, "--set", "device=nowhere")
    assert run(monkeypatch, folder, "one", *options) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--schema", "none.json"), "--schema none.json cannot be read"),
        (("--set", "regex=a", "--set", 'choice=["a"]'), "regex and choice both ask for a form"),
    ],
)
def test_what_the_text_has_to_be_is_read_from_one_place(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    folder: Path,
    options: tuple[str, ...],
    message: str,
) -> None:
    assert run(monkeypatch, folder, "one", *options) == 2
    assert message in capsys.readouterr().err


def test_without_its_library_a_schema_is_refused_with_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    folder: Path,
    schema: Path,
) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    assert run(monkeypatch, folder, "one", "--schema", schema) == 2
    assert "install it with: pip install 'moesaic[serve]'" in capsys.readouterr().err
