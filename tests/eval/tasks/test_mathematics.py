"""GSM8K, MGSM and CMATH: prompts, examples, and answers that are right."""

import pytest

from moesaic.errors import ConfigError, DataError
from moesaic.eval.requests import Generation, GenerationAnswer
from moesaic.eval.task import Task
from moesaic.eval.tasks.cmath import value_of
from moesaic.eval.tasks.gsm8k_examples import CHAIN_OF_THOUGHT
from moesaic.eval.tasks.registry import find_task

from .conftest import Write


def asked(task: Task, place: int = 0) -> Generation:
    [request] = task.requests(task.items[place])
    assert isinstance(request, Generation)
    return request


def scores(task: Task, text: str) -> list[float]:
    values = task.judge(task.items[0], [GenerationAnswer(text, 1)]).values
    return [value for value in values.values() if isinstance(value, float)]


def test_gsm8k_shows_five_examples_of_the_training_split(write: Write, problems):
    data = write("gsm8k_test.jsonl", problems[:2])
    write("gsm8k_train.jsonl", problems[2:])
    task = find_task("gsm8k", data)
    *examples, question = asked(task).prompt.split("\n\n")
    given = [f"Question: {p['question']}\nAnswer: {p['answer']}" for p in problems[2:]]
    assert len(examples) == 5
    assert set(examples) <= set(given)
    assert question == f"Question: {problems[0]['question']}\nAnswer:"
    assert asked(task).stop == ("Question:", "</s>", "<|im_end|>")
    assert task.description["shots"] == 5
    assert task.description["seed"] == 1234


def test_gsm8k_without_examples_needs_no_training_split(write: Write, problems):
    data = write("gsm8k_test.jsonl", problems)
    assert asked(find_task("gsm8k", data, shots=0)).prompt.startswith("Question: Ada has 1 ")
    with pytest.raises(DataError, match=r"no file of gsm8k's train split; .* named gsm8k_train or"):
        find_task("gsm8k", data)


def test_gsm8k_wants_the_published_form_or_the_last_number(write: Write, problems):
    task = find_task("gsm8k", write("gsm8k_test.jsonl", problems[6:]), shots=0)
    assert scores(task, "7 + 7 = 14\n#### 14") == [1.0, 1.0]
    assert scores(task, "She has $14.") == [0.0, 1.0]
    assert scores(task, "#### 14 of 20") == [1.0, 0.0]
    assert scores(task, "#### 1,4.") == [1.0, 1.0]
    assert scores(task, "#### 14.0") == [0.0, 0.0]
    assert task.judge(task.items[0], [GenerationAnswer("#### 14", 1)]).target == "14"


def test_gsm8k_cot_shows_eight_examples_of_its_own(write: Write, problems):
    task = find_task("gsm8k_cot", write("gsm8k_test.jsonl", problems))
    *examples, question = asked(task).prompt.split("\n\n")
    assert examples == [f"Q: {q}\nA: {a}" for q, a in CHAIN_OF_THOUGHT]
    assert len(examples) == 8
    assert question == f"Q: {problems[0]['question']}\nA:"
    assert scores(task, " 1 + 1 = 2. The answer is 2.") == [1.0, 1.0]
    assert scores(task, "So 2") == [0.0, 1.0]


def test_the_answers_of_the_eight_examples_follow_from_their_steps():
    answers = [a.rpartition("The answer is ")[2].rstrip(".") for _, a in CHAIN_OF_THOUGHT]
    assert answers == ["6", "5", "39", "8", "9", "29", "33", "8"]


def test_gsm8k_cot_has_no_ninth_example(write: Write, problems):
    with pytest.raises(ConfigError, match="shots=9: gsm8k_cot has 8 examples, no more"):
        find_task("gsm8k_cot", write("gsm8k_test.jsonl", problems), shots=9)


def test_mgsm_reads_the_files_first_published(write: Write):
    data = write("mgsm_fr.tsv", [])
    (data / "mgsm_fr.tsv").write_text("Combien ?\t2,125\nEt ici ?\t3\n")
    task = find_task("mgsm_direct_fr", data)
    assert asked(task) == Generation(
        "Question : Combien ?\nRéponse :", ("Question :", "</s>", "<|im_end|>"), 256
    )
    assert scores(task, " 2125\n") == [1.0, 1.0]
    assert scores(task, "2,125") == [1.0, 1.0]
    assert scores(task, "Ce sont 2125.") == [0.0, 1.0]


@pytest.mark.parametrize(
    ("language", "prompt", "sentence"),
    [
        ("de", "Frage: Q\nSchritt-für-Schritt-Antwort:", "Die Antwort lautet 7."),
        ("en", "Question: Q\nStep-by-Step Answer:", "The answer is 7."),
        ("es", "Pregunta: Q\nRespuesta paso a paso:", "La respuesta es 7."),
        ("fr", "Question : Q\nRéponse étape par étape :", "La réponse est 7."),
        ("ja", "問題： Q\nステップごとの答え:", "答えは7です。"),  # noqa: RUF001
        ("ru", "Задача: Q\nПошаговоерешение:", "Ответ — 7."),  # noqa: RUF001
        ("zh", "问题： Q\n逐步解答:", "答案是 7。"),  # noqa: RUF001
    ],
)
def test_mgsm_asks_for_steps_in_every_language(
    write: Write, language: str, prompt: str, sentence: str
):
    data = write(f"mgsm/{language}/test.jsonl", [{"question": "Q", "answer_number": 7}])
    task = find_task(f"mgsm_native_cot_{language}", data)
    assert asked(task).prompt == prompt
    assert scores(task, f"3 + 4 = 7. {sentence}") == [1.0, 1.0]
    assert scores(task, "7") == [0.0, 1.0]


def test_mgsm_draws_examples_whose_texts_have_labels(write: Write):
    data = write("mgsm_en.jsonl", [{"question": "Q", "answer": None, "answer_number": 7}])
    example = {
        "question": "Question: E",
        "answer": "Step-by-Step Answer: 1 + 1 = 2. The answer is 2.",
        "answer_number": 2,
    }
    write("mgsm_en_train.jsonl", [example])
    steps = asked(find_task("mgsm_native_cot_en", data, shots=1)).prompt
    direct = asked(find_task("mgsm_direct_en", data, shots=1)).prompt
    assert steps.startswith("Question: E\nStep-by-Step Answer: 1 + 1 = 2. The answer is 2.\n\n")
    assert direct.startswith("Question: E\nAnswer:2\n\nQuestion: Q")


CMATH = {"grade": 3, "input": "花{坛}多少？", "golden": "2/6", "reasoning_step": 1}  # noqa: RUF001


def test_cmath_asks_in_chinese_by_grade(write: Write):
    task = find_task("cmath", write("cmath_dev.jsonl", [CMATH]))
    assert asked(task).prompt.startswith("问题：花{坛}多少？\n")  # noqa: RUF001
    assert asked(task).prompt.endswith("\n解答：")  # noqa: RUF001
    assert task.group(task.items[0]) == "grade 3"
    assert find_task("cmath", write("cmath_test.jsonl", [{**CMATH, "question": "?"}])).items


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("1 ÷ 3 = 1/3\n答案是1/3。", [1.0, 1.0]),
        ("答案是：２／６", [1.0, 1.0]),  # noqa: RUF001
        ("答案为 2/6 米，不是 5 米", [1.0, 0.0]),  # noqa: RUF001
        ("得 1/3", [0.0, 1.0]),
        ("答案是不知道", [0.0, 0.0]),
    ],
)
def test_cmath_wants_the_sentence_or_the_last_number(write: Write, text: str, right: list[float]):
    assert scores(find_task("cmath", write("cmath.jsonl", [CMATH])), text) == right


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2/6", "1/3"),
        ("12%", "3/25"),
        ("0.12", "3/25"),
        ("1,200.0", "1200"),
        ("-4", "-4"),
        ("3/0", "3/0"),
        ("许多", "许多"),
    ],
)
def test_numbers_of_cmath_are_compared_by_value(text: str, value: str):
    assert value_of(text) == value


def test_cmath_has_no_examples(write: Write):
    with pytest.raises(ConfigError, match="shots=3: cmath is asked without examples"):
        find_task("cmath", write("cmath.jsonl", [CMATH]), shots=3)
