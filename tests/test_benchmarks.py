"""The benchmarks compare equal work, and count it right."""

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import torch

from benchmarks.measure.cases import Case, Job, Setting, our_settings, peer_settings
from benchmarks.measure.chart import Panel, write_charts
from benchmarks.measure.processes import Worker, WorkerError
from benchmarks.measure.results import write_result
from benchmarks.measure.work import difference
from moesaic.checkpoint.save import save
from moesaic.model.build import build_model

TRAIN = Case("train", "tiny", "v3", threads=1)


@pytest.fixture(scope="module", params=["v2", "v3"])
def weights(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    config = Case("train", "tiny", request.param, 1).config
    folder = tmp_path_factory.mktemp("weights") / request.param
    save(folder, config, build_model(config).state_dict(), "float32")
    return str(folder)


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("task", ["train", "forward", "prefill", "decode"])
def test_both_sides_do_the_same_work(weights: str, task: str) -> None:
    pytest.importorskip("transformers")
    from benchmarks.measure import ours, peer

    case = Case(task, "tiny", Path(weights).name, threads=1)  # type: ignore[arg-type]
    mine = ours.prepare(Job(case, Setting("moesaic", "float32"), weights))
    setting = Setting("transformers", "float32", "grouped_mm", "sdpa")
    theirs = peer.prepare(Job(case, setting, weights))
    assert difference(mine.evidence(), theirs.evidence(), is_exact=True) is None


@pytest.mark.slow
def test_a_worker_measures_groups_of_steps(weights: str) -> None:
    case = Case("forward", "tiny", Path(weights).name, threads=1)
    with Worker(Job(case, Setting("moesaic", "float32"), weights)) as worker:
        group = worker.run(at_least_s=0.1)
    assert group.seconds
    assert worker.before_bytes < group.peak_bytes


@pytest.mark.slow
def test_a_setting_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match="holds no model"):
        Worker(Job(TRAIN, Setting("moesaic", "float32"), str(tmp_path)))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"parameters": 9}, "10 parameters against 9"),
        ({"loss": 2.001}, "loss 2 against 2.001"),
        ({"grad_norm": 1.01}, "grad_norm 1 against 1.01"),
    ],
)
def test_other_work_is_noticed(changed: dict[str, float], message: str) -> None:
    found = {"parameters": 10, "loss": 2.0, "grad_norm": 1.0}
    assert difference(found, found, is_exact=True) is None
    assert difference(found, {**found, **changed}, is_exact=True) == message


def test_other_logits_are_noticed() -> None:
    reference = {"parameters": 1, "logits": [3.0, 4.0]}
    near, far = {**reference, "logits": [3.0, 4.5]}, {**reference, "logits": [4.0, -3.0]}
    assert difference(near, reference, is_exact=True) == "logits that are 0.1 of their length apart"
    assert difference(near, reference, is_exact=False) is None  # rounding to bfloat16 may do that
    assert (
        difference(far, reference, is_exact=False) == "logits that are 1.41 of their length apart"
    )
    assert difference({**reference, "logits": [3.0]}, reference, is_exact=False) is not None


def test_training_counts_three_forward_passes() -> None:
    assert TRAIN.flops == 3 * Case("forward", "tiny", "v3", 1).flops


def test_the_inputs_are_the_same_for_everyone() -> None:
    again = Case("train", "tiny", "v3", threads=2)
    assert all(map(torch.equal, TRAIN.inputs(), again.inputs()))


def test_every_setting_has_a_name_of_its_own() -> None:
    for task in ("train", "decode"):
        case = Case(task, "tiny", "v3", threads=1)
        settings = our_settings(case) + peer_settings(case, True, False)
        assert len({setting.name for setting in settings}) == len(settings)


def test_cases_of_one_day_are_kept_together(tmp_path: Path) -> None:
    first = write_result("question", {"a": {"ratio": 1.0}, "b": {"ratio": 2.0}}, 1, tmp_path)
    second = write_result("question", {"b": {"ratio": 3.0}}, 1, tmp_path)
    assert first == second
    assert '"ratio": 1.0' in first.read_text()
    assert '"ratio": 2.0' not in first.read_text()


def test_a_chart_has_every_point(tmp_path: Path) -> None:
    points = {"a": [(0.0, 1.0), (2.0, 3.0)], "b": [(1.0, 1.5)]}
    panel = Panel("forgotten", "learned", points, as_points=True)
    write_charts(tmp_path / "chart.svg", "Title", [panel])
    root = ElementTree.parse(tmp_path / "chart.svg").getroot()
    assert len(root.findall(".//{http://www.w3.org/2000/svg}circle")) == 3


def test_a_chart_has_every_line_and_round_ticks(tmp_path: Path) -> None:
    lines = {"one": [(0, 1.0), (100, 2.0)], "two & three": [(0, 1.5), (100, 1.2)]}
    write_charts(tmp_path / "chart.svg", "Title", [Panel("loss", "step", lines)])
    root = ElementTree.parse(tmp_path / "chart.svg").getroot()
    texts = [text.text for text in root.iter("{http://www.w3.org/2000/svg}text")]
    assert len(list(root.iter("{http://www.w3.org/2000/svg}polyline"))) == 2
    assert {"two & three", "0", "20", "100", "1.5", "2"} <= set(texts)
