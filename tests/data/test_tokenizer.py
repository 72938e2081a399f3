import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesaic.data.bpe import train_bpe, train_on_sources
from moesaic.data.special import DEEPSEEK_TOKENS, SpecialTokens, special_token
from moesaic.data.tokenizer import Tokenizer
from moesaic.errors import DataError

TEXTS = ["the cat sat on the mat", "12 + 30 = 42", "naïve café", "关关雎鸠在河之洲"] * 3
TOKENIZER = train_bpe(TEXTS, 300)


@given(st.text())
def test_decoding_gives_back_any_text(text: str):
    assert TOKENIZER.decode(TOKENIZER.encode(text), skip_special=False) == text


@given(st.lists(st.text(), max_size=4))
def test_encoding_together_equals_encoding_one_by_one(texts: list[str]):
    ids = TOKENIZER.encode_batch(texts)
    assert ids == [TOKENIZER.encode(text) for text in texts]
    assert TOKENIZER.decode_batch(ids) == texts


def test_the_same_texts_train_the_same_tokenizer():
    again = train_bpe(iter(TEXTS), 300)
    assert again == TOKENIZER
    assert again.digest == TOKENIZER.digest
    assert train_bpe(TEXTS, 301).digest != TOKENIZER.digest


def test_every_digit_is_a_token():
    ids = train_bpe(["1984 1984 1984"] * 20, 300).encode("1984")
    assert len(ids) == 4


def test_merges_join_neither_words_nor_kinds_of_characters():
    tokenizer = train_bpe(["ab cd, ef\n\n关关 ab关 "] * 50, 400)
    names = [tokenizer.decode([id_]) for id_ in range(264, tokenizer.vocab_size)]
    assert names
    for name in names:
        kinds = {
            "letter": any("a" <= c <= "z" for c in name),
            "han": "关" in name,
            ",": "," in name,
        }
        assert sum(kinds.values()) <= 1, name
        assert " " not in name.strip("\n")[1:], name


def test_special_tokens_have_deepseeks_names_and_first_ids():
    assert DEEPSEEK_TOKENS.bos == "<｜begin▁of▁sentence｜>"  # noqa: RUF001
    assert special_token("fim hole") == "<｜fim▁hole｜>"  # noqa: RUF001
    ids = [TOKENIZER.token_id(token) for token in DEEPSEEK_TOKENS.all]
    assert ids == list(range(8))
    assert (TOKENIZER.bos_id, TOKENIZER.eos_id, TOKENIZER.pad_id) == (0, 1, 2)
    assert TOKENIZER.special_ids == frozenset(range(8))
    assert TOKENIZER.token(1) == DEEPSEEK_TOKENS.eos
    assert TOKENIZER.token(10_000) == ""


def test_names_of_special_tokens_are_letters_unless_asked_otherwise():
    text = f"a{DEEPSEEK_TOKENS.eos}b"
    assert TOKENIZER.eos_id not in TOKENIZER.encode(text)
    assert TOKENIZER.eos_id not in TOKENIZER.encode_batch([text])[0]
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text
    assert TOKENIZER.encode(text, special=True)[1] == TOKENIZER.eos_id


def test_a_prompt_begins_as_documents_do():
    assert TOKENIZER.adds_bos
    assert TOKENIZER.encode_prompt("cat") == [TOKENIZER.bos_id, *TOKENIZER.encode("cat")]


def test_a_vocabulary_without_room_for_bytes_is_refused():
    with pytest.raises(DataError, match=r"vocab_size=100 has no room.*raise it to 264 or more"):
        train_bpe(TEXTS, 100)


def test_other_special_tokens_can_be_named():
    tokens = SpecialTokens(bos="<s>", eos="</s>", pad="<pad>", others=("<x>",))
    tokenizer = train_bpe(TEXTS, 300, tokens)
    assert tokenizer.encode("<s>a<x>", special=True) == [0, *tokenizer.encode("a"), 3]
    with pytest.raises(DataError, match="'<y>' is not in the tokenizer's vocabulary"):
        tokenizer.token_id("<y>")


def test_a_run_without_a_tokenizer_learns_one_from_its_training_documents(data_config):
    config = data_config([{"text": "abab" * 50}] * 2, chat_template="deepseek-v3")
    tokenizer = train_on_sources(config, 280)
    assert tokenizer.chat_template is not None
    assert len(tokenizer.encode("abab")) == 1
    assert train_on_sources(config.changed(chat_template=None), 280).chat_template is None


def test_a_source_gives_its_share_of_the_characters_to_the_vocabulary(data_config):
    config = data_config([{"text": "ab" * 20}] * 9, [{"text": "cd" * 20}] * 9, weights=(1, 1e-9))
    tokenizer = train_on_sources(config, 266, most_characters=200)
    assert len(tokenizer.encode("abab")) < len(tokenizer.encode("cdcd")) == 4


def test_a_saved_tokenizer_is_the_same_when_loaded(tmp_path: Path):
    TOKENIZER.save(tmp_path)
    assert Tokenizer.load(tmp_path) == TOKENIZER
    assert Tokenizer.load(tmp_path / "tokenizer.json").encode("cat") == TOKENIZER.encode("cat")


def write(folder: Path, **files: object) -> None:
    (folder / "tokenizer.json").write_text(TOKENIZER.source, encoding="utf-8")
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")


def test_a_tokenizer_is_saved_as_it_was_read(tmp_path: Path):
    (tmp_path / "new").mkdir()
    settings = {"eos_token": {"content": DEEPSEEK_TOKENS.eos, "lstrip": False}, "custom": [1]}
    write(tmp_path, tokenizer_config=settings)
    (tmp_path / "tokenizer.json").write_text(" " + TOKENIZER.source)
    Tokenizer.load(tmp_path).save(tmp_path / "new")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        saved = (tmp_path / "new" / file).read_text()
        assert json.loads(saved) == json.loads((tmp_path / file).read_text())
    assert (tmp_path / "new" / "tokenizer.json").read_text().startswith(" ")


def test_ends_of_text_are_collected_from_every_file(tmp_path: Path):
    write(
        tmp_path,
        tokenizer_config={"eos_token": {"content": DEEPSEEK_TOKENS.eos}},
        generation_config={"eos_token_id": [1, 7], "pad_token_id": 2},
        config={"bos_token_id": 0, "eos_token_id": 5},
    )
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.eos_ids == (1, 7, 5)
    assert (tokenizer.eos_id, tokenizer.bos_id, tokenizer.pad_id) == (1, 0, 2)


def test_a_tokenizer_without_settings_tells_by_itself_whether_prompts_begin_with_bos(tmp_path):
    write(tmp_path, config={"bos_token_id": 0})
    assert Tokenizer.load(tmp_path).adds_bos
    write(tmp_path, tokenizer_config={"add_bos_token": False})
    assert not Tokenizer.load(tmp_path).adds_bos


def test_a_tokenizer_without_an_end_says_where_to_name_one(tmp_path: Path):
    write(tmp_path)
    with pytest.raises(DataError, match="names no token that ends a text; set eos_token"):
        _ = Tokenizer.load(tmp_path).eos_id


def test_a_chat_template_is_found_in_either_file(tmp_path: Path):
    named = [{"name": "tools", "template": "a"}, {"name": "default", "template": "b"}]
    write(tmp_path, tokenizer_config={"chat_template": named})
    assert Tokenizer.load(tmp_path).chat_template == "b"
    (tmp_path / "chat_template.jinja").write_text("c")
    assert Tokenizer.load(tmp_path).chat_template == "c"


def test_what_is_no_tokenizer_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match=r"tokenizer\.json does not exist; give a folder or file"):
        Tokenizer.load(tmp_path)
    write(tmp_path, tokenizer_config={"bos_token": "<nothing>"})
    with pytest.raises(DataError, match=r"bos_token='<nothing>' is not in tokenizer.json; add"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(DataError, match=r"tokenizer_config\.json is not JSON .* fetch it again"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("[]")
    with pytest.raises(DataError, match="holds a list; it should be a JSON object"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match=r"tokenizer\.json is not a tokenizer"):
        Tokenizer.load(tmp_path)


@pytest.mark.parity
def test_transformers_reads_a_saved_tokenizer(tmp_path: Path):
    from transformers import AutoTokenizer

    TOKENIZER.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    for text in [*TEXTS, "", " \n\t x", f"{DEEPSEEK_TOKENS.eos}!"]:
        ids = TOKENIZER.encode(text, special=True)
        assert theirs(text)["input_ids"] == [TOKENIZER.bos_id, *ids]
        assert theirs(text, add_special_tokens=False)["input_ids"] == ids
        assert theirs.decode(ids) == TOKENIZER.decode(ids, skip_special=False)
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (0, 1, 2)
    assert len(theirs) == TOKENIZER.vocab_size
