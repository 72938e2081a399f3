from pathlib import Path

import pytest

from moesaic.data import corpus
from moesaic.errors import DataError

FOLDER = Path(corpus.__file__).parent


def test_the_corpus_has_six_domains_of_real_text():
    assert corpus.domains() == ("chinese", "english", "french", "math", "rust", "shakespeare")
    for domain in corpus.domains():
        texts = corpus.read(domain, "all")
        assert len(texts) > 300
        assert sum(map(len, texts)) > 300_000
        assert all(0 < len(text) < 12_000 for text in texts)


def test_about_a_twentieth_of_every_domain_is_held_out():
    for domain in corpus.domains():
        held_out, train = corpus.read(domain, "held_out"), corpus.read(domain)
        assert not set(held_out) & set(train)
        assert sorted(held_out + train) == sorted(corpus.read(domain, "all"))
        assert 0.03 < len(held_out) / len(held_out + train) < 0.07


def test_no_text_comes_twice():
    for domain in corpus.domains():
        texts = corpus.read(domain, "all")
        assert len(set(texts)) == len(texts)


def test_the_corpus_is_small_and_its_sources_and_licences_are_told():
    assert sum(file.stat().st_size for file in FOLDER.glob("*.xz")) < 3_500_000
    told = (FOLDER / "SOURCES.md").read_text(encoding="utf-8")
    for domain in corpus.domains():
        size = corpus.file_of(domain).stat().st_size
        assert f"| {domain} |" in told
        assert f"{size:,}" in told
    assert len(list((FOLDER / "LICENSES").glob("*.txt"))) == 5


def test_an_unknown_domain_is_refused_with_the_known_ones():
    with pytest.raises(DataError, match=r"no domain 'maths'; did you mean 'math'.*it has chinese"):
        corpus.read("maths")
