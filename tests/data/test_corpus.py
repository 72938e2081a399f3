from pathlib import Path

import pytest

from moesaic.config.data import Split
from moesaic.data import corpus
from moesaic.errors import DataError

FOLDER = Path(corpus.__file__).parent


@pytest.fixture(scope="module")
def texts() -> dict[str, dict[Split, list[str]]]:
    """Every domain's texts, by split."""
    splits: tuple[Split, ...] = ("train", "held_out", "all")
    return {
        domain: {split: corpus.read(domain, split) for split in splits}
        for domain in corpus.domains()
    }


def test_the_corpus_has_six_domains_of_real_text(texts):
    assert corpus.domains() == ("chinese", "english", "french", "math", "rust", "shakespeare")
    for domain in texts.values():
        assert len(domain["all"]) > 300
        assert sum(map(len, domain["all"])) > 300_000
        assert all(0 < len(text) < 12_000 for text in domain["all"])


def test_about_a_twentieth_of_every_domain_is_held_out(texts):
    for domain in texts.values():
        assert not set(domain["held_out"]) & set(domain["train"])
        assert sorted(domain["held_out"] + domain["train"]) == sorted(domain["all"])
        assert 0.03 < len(domain["held_out"]) / len(domain["all"]) < 0.07


def test_no_text_comes_twice(texts):
    for domain in texts.values():
        assert len(set(domain["all"])) == len(domain["all"])


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
