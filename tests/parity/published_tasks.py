"""Small data sets of our own making in the hub's form, and the published tasks that read them."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

LANGUAGES = ("de", "en", "es", "fr", "ja", "ru", "zh")
SUBJECTS = {
    "anatomy": 3,
    "astronomy": 2,
    "formal_logic": 5,
    "management": 1,
    "sociology": 4,
}
"""Subjects of MMLU from all its parts, with different numbers of questions."""
GROUPS = ("_mmlu", *(f"_mmlu_{x}" for x in ("humanities", "other", "social_sciences", "stem")))
ITEMS, EXAMPLES = range(24), range(100, 112)
MIXED = (0, 1, 1, 1, 2, 3, *range(100, 104))
"""Examples among which are questions, one of them several times."""

Rows = Iterable[Mapping[str, Any]]
Files = dict[str, str]


def problem(n: int) -> str:
    """A question whose answer is ``3 * n``."""
    return f"A shelf holds {n} books of $1,0{n}.50. How many do 3 shelves hold?"


def said(n: int) -> list[str]:
    """Right, wrong and odd answers to it."""
    number = f"{3 * n:,}"
    endings = ("Die Antwort lautet", "The answer is", "La respuesta es", "La réponse est")
    return [
        f" {n} + {n} + {n} = {number}\n#### {number}",
        f" {n} + {n} + {n} = {number}\n#### {number}.",
        f"#### {number} and then #### {n}",
        *(f" So. {ending} {number}." for ending in endings),
        f" 答えは{number}です。",
        f" Ответ — {number} книг",
        f" 答案是 {number}。不是 {n}。",
        f"  {number} \n",
        f"It is ${number}.00, not more than {n}.",
        f"-{number}",
        f"${number}.",
        "...",
        "I do not know",
        "",
    ]


ANSWERS = {problem(n): said(n) for n in ITEMS}


def write_data(folder: Path) -> dict[str, tuple[str, Files]]:
    """Write the data sets; for every task of the harness its own file and its data files."""
    tasks: dict[str, tuple[str, Files]] = {}
    gsm8k = save(folder, "gsm8k", train=gsm8k_rows(EXAMPLES), test=gsm8k_rows(ITEMS))
    tasks["gsm8k"] = ("gsm8k/gsm8k.yaml", gsm8k)
    tasks["gsm8k_cot"] = ("gsm8k/gsm8k-cot.yaml", gsm8k)
    for code in LANGUAGES:
        files = save(folder, f"mgsm/{code}", train=mgsm_examples(), test=mgsm_rows())
        for kind in ("direct", "native_cot"):
            name = f"mgsm_{kind}_{code}"
            tasks[name] = (f"mgsm/{kind}/{name}.yaml", files)
    for name in ("arc_easy", "arc_challenge"):
        files = save(folder, name, train=arc(EXAMPLES), validation=arc(ITEMS), test=arc(ITEMS))
        tasks[name] = (f"arc/{name}.yaml", files)
    stems = [{"question_stem": row.pop("question"), **row} for row in arc([*EXAMPLES, *ITEMS])]
    split = len(EXAMPLES)
    files = save(
        folder, "openbookqa", train=stems[:split], validation=stems[:split], test=stems[split:]
    )
    tasks["openbookqa"] = ("openbookqa/openbookqa.yaml", files)
    files = save(folder, "hellaswag", train=hellaswag(MIXED), validation=hellaswag(ITEMS))
    tasks["hellaswag"] = ("hellaswag/hellaswag.yaml", files)
    files = save(folder, "boolq", train=boolq(MIXED), validation=boolq(ITEMS))
    tasks["boolq"] = ("super_glue/boolq/default.yaml", files)
    for subject, count in SUBJECTS.items():
        rows = {"dev": mmlu(subject, EXAMPLES[:5]), "test": mmlu(subject, ITEMS[:count])}
        files = save(folder, f"mmlu/{subject}", **rows)
        tasks[f"mmlu_{subject}"] = (f"mmlu/default/mmlu_{subject}.yaml", files)
    return tasks


def save(folder: Path, name: str, **splits: Rows) -> Files:
    """Write the splits of a data set, as JSON lines."""
    (folder / name).mkdir(parents=True)
    files = {split: folder / name / f"{split}.jsonl" for split in splits}
    for split, rows in splits.items():
        files[split].write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {split: str(file) for split, file in files.items()}


def gsm8k_rows(numbers: Iterable[int]) -> Rows:
    return [
        {"question": problem(n), "answer": f"3 * {n} = <<3*{n}={3 * n}>>\n#### {3 * n:,}"}
        for n in numbers
    ]


def mgsm_rows() -> Rows:
    rest = {"answer": None, "equation_solution": None}
    return [{"question": problem(n), "answer_number": 3 * n, **rest} for n in ITEMS]


def mgsm_examples() -> Rows:
    label = "A label of a length that suits no language: "
    return [
        {
            "question": f"Label: {problem(n)}",
            "answer_number": 3 * n,
            "answer": f"{label}3 * {n}. The answer is {3 * n}.",
            "equation_solution": f"3*{n}",
        }
        for n in EXAMPLES
    ]


def arc(numbers: Iterable[int]) -> list[dict[str, Any]]:
    """Questions of three to five choices, labelled by letters or by numbers."""
    rows = []
    for n in numbers:
        labels = list("12345" if n % 2 else "ABCDE")[: 3 + n % 3]
        texts = [f"{'long ' * (n % (k + 2))}thing {n + k}" for k in range(len(labels))]
        rows.append(
            {
                "id": f"q{n}",
                "question": f" Which thing is {n}? ",
                "choices": {"text": texts, "label": labels},
                "answerKey": labels[n % len(labels)],
            }
        )
    return rows


def hellaswag(numbers: Iterable[int]) -> Rows:
    return [
        {
            "ind": n,
            "activity_label": f"Stacking {n} boxes",
            "ctx_a": f" [header] How to stack [title] Take  {n} boxes. [step] Lift",
            "ctx_b": "she Takes" if n % 2 else "",
            "ctx": "not read",
            "endings": [f"{'more ' * k}[substeps] boxes [title] {n + k}. " for k in range(4)],
            "source_id": f"s{n}",
            "label": str(n % 4),
        }
        for n in numbers
    ]


def boolq(numbers: Iterable[int]) -> Rows:
    return [
        {
            "passage": f"Box {n} is {'red' if n % 3 else 'blue'}.\nIt is old.",
            "question": f"is box {n} red",
            "idx": n,
            "label": int(n % 3 > 0),
        }
        for n in numbers
    ]


def mmlu(subject: str, numbers: Iterable[int]) -> Rows:
    return [
        {
            "question": f" What is {subject} {n}?\n",
            "subject": subject,
            "choices": [f" choice {n + k}" for k in range(4)],
            "answer": n % 4,
        }
        for n in numbers
    ]
