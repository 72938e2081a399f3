"""Which choice a model takes, by probability and by probability per character."""

from moesaic.eval.requests import Likelihood, LikelihoodAnswer
from moesaic.eval.tasks.choice import ACC, ACC_NORM, ChoiceTask, choice_item
from moesaic.eval.tasks.prompts import Prompts

ITEM = choice_item("The sky is", ["blue", "green as grass", "red"], gold=1)
TASK = ChoiceTask("sky", [ITEM], Prompts(), (ACC, ACC_NORM), {})


def judge(*log_probabilities: float):
    return TASK.judge(ITEM, [LikelihoodAnswer(p, False, 1) for p in log_probabilities])


def test_every_choice_is_asked_behind_a_space():
    assert TASK.requests(ITEM) == [
        Likelihood("The sky is", " blue"),
        Likelihood("The sky is", " green as grass"),
        Likelihood("The sky is", " red"),
    ]


def test_the_most_probable_choice_is_taken():
    assert judge(-9.0, -1.0, -8.0).values == {"acc": 1.0, "acc_norm": 1.0}


def test_a_long_choice_can_win_by_character():
    judgement = judge(-4.0, -7.0, -9.0)
    assert judgement.values == {"acc": 0.0, "acc_norm": 1.0}
    assert (judgement.answer, judgement.target) == ("blue", "green as grass")


def test_characters_are_counted_and_not_bytes():
    item = choice_item("天", ["蓝色", "green"], gold=1)
    answers = [LikelihoodAnswer(-4.0, False, 1), LikelihoodAnswer(-9.0, False, 1)]
    assert TASK.judge(item, answers).values["acc_norm"] == 1.0


def test_of_equals_the_first_is_taken():
    assert judge(-1.0, -1.0, -1.0).answer == "blue"


def test_an_empty_choice_is_divided_by_nothing():
    item = choice_item("x", ["", "y"], gold=0)
    answers = [LikelihoodAnswer(-1.0, False, 1), LikelihoodAnswer(-2.0, False, 1)]
    assert TASK.judge(item, answers).values == {"acc": 1.0, "acc_norm": 1.0}


def test_metrics_are_those_of_the_task():
    task = ChoiceTask("sky", [ITEM], Prompts(), (ACC,), {}, group_by="answer")
    answers = [LikelihoodAnswer(-1.0, False, 1)] * 3
    assert task.judge(ITEM, answers).values.keys() == {"acc"}
    assert (task.group(ITEM), TASK.group(ITEM)) == ("green as grass", None)
