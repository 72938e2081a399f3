"""Questions of published data sets in the hub's form, and a script whose right answers are known.

A row of a data set decides what the script says to it, so that the scores of the scripted model
follow from the rows alone, without any evaluator.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Self

from benchmarks.measure.lm_harness import log_probability
from moesaic.eval.items import read_rows

PUBLISHED = {"gsm8k": "gsm8k/gsm8k.yaml", "hellaswag": "hellaswag/hellaswag.yaml"}
"""Task → its file in the harness."""
Rows = Mapping[str, Sequence[Mapping[str, Any]]]
"""Split → rows in the hub's form."""
_FILES = {
    "gsm8k": {"test": "gsm8k_test", "train": "gsm8k_train"},
    "hellaswag": {"validation": "hellaswag_val*"},
}
_SAID = (
    (" So it is {right}.\n#### {right}", True, True),
    (" The answer is {right}.", False, True),
    (" So it is {wrong}.\n#### {wrong}", False, False),
    (" #### {right}\nBut then {wrong}", True, False),
    (" I do not know.", False, False),
)
"""Answers in words, with whether the strict and the flexible filter find the right number."""


def rows_of(name: str, folder: Path) -> Rows:
    """The rows of a data set below a folder.

    Raises:
        SystemExit: if a file is missing.
    """
    found: dict[str, Sequence[Mapping[str, Any]]] = {}
    for split, pattern in _FILES[name].items():
        files = sorted(folder.rglob(f"{pattern}.jsonl*"))
        if not files:
            raise SystemExit(f"{folder} has no {pattern}.jsonl of {name}; put it there")
        found[split] = [_in_hub_form(row.fields) for row in read_rows(files[0])]
    return with_examples(found)


def with_examples(rows: Rows) -> Rows:
    """A training split where there is none: the harness opens one, though it shows none of it."""
    return {"train": rows["validation"][:8], **rows} if "validation" in rows else rows


def _in_hub_form(row: Mapping[str, Any]) -> dict[str, Any]:
    """Rows of HellaSwag whose parts were put together are taken apart."""
    if "query" not in row:
        return dict(row)
    activity, _, context = row["query"].partition(": ")
    parts = {"activity_label": activity, "ctx_a": context, "ctx_b": ""}
    return {**parts, "endings": row["endings"], "label": str(row["label"])}


@dataclass(frozen=True, slots=True)
class Questions:
    """Data sets on disk, and what the scripted model says to them."""

    folder: Path
    rows: Mapping[str, Rows]
    """Task → split → rows, cut to what is asked."""
    answers: Mapping[str, Sequence[str]]
    """Question → the text that the scripted model writes."""

    @classmethod
    def write(cls, folder: Path, rows: Mapping[str, Rows], limit: int | None) -> Self:
        """Write the files that both sides read."""
        for name, splits in rows.items():
            (folder / name).mkdir(parents=True)
            for split, each in splits.items():
                lines = "".join(json.dumps(row) + "\n" for row in each)
                (folder / name / f"{split}.jsonl").write_text(lines, encoding="utf-8")
        cut = {
            name: {split: each if split == "train" else each[:limit] for split, each in of.items()}
            for name, of in rows.items()
        }
        problems = cut.get("gsm8k", {}).get("test", ())
        answers = {row["question"]: [_said(place, row)] for place, row in enumerate(problems)}
        return cls(folder, cut, answers)

    def files(self, name: str) -> dict[str, str]:
        """Split → its file."""
        return {split: str(self.folder / name / f"{split}.jsonl") for split in self.rows[name]}

    def known(self, name: str) -> dict[str, float]:
        """The scripted model's scores, from the rows alone."""
        if name == "gsm8k":
            right = [_SAID[place % len(_SAID)][1:] for place in range(len(self.answers))]
            names = ("exact_match,strict-match", "exact_match,flexible-extract")
            return {
                each: fmean(column)
                for each, column in zip(names, zip(*right, strict=True), strict=True)
            }
        chosen = [_chosen(row) for row in self.rows[name]["validation"]]
        return {
            each: fmean(column)
            for each, column in zip(("acc", "acc_norm"), zip(*chosen, strict=True), strict=True)
        }


def _said(place: int, row: Mapping[str, Any]) -> str:
    right = row["answer"].split("#### ")[-1].strip()
    return _SAID[place % len(_SAID)][0].format(right=right, wrong=f"7{right}7")


def _chosen(row: Mapping[str, Any]) -> tuple[bool, bool]:
    """Whether the right ending is the likeliest, by itself and for its length."""
    parts = f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}"
    context, endings = _cleaned(parts), [_cleaned(ending) for ending in row["endings"]]
    p = [log_probability(context, f" {ending}") for ending in endings]
    by_length = [one / len(ending) for one, ending in zip(p, endings, strict=True)]
    label = int(row["label"])
    return p.index(max(p)) == label, by_length.index(max(by_length)) == label


def _cleaned(text: str) -> str:
    """As the harness cleans texts of WikiHow."""
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")


QUICK_ROWS: Mapping[str, Rows] = {
    "gsm8k": {
        split: [
            {
                "question": f"A shelf holds {n} books. How many do 3 shelves hold?",
                "answer": f"3 * {n} = <<3*{n}={3 * n}>>{3 * n}\n#### {3 * n}",
            }
            for n in numbers
        ]
        for split, numbers in (("test", range(20)), ("train", range(100, 112)))
    },
    "hellaswag": with_examples(
        {
            "validation": [
                {
                    "activity_label": "Stacking boxes",
                    "ctx_a": f"A man has {n} boxes. He",
                    "ctx_b": "",
                    "endings": [f"puts {n + k} of them on a table." for k in range(4)],
                    "label": str(n % 4),
                }
                for n in range(20)
            ]
        }
    ),
}
"""Items of our own making."""
