"""The benchmarks compare equal work, and count it right."""

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import torch

from benchmarks.decode import in_turns
from benchmarks.measure.cases import Case, Job, Setting, our_settings, peer_settings
from benchmarks.measure.chart import Panel, write_charts
from benchmarks.measure.decoding import Question
from benchmarks.measure.machine import Ceiling
from benchmarks.measure.processes import Worker, WorkerError
from benchmarks.measure.results import write_result
from benchmarks.measure.work import difference
from moesaic.checkpoint.save import save
from moesaic.model.build import build_model
from moesaic.planner.params import plan

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


@pytest.mark.parametrize(("shape", "size"), [("8-layers", 270e6), ("1.7b", 1.7e9)])
def test_a_shape_for_decoding_has_the_size_it_is_named_for(shape: str, size: float) -> None:
    case = Case("decode", shape, "v2", threads=1, context=0, sequences=3)
    assert plan(case.config).total == pytest.approx(size, rel=0.03)
    assert (case.batch, case.length, case.tokens) == (3, 0, 3)


def test_decoding_reads_fewer_bytes_in_fewer_bits_and_more_after_a_context() -> None:
    whole, eight = Question("8-layers", "weights", 0), Question("8-layers", "int8", 0)
    assert 1.9 < whole.bytes_read / eight.bytes_read < 2
    later = Question("8-layers", "weights", 100)
    assert later.bytes_read - whole.bytes_read == 100 * 2 * 8 * (128 + 32)


def test_ratios_are_of_what_was_measured_in_one_round() -> None:
    class Side:
        def __init__(self, *speeds: float) -> None:
            self.speeds = iter(speeds)

        def tokens_per_s(self, question: Question) -> float:
            return next(self.speeds)

    sides = {"moesaic": Side(10, 30, 20), "llama.cpp": Side(10, 10, 40)}
    question = Question("8-layers", "int4", 0)
    found = in_turns(sides, question, 3, Ceiling(1, 1, read=20 * question.bytes_read))
    assert found["over llama.cpp"] == {"ratio": 1, "ratios": [1, 3, 0.5]}
    assert (found["moesaic"], found["llama.cpp"]) == (20, 10)
    assert found["share_of_reading_bound"] == 1


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.filterwarnings("ignore")
def test_the_peer_decodes_after_a_cache_of_random_numbers(weights: str) -> None:
    pytest.importorskip("transformers")
    from benchmarks.measure import peer

    case = Case("decode", "tiny", Path(weights).name, threads=1, context=40, sequences=2)
    job = Job(case, Setting("transformers", "float32", "eager", "sdpa"), weights)
    work = peer.prepare(job)
    assert work.evidence() == work.evidence()  # from the same numbers
    work.step()


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
