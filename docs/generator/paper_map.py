"""The paper map: every paper, section and equation with the function that implements it.

It is read from the ``Source:`` lines of docstrings, so it says what the code says.
"""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import moesaic

PACKAGE = Path(moesaic.__file__).parent
PAPERS = {
    "1602.05629": "Communication-Efficient Learning of Deep Networks from Decentralized Data",
    "1603.05766": "Permutation P-values Should Never Be Zero",
    "1711.05101": "Decoupled Weight Decay Regularization",
    "1803.05457": "Think you have Solved Question Answering? (ARC)",
    "1805.04833": "Hierarchical Neural Story Generation",
    "1809.02789": "Can a Suit of Armor Conduct Electricity? (OpenBookQA)",
    "1904.09751": "The Curious Case of Neural Text Degeneration",
    "1905.00537": "SuperGLUE",
    "1905.07830": "HellaSwag",
    "1905.10044": "BoolQ",
    "1910.07467": "Root Mean Square Layer Normalization",
    "2001.08361": "Scaling Laws for Neural Language Models",
    "2002.05202": "GLU Variants Improve Transformer",
    "2006.16668": "GShard",
    "2009.03300": "Measuring Massive Multitask Language Understanding (MMLU)",
    "2010.06192": "Revisiting BFloat16 Training",
    "2101.03961": "Switch Transformers",
    "2104.09864": "RoFormer",
    "2106.04426": "Hash Layers For Large Sparse Models",
    "2106.09685": "LoRA",
    "2107.03374": "Evaluating Large Language Models Trained on Code",
    "2108.07732": "Program Synthesis with Large Language Models (MBPP)",
    "2110.02861": "8-bit Optimizers via Block-wise Quantization",
    "2110.14168": "Training Verifiers to Solve Math Word Problems (GSM8K)",
    "2201.11903": "Chain-of-Thought Prompting",
    "2204.02311": "PaLM",
    "2205.14135": "FlashAttention",
    "2210.03057": "Language Models are Multilingual Chain-of-Thought Reasoners (MGSM)",
    "2212.04089": "Editing Models with Task Arithmetic",
    "2306.01708": "TIES-Merging",
    "2306.16636": "CMATH",
    "2309.00071": "YaRN",
    "2309.01507": "Memory Efficient Optimizers with 4-bit States",
    "2309.06180": "Efficient Memory Management for LLM Serving with PagedAttention",
    "2312.03732": "A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA",
    "2401.02954": "DeepSeek LLM",
    "2401.06066": "DeepSeekMoE",
    "2401.14196": "DeepSeek-Coder",
    "2404.10830": "Fewer Truncations Improve Language Modeling",
    "2405.04434": "DeepSeek-V2",
    "2407.01906": "Let the Expert Stick to His Last (ESFT)",
    "2408.07978": "Coupling without Communication and Drafter-Invariant Speculative Decoding",
    "2408.15664": "Auxiliary-Loss-Free Load Balancing Strategy for Mixture-of-Experts",
    "2409.02060": "OLMoE",
    "2411.00640": "Adding Error Bars to Evals",
    "2412.19437": "DeepSeek-V3",
}
"""Titles by arXiv number; a paper without one is called by its number."""
_FIRST = ("2401.06066", "2405.04434", "2412.19437", "2407.01906", "2408.15664")
"""What most of the package implements."""
_SOURCE = re.compile(r"\bSource: (.+?)(?:\n\s*\n|\Z)", re.DOTALL)
_NUMBER = re.compile(r"(?:[^;()]*?\()?(?:arXiv )?\b(\d{4}\.\d{5})\)?,?\s*")
_PARTS = re.compile(r";\s*|,? and (?=[A-Z][\w .]*\(arXiv )")
_PLACE = re.compile(r"section|eq\.|appendix|tables?|algorithm|theorem")


@dataclass(frozen=True, slots=True)
class Entry:
    """One place that something in the package is taken from."""

    paper: str | None
    """Its arXiv number; None for sources that are no such paper."""
    place: str
    """Section, equation, table; or the whole source."""
    name: str
    """What implements it, from the package down."""


def entries() -> list[Entry]:
    """Every source that the package names, by paper, place and name."""
    found = [entry for path in sorted(PACKAGE.rglob("*.py")) for entry in entries_of(path)]
    return sorted(found, key=lambda one: (_rank(one.paper), _order(one.place), one.name))


def _rank(paper: str | None) -> tuple[int, str]:
    """The papers of the models first, sources that are no papers last."""
    if paper is None:
        return len(_FIRST) + 1, ""
    return (_FIRST.index(paper) if paper in _FIRST else len(_FIRST)), paper


def entries_of(path: Path) -> Iterator[Entry]:
    """The sources that a file names."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    module = ".".join(part for part in parts if part != "__init__")
    for name, docstring in documented(ast.parse(path.read_text(encoding="utf-8")), module):
        for match in _SOURCE.finditer(docstring):
            yield from _split(" ".join(match[1].split()), name)


def documented(node: ast.AST, name: str) -> Iterator[tuple[str, str]]:
    """Everything with a docstring, values too, by its name."""
    body: list[ast.stmt] = getattr(node, "body", [])
    kinds = ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef
    if isinstance(node, kinds) and (text := ast.get_docstring(node)):
        yield name, text
    for before, after in zip([None, *body], body, strict=False):
        match after:
            case ast.Expr(value=ast.Constant(value=str(text))):
                for target in _assigned(before):
                    yield f"{name}.{target}", text
            case ast.ClassDef() | ast.FunctionDef():
                yield from documented(after, f"{name}.{after.name}")


def _order(place: str) -> list[tuple[int, str]]:
    """Equation 9 before equation 12."""
    words = re.findall(r"\d+|\D+", place)
    return [(int(word) if word.isdigit() else -1, word) for word in words]


def paper_map() -> str:
    """The page."""
    lines = [
        "# Paper map",
        "",
        "Which function implements which part of which paper, as the `Source:` lines of their "
        "docstrings say.",
    ]
    found = entries()
    for number in dict.fromkeys(entry.paper for entry in found):
        title = "Other sources" if number is None else PAPERS.get(number, f"arXiv {number}")
        lines += ["", f"## {title}", ""]
        if number is not None:
            lines += [f"[arXiv {number}](https://arxiv.org/abs/{number})", ""]
        lines += [f"| {'where' if number else 'source'} | function |", "| --- | --- |"]
        for entry in found:
            if entry.paper == number:
                place = entry.place.replace("|", "\\|").replace("``", "`")
                lines.append(f"| {place} | {{py:obj}}`{entry.name}` |")
    return "\n".join(lines) + "\n"


def _split(source: str, name: str) -> Iterator[Entry]:
    """The papers of a source; a part without a number goes with the paper before it."""
    paper = None
    for part in _PARTS.split(source.rstrip(".")):
        if match := _NUMBER.search(part):
            paper, place = match[1], part[match.end() :].strip()
            whole = part.strip() if place else "the whole"
            yield Entry(paper, place if _PLACE.search(place) else whole, name)
            others = re.findall(r"arXiv (\d{4}\.\d{5})", part[match.end() :])
            yield from (Entry(other, part.strip(), name) for other in others)
        elif paper is not None and _PLACE.match(part):
            yield Entry(paper, part, name)
        else:
            yield Entry(None, part, name)


def _assigned(node: ast.stmt | None) -> list[str]:
    match node:
        case ast.AnnAssign(target=ast.Name(id=name)):
            return [name]
        case ast.Assign(targets=targets):
            return [target.id for target in targets if isinstance(target, ast.Name)]
    return []
