"""Model cards: front matter that reads back, words of others that stay words, scores that fit."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from moesaic.checkpoint.card import Made, Part, write_card
from moesaic.checkpoint.digest import digest
from moesaic.checkpoint.load import Reader
from moesaic.checkpoint.markdown import plain, quoted, read_card, table, with_front_matter
from moesaic.checkpoint.quantise import Form, quantise_folder
from moesaic.checkpoint.scores import Score, update_card
from moesaic.config.card import CardConfig
from moesaic.config.model import ModelConfig
from moesaic.errors import CheckpointError, ConfigError

Fresh = Callable[..., Path]
Config = Callable[..., ModelConfig]
HOSTILE = "a|b`c\n# d [e](http://f) <script>g</script> --- *h*"
LICENCE = {"license": "other", "license_name": "deepseek", "license_link": "https://a.b/LICENSE"}


@pytest.fixture
def made(tiny_config: Config) -> Made:
    part = Part("this run", ("corpus:math",), 4096, 8, "ab" * 32, {"steps": 8, "seed": 3})
    return Made("trained from nothing", tiny_config("v3"), (part,))


def written(folder: Path, made: Made, **asked: Any) -> tuple[dict[str, Any], str]:
    folder.mkdir(exist_ok=True)
    write_card(folder, made, CardConfig.parse(asked), "tiny", "cd" * 32)
    return read_card(folder)


def test_the_front_matter_reads_back_as_what_was_given(made: Made, tmp_path: Path):
    asked = {
        **LICENCE,
        "base_model": "deepseek-ai/DeepSeek-V2-Lite",
        "datasets": ["openai/gsm8k"],
        "language": ["en", "no"],
    }
    front, _ = written(tmp_path, made, **asked)
    machine = {"pipeline_tag": "text-generation", "tags": ["moesaic", "mixture-of-experts"]}
    assert front == {**asked, **machine}


def test_the_text_says_what_it_is_what_it_read_and_how_to_make_it_again(made: Made, tmp_path: Path):
    _, text = written(tmp_path, made)
    for told in ("# tiny", "trained from nothing", "`corpus:math`", "`" + "ab" * 32 + "`"):
        assert told in text
    assert "```toml\nsteps = 8\nseed = 3\n```" in text
    assert "- Digest of the weights: `" + "cd" * 32 in text


def test_no_licence_is_guessed(made: Made, tmp_path: Path):
    front, text = written(tmp_path, made)
    assert "license" not in front
    assert "No licence is named." in text


def test_licence_fields_come_from_the_card_of_the_base(made: Made, tmp_path: Path):
    base = tmp_path / "base"
    base.mkdir()
    (base / "README.md").write_text(with_front_matter({**LICENCE, "tags": ["theirs"]}, "# Theirs"))
    front, text = written(tmp_path / "made", replace(made, base=base))
    assert LICENCE.items() <= front.items()
    assert "theirs" not in front["tags"]
    assert "Licence: `other`, `deepseek`, `https://a.b/LICENSE`, as on the card of the base" in text


def test_a_licence_that_is_given_replaces_all_that_the_base_says_of_one(made: Made, tmp_path: Path):
    base = tmp_path / "base"
    base.mkdir()
    (base / "README.md").write_text(with_front_matter(LICENCE, "# Theirs"))
    front, _ = written(tmp_path / "made", replace(made, base=base), license="mit")
    assert front["license"] == "mit"
    assert "license_name" not in front
    assert "license_link" not in front


@pytest.mark.parametrize(
    "card",
    [
        b"# no front matter",
        b"---\nlicense: [mit\n---\n",
        b"---\nlicense: 2020-99-99\n---\n",
        b"---\nlicense: {a: b}\n---\n",
        b"---\n" + b"[" * 3000 + b"\n---\n",
        b"---\nlicense: !!python/object/apply:os.getcwd []\n---\n",
        b"\xff\xfe",
    ],
    ids=["none", "broken", "no date", "a table", "nested", "code", "no text"],
)
def test_a_base_whose_card_names_no_licence_that_can_be_read_gives_none(
    made: Made, tmp_path: Path, card: bytes
):
    base = tmp_path / "base"
    base.mkdir()
    (base / "README.md").write_bytes(card)
    front, text = written(tmp_path / "made", replace(made, base=base))
    assert "license" not in front
    assert "No licence is named." in text


def test_what_others_wrote_is_never_markup(made: Made, tmp_path: Path):
    part = replace(made.parts[0], name=HOSTILE, data=(HOSTILE,), settings={"a": HOSTILE + "```"})
    _, text = written(tmp_path, replace(made, parts=(part,)))
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    inline = [inner for token in tokens for inner in token.children or ()]
    assert not {"html_inline", "link_open", "em_open"} & {token.type for token in inline}
    headings = [after.content for token, after in pairwise(tokens) if token.type == "heading_open"]
    assert headings == ["tiny", "Data", "Recipe", "Use"]
    rows = [token for token in tokens if token.type == "tr_open"]
    cells = [token for token in tokens if token.type == "td_open"]
    assert (len(rows), len(cells)) == (2, 5)


@given(st.text())
def test_quoted_text_is_one_piece_of_code_in_one_cell(text: str):
    tokens = (
        MarkdownIt("commonmark").enable("table").parse(table(["a", "b"], [[quoted(text), "x"]]))
    )
    assert sum(token.type == "td_open" for token in tokens) == 2


@given(st.text())
def test_plain_text_has_no_markup(text: str):
    tokens = MarkdownIt("commonmark").parse(f"# {plain(text)}")
    kinds = {inner.type for token in tokens for inner in token.children or ()}
    assert kinds <= {"text", "text_special"}


@given(st.text(max_size=200))
def test_any_title_reads_back_from_the_front_matter(text: str):
    assert yaml.safe_load(with_front_matter({"title": text}, "").split("---\n")[1]) == {
        "title": text
    }


def test_scores_are_added_and_later_replaced_and_nothing_else_changes(fresh: Fresh, made: Made):
    folder = fresh("v3")
    before = written(folder, made, license="mit")[1]
    first = Score("gsm8k", "exact_match", 100, 0.25, 0.1, 0.4)
    update_card(folder, CardConfig(), [first])
    update_card(folder, CardConfig(), [replace(first, value=0.5, difference=0.25, p=0.01)])
    front, text = read_card(folder)
    assert "| `gsm8k` | `exact_match` | 100 | 0.5 | 0.1 to 0.4 | +0.25 (p = 0.01) |" in text
    assert text.count("## Scores") == 1
    section = text[text.index("## Scores") : text.index("## Use")]
    assert text.replace(section, "").strip() == before.strip()
    assert front["license"] == "mit"
    (result,) = front["model-index"][0]["results"]
    assert result["metrics"] == [{"name": "exact_match", "type": "exact_match", "value": 0.5}]


def test_fields_are_added_to_a_card_that_someone_else_wrote(fresh: Fresh):
    folder = fresh("v2")
    theirs = with_front_matter({**LICENCE, "widget": [{"text": "hi"}]}, "# Theirs\n\nBy hand.\n")
    (folder / "README.md").write_text(theirs)
    update_card(folder, CardConfig(license="mit", language=("fr",)), [])
    front, text = read_card(folder)
    assert front == {"widget": [{"text": "hi"}], "license": "mit", "language": ["fr"]}
    assert text.strip() == "# Theirs\n\nBy hand."


def test_a_folder_without_a_card_gets_one(fresh: Fresh):
    folder = fresh("v2")
    (folder / "README.md").unlink()
    update_card(folder, CardConfig(title="Small"), [])
    _, text = read_card(folder)
    assert text.startswith("\n# Small\n") or text.startswith("# Small\n")
    assert digest(folder) in text


@pytest.mark.parametrize(
    ("form", "told"), [("8", "integers of 8 bits"), ("4", "integers of 4 bits"), ("fp8", "FP8")]
)
def test_a_quantised_checkpoint_names_its_base_and_keeps_its_licence(
    fresh: Fresh, tmp_path: Path, form: Form, told: str
):
    base = fresh("v3")
    update_card(base, CardConfig.parse(LICENCE), [])
    quantise_folder(Reader(base), tmp_path / "small", form, 4, lambda spec: None)
    front, text = read_card(tmp_path / "small")
    assert LICENCE.items() <= front.items()
    assert "\n# small\n" in text
    assert told in text
    assert f"- Digest of the base: `{digest(base)}`" in text
    assert f"- Digest of the weights: `{digest(tmp_path / 'small')}`" in text


def test_a_card_that_cannot_be_read_is_not_written_over(fresh: Fresh):
    folder = fresh("v2")
    (folder / "README.md").write_bytes(b"---\nlicense: [\n---\n")
    with pytest.raises(CheckpointError) as error:
        update_card(folder, CardConfig(), [])
    assert "README.md cannot be read" in str(error.value)
    assert "correct or remove it" in str(error.value)


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"license_name": "deepseek"}, "set license to 'other'"),
        ({"license": "other"}, "license='other' does not say which; give it a license_name"),
        ({"base_model": "../models/base"}, "base_model='../models/base'"),
        ({"title": "two\nlines"}, "title='two\\nlines'"),
    ],
)
def test_a_field_that_hubs_would_refuse_is_refused(asked: dict[str, Any], told: str):
    with pytest.raises(ConfigError) as error:
        CardConfig.parse(asked)
    assert told in str(error.value)
