"""Recorded routing, in the form and with the numbers that ESFT published."""

import json
import lzma
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from moesaic.analyse.counts import Seen
from moesaic.analyse.study import Study, pass_traces
from moesaic.analyse.traces import read_traces
from moesaic.config.analyse import RoutingConfig
from moesaic.config.model import ModelConfig
from moesaic.config.presets import get_preset
from moesaic.errors import DataError
from moesaic.esft.select import select_experts

PUBLISHED = Path(__file__).parents[1] / "spec" / "esft"
TASKS = ("intent", "law", "summary", "translation")
DIGIT = 1e-4  # the last one that is published
ALL = RoutingConfig(tokens=1_000_000)


@pytest.fixture(scope="module")
def published() -> Mapping[str, Any]:
    """What README.md beside the file says, by task and name."""
    packed = lzma.decompress((PUBLISHED / "routing.npz.xz").read_bytes())
    with np.load(BytesIO(packed), allow_pickle=False) as arrays:
        return {name: arrays[name].astype(np.int64) for name in arrays.files}


@pytest.fixture(scope="module")
def v2_lite() -> ModelConfig:
    return get_preset("deepseek-v2-lite")


def _tokens(chosen: Any, gates: Any) -> Seen:
    """Tokens that choose 64 experts as often, with those sums of gate values."""
    ids = np.repeat(np.arange(64), chosen).reshape(6, -1).T  # no token chooses an expert twice
    return Seen(torch.tensor(ids), torch.tensor((gates * DIGIT / chosen.clip(1))[ids]))


@pytest.mark.parametrize("task", TASKS)
def test_a_study_of_the_published_routing_gives_its_scores_and_its_choice_of_experts(
    task: str, published: Mapping[str, Any], v2_lite: ModelConfig
) -> None:
    halves = [
        {
            layer + 1: _tokens(*(published[f"{task}_{name}"][half][layer] for name in names))
            for layer in range(26)
        }
        for names in [("chosen", "gates_x1e4")]
        for half in (0, 1)
    ]
    study = Study(v2_lite, ALL)
    pass_traces(study, task, halves)
    scores = study.scores(task)
    assert scores.tokens == published[f"{task}_tokens"].sum()
    for name, found in (("token", scores.token), ("gate", scores.gate)):
        wanted = published[f"{task}_published_{name}_x1e4"] * DIGIT
        assert list(found.values()) == pytest.approx(wanted, abs=DIGIT / 2 + 1e-9)
    wanted = json.loads((PUBLISHED / "experts.json").read_text())[task]
    chosen = select_experts(scores, p=0.2)
    assert chosen == {layer: tuple(wanted[str(layer)]) for layer in range(1, 27)}


def _write(folder: Path, ids: Any, gates: Any, cuts: tuple[int, ...] = (50,)) -> Path:
    """Files in the published form, of documents that begin at the cuts."""
    folder.mkdir()
    for layer, (chosen, values) in enumerate(zip(ids, gates, strict=True), start=1):
        documents = zip(np.split(chosen, cuts), np.split(values * DIGIT, cuts), strict=True)
        lines = [
            "\t".join(map(str, some.flatten())) + "\t\t" + "\t".join(f"{v:.4g}" for v in v_of.flat)
            for some, v_of in documents
        ]
        (folder / f"expert_weights_{layer}.txt").write_text("".join(f"{row}\n" for row in lines))
    return folder


@pytest.fixture
def law(published: Mapping[str, Any], tmp_path: Path) -> Path:
    """A part of the published routing, as published."""
    return _write(
        tmp_path / "law", published["law_sample_experts"], published["law_sample_gates_x1e4"]
    )


def test_the_published_form_is_read_token_by_token_the_best_expert_first(
    law: Path, published: Mapping[str, Any], v2_lite: ModelConfig
) -> None:
    documents = list(read_traces(law, v2_lite))
    assert len(documents[0][1].ids_TK) == 50
    for layer in (1, 26):
        found = torch.cat([document[layer].ids_TK for document in documents])
        gates = torch.cat([document[layer].weights_TK for document in documents])
        ids = published["law_sample_experts"][layer - 1]
        assert found.sort(1).values.tolist() == np.sort(ids, axis=1).tolist()
        values = published["law_sample_gates_x1e4"][layer - 1]
        assert gates.tolist() == pytest.approx(-np.sort(-values, axis=1) * DIGIT)
        best = np.take_along_axis(ids, values.argmax(1)[:, None], axis=1)[:, 0]
        ties = (values == values.max(1)[:, None]).sum(1) > 1
        assert ((found[:, 0].numpy() == best) | ties).all()


def test_a_study_takes_as_many_recorded_tokens_as_it_is_asked_for(
    law: Path, v2_lite: ModelConfig
) -> None:
    study = Study(v2_lite, RoutingConfig(tokens=70))
    pass_traces(study, "law", read_traces(law, v2_lite))
    assert study.domains["law"].tokens == 70
    halves = study.domains["law"].halves
    assert [half[1].tokens for half in halves] == [50, 20]


@pytest.mark.parametrize(
    ("file", "line", "message"),
    [
        ("expert_weights_7.txt", "1\t2\t3\t4\t5\t6", "there are no gate values after the experts"),
        ("expert_weights_7.txt", "1\t2\t\t0.1\t0.2", "2 experts and 2 gate values are not 6"),
        ("expert_weights_7.txt", "1\t2\t3\t4\t5\t64\t\t" + "0.1\t" * 5 + "1", "not all in 0 to 63"),
        ("expert_weights_7.txt", "1\t2\t3\t4\t5\tx\t\t" + "0.1\t" * 5 + "1", "invalid literal"),
        ("expert_weights_7.txt", "1\t2\t3\t4\t5\t6\t\t" + "0.1\t" * 5 + "1", "different numbers"),
        ("expert_weights_27.txt", "", "has expert_weights_N.txt for the layers"),
    ],
)
def test_recorded_routing_that_is_not_of_the_model_is_refused(
    file: str, line: str, message: str, law: Path, v2_lite: ModelConfig
) -> None:
    (law / file).write_text(line + "\n")
    with pytest.raises(DataError, match=message) as error:
        list(read_traces(law, v2_lite))
    assert str(error.value).endswith("name the checkpoint it was recorded of")
