"""MMLU: four-choice questions of 57 subjects, each behind five of its subject.

``mmlu`` asks all; ``mmlu_stem`` and so on one of four parts; ``mmlu_anatomy`` and so on a subject.
The mean over all items is the mean of subjects weighted by size that lm-evaluation-harness gives.
The harness shows no examples unless asked; five, as here, are what the paper shows.

Source: Hendrycks et al. (arXiv 2009.03300), section 4; prompts as in lm-evaluation-harness (MIT),
group mmlu, version 1 of its subjects.
"""

from collections.abc import Collection, Sequence

from moesaic.errors import DataError
from moesaic.eval.items import Row
from moesaic.eval.task import Item
from moesaic.eval.tasks.choice import ACC, ChoiceTask, choice_item
from moesaic.eval.tasks.files import Loaded, Split, load
from moesaic.eval.tasks.mmlu_subjects import PARTS
from moesaic.eval.tasks.options import Options
from moesaic.eval.tasks.prompts import Prompts, first_examples

TASKS = ("mmlu", *(f"mmlu_{part}" for part in PARTS))
SUBJECTS = tuple(sorted(subject for subjects in PARTS.values() for subject in subjects))
SUBJECT_TASKS = tuple(f"mmlu_{subject}" for subject in SUBJECTS)

_FIELDS = "subject, question, choices and answer (and split, if one file holds several)"
_LETTERS = "ABCD"
_SHOTS = 5


def find_task(name: str, options: Options) -> ChoiceTask:
    """One of `TASKS` or `SUBJECT_TASKS`.

    Raises:
        DataError: if the data is not there or not readable, or lacks a subject.
    """
    shots = _SHOTS if options.shots is None else options.shots
    test = load(_split("test"), options.data)
    dev = load(_split("dev"), options.data) if shots else Loaded((), {})
    subjects = _subjects(name.removeprefix("mmlu").removeprefix("_"))
    questions = _first_of_each(test.items, subjects, options)
    return ChoiceTask(
        name=name,
        items=first_examples(questions, dev.items, shots, same="subject"),
        prompts=Prompts(dev.items, heading=_heading),
        metrics=(ACC,),
        description={
            "version": 1,
            "shots": shots,
            "data": {"test": test.origin, **({"dev": dev.origin} if shots else {})},
        },
        group_by="subject",
    )


def _split(part: str) -> Split:
    def question(row: Row) -> Item | None:
        if row.has("split") and row.text("split") != part:
            return None
        choices = row.texts("choices")
        if len(choices) != len(_LETTERS):
            raise DataError(f"{row.where}: {len(choices)} choices; a question of MMLU has 4")
        options = "".join(f"{x}. {c}\n" for x, c in zip(_LETTERS, choices, strict=True))
        prompt = f"{row.text('question').strip()}\n{options}Answer:"
        item = choice_item(prompt, _LETTERS, row.index("answer", len(_LETTERS)))
        return {**item, "subject": row.text("subject")}

    names = (f"mmlu_{part}", f"mmlu/{part}", f"mmlu/all/{part}", f"mmlu/*/{part}", "mmlu")
    return Split(f"mmlu's {part} split", names, _FIELDS, question)


def _subjects(part: str) -> Collection[str]:
    if part in PARTS:
        return PARTS[part]
    return (part,) if part else SUBJECTS


def _first_of_each(
    items: Sequence[Item], subjects: Collection[str], options: Options
) -> Sequence[Item]:
    """Questions of the subjects, of each those within the limit, subject by subject."""
    by_subject: dict[str, list[Item]] = {subject: [] for subject in subjects}
    for item in items:
        if item["subject"] in by_subject:
            by_subject[item["subject"]].append(item)
    if missing := [subject for subject, asked in by_subject.items() if not asked]:
        raise DataError(
            f"{options.data}: mmlu's test split has no questions of {', '.join(missing)}; "
            "fetch them, or ask only the subjects that are there, as mmlu_anatomy"
        )
    return [item for asked in by_subject.values() for item in options.first(asked)]


def _heading(item: Item) -> str:
    subject = item["subject"].replace("_", " ")
    return f"The following are multiple choice questions (with answers) about {subject}.\n\n"
