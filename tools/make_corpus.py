"""Make the corpus that ships with moesaic: `python tools/make_corpus.py INPUT`.

INPUT is a folder with the files that `DOMAINS` names, made from the repositories and commits that
the corpus's SOURCES.md lists, and their licences under LICENSES/. The same input gives the same
bytes.
"""

import argparse
import json
import lzma
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

CORPUS = Path(__file__).parent.parent / "moesaic" / "data" / "corpus"

Row = dict[str, str]
Licence = tuple[str, str]
"""File name in the corpus, file name in the input."""

_INCLUDED_CODE = re.compile(r"```[^\n]*\n\{\{#[^\n]*\}\}\n```\n*")
_EVERYWHERE_FREE = {  # authors who died more than seventy years ago
    "Lilith; A Romance",
    "The Camera Fiend",
    "Tono-bungay",
    "Dodo",
    "Daphne, or Marriage a la Mode",
    "Un capitaine de quinze ans",
    "Militona",
    "Les dieux ont soif",
    "Conscience",
}
_CHINESE_BOOKS = {"诗经", "楚辞", "论语", "四书五经", "蒙学", "宋词/宋词三百首.json"}


def pieces(text: str, size: int, between: str = "\n\n") -> Iterator[str]:
    """Runs of whole paragraphs of about ``size`` characters."""
    run: list[str] = []
    for paragraph in text.split(between):
        if run and sum(map(len, run)) + len(paragraph) > size:
            yield between.join(run).strip()
            run = []
        run.append(paragraph)
    yield between.join(run).strip()


def novels(path: Path) -> Iterator[Row]:
    """Pieces of the novels that are free everywhere."""
    for row in read_rows(path):
        if row["title"] in _EVERYWHERE_FREE:
            for piece in pieces(row["text"], 4000):
                yield {"text": piece, "source": row["title"]}


def plays(path: Path) -> Iterator[Row]:
    """Pieces of plays, cut between speeches."""
    for piece in pieces(lzma.decompress(path.read_bytes()).decode(), 2500):
        yield {"text": piece}


def problems(path: Path) -> Iterator[Row]:
    """Word problems with worked answers."""
    for row in read_rows(path):
        yield {
            "prompt": f"Question: {row['question']}\nAnswer:",
            "completion": f" {row['answer']}",
        }


def manual(path: Path) -> Iterator[Row]:
    """Sections of a technical book, without directives that include code kept elsewhere."""
    for row in read_rows(path):
        if not row["source"].endswith("SUMMARY.md"):
            for piece in pieces(_INCLUDED_CODE.sub("", row["text"]), 4000):
                yield {"text": piece, "source": Path(row["source"]).stem}


def classics(path: Path) -> Iterator[Row]:
    """Poems, and pieces of prose."""
    for row in read_rows(path):
        if _CHINESE_BOOKS & {row["source"], row["source"].split("/")[0]}:
            for piece in pieces(row["text"], 1500, "\n"):
                yield {"text": piece, "source": row["source"].removesuffix(".json")}


@dataclass(frozen=True)
class Domain:
    """One file of the corpus."""

    name: str
    about: str
    file: str
    rows: Callable[[Path], Iterable[Row]]
    origin: str
    licence: str
    texts: tuple[Licence, ...] = ()


_ELTEC = "public domain texts; the transcription's markup is CC-BY-4.0 (COST Action ELTeC)"
_CC_BY = (("CC-BY-4.0.txt", "XiaoMi__cmath__CC-BY-LICENSE.txt"),)
DOMAINS = (
    Domain(
        "english",
        "English novels, 1893-1911: MacDonald, Wells, Hornung, Benson, Ward",
        "text/en_novels.jsonl.xz",
        novels,
        "COST-ELTeC/ELTeC-eng @ 3db3b67, `level1/*.xml`",
        _ELTEC,
        _CC_BY,
    ),
    Domain(
        "french",
        "French novels, 1847-1912: Gautier, Verne, Malot, France",
        "text/fr_novels.jsonl.xz",
        novels,
        "COST-ELTeC/ELTeC-fra @ 83f0a43, `level1/*.xml`",
        _ELTEC,
        _CC_BY,
    ),
    Domain(
        "shakespeare",
        "Shakespeare's plays",
        "text/en_tinyshakespeare.txt.xz",
        plays,
        "karpathy/char-rnn @ 6f9487a, `data/tinyshakespeare/input.txt`",
        "public domain",
    ),
    Domain(
        "math",
        "GSM8K, training split: grade-school word problems with worked answers",
        "math/gsm8k_train.jsonl.xz",
        problems,
        "openai/grade-school-math @ 3101c7d, `grade_school_math/data/train.jsonl`",
        "MIT",
        (("MIT-gsm8k.txt", "openai__grade-school-math__LICENSE.txt"),),
    ),
    Domain(
        "rust",
        "The Rust Programming Language: technical English",
        "text/en_rustbook.jsonl.xz",
        manual,
        "rust-lang/book @ 917544888, `src/*.md`",
        "MIT or Apache-2.0",
        (
            ("MIT-rust-book.txt", "rust-lang__book__LICENSE-MIT.txt"),
            ("Apache-2.0-rust-book.txt", "rust-lang__book__LICENSE-APACHE.txt"),
        ),
    ),
    Domain(
        "chinese",
        "Classical Chinese verse and prose",
        "text/zh_classical.jsonl.xz",
        classics,
        "chinese-poetry/chinese-poetry @ 99ebbef, the books named in each row",
        "MIT",
        (("MIT-chinese-poetry.txt", "chinese-poetry__chinese-poetry__LICENSE.txt"),),
    ),
)

_HEAD = """# The corpus that ships with moesaic

Small real texts of several domains, for demonstrations and tests. Cut into documents of a few kB
and otherwise unchanged, except that `rust` leaves out directives that include code kept elsewhere.
Made by `tools/make_corpus.py`. One JSON object per line; read it with `moesaic.data.corpus`.

| domain | documents | characters | bytes | what | origin | licence |
| --- | ---: | ---: | ---: | --- | --- | --- |
"""
_FOOT = """
Licence texts are in `LICENSES/`. Of the ELTeC collections only texts of authors who died more than
seventy years ago are taken, as plain text.
"""


def read_rows(path: Path) -> list[Row]:
    """The objects of a compressed JSONL file."""
    with lzma.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def make(source: Path, corpus: Path) -> None:
    """Write every domain, its licences, and SOURCES.md."""
    licences = corpus / "LICENSES"
    licences.mkdir(parents=True, exist_ok=True)
    table = ""
    for domain in DOMAINS:
        lines = [
            json.dumps(row, ensure_ascii=False, separators=(",", ":"))
            for row in domain.rows(source / domain.file)
        ]
        lines = list(dict.fromkeys(lines))
        raw = "".join(line + "\n" for line in lines)
        packed = lzma.compress(raw.encode(), preset=9 | lzma.PRESET_EXTREME)
        (corpus / f"{domain.name}.jsonl.xz").write_bytes(packed)
        for name, original in domain.texts:
            shutil.copyfile(source / "LICENSES" / original, licences / name)
        cells = [domain.name, f"{len(lines):,}", f"{len(raw):,}", f"{len(packed):,}"]
        table += f"| {' | '.join([*cells, domain.about, domain.origin, domain.licence])} |\n"
    (corpus / "SOURCES.md").write_text(_HEAD + table + _FOOT, encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Make the corpus that ships with moesaic.")
    parser.add_argument("input", type=Path, help="folder with the original files")
    parser.add_argument("--out", type=Path, default=CORPUS, help="folder to write")
    arguments = parser.parse_args()
    make(arguments.input, arguments.out)
