"""The whole job on a model of a few thousand parameters: what there is to report, as it is made."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from slices import run_in, write_home

from moesaic.analyse.routing import study_routing
from moesaic.analyse.sources import Source
from moesaic.config.analyse import AblationConfig, RoutingConfig
from moesaic.config.merge import MergeConfig
from moesaic.config.model import ModelConfig
from moesaic.esft.merge import merge_shards
from moesaic.esft.recipe import train_slice
from moesaic.eval.run import evaluate
from moesaic.report.read import read_sources
from moesaic.report.sources import Sources

STUDY = next(Path(__file__).parents[2].glob("benchmarks/results/variants_*.json"))
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(1)>"
"""What a name may be that somebody else chose."""


@pytest.fixture(scope="session")
def job(tmp_path_factory: pytest.TempPathFactory, tiny_config: Callable[..., ModelConfig]) -> Path:
    """Two slices, their merge, an evaluation against the base and an analysis; not to be changed.

    ``one`` is a run of a slice, ``two`` the same with another seed and other data.
    """
    made = tmp_path_factory.mktemp("report")
    (made / "home").mkdir()
    home = write_home(made / "home", tiny_config("v3", vocab_size=300), "float32")
    text = str(home / "lines.txt")
    of_text = {"path": text, "split": "held_out", "separator": "\n\n"}
    held_out = {"every_steps": 4, "rows": 8, "domains": {"lines": of_text, HOSTILE: of_text}}
    esft = {"experts": 4, "score_tokens": 200}
    for name, seed in (("one", 0), ("two", 1)):
        changes = {"steps": 8, "seed": seed, "evaluation": held_out}
        train_slice(run_in(home, made / name, esft, **changes, logging={"load_every_steps": 4}))
    base, merged = home / "base", made / "merged"
    retain = MergeConfig.parse({"retain": {"data": [text], "tokens": 300, "most_rise": 5.0}})
    merge_shards(base, [made / "one" / "shard", made / "two" / "shard"], merged, config=retain)
    asked = RoutingConfig(tokens=400, ablation=AblationConfig(tokens=300, disabled=(0.25, 0.5)))
    domains = [Source("lines", text), Source(HOSTILE, text)]
    study_routing(merged, domains, asked, against=base).save(made / "routing")
    questions = [
        {"query": f"Question: {n}? {HOSTILE}", "choices": ["a router", "a token"], "gold": n % 2}
        for n in range(12)
    ]
    lines = "".join(json.dumps(one) + "\n" for one in questions)
    (home / "arc_easy.jsonl").write_text(lines)
    evaluate(merged, ["arc_easy", f"perplexity={text}"], made / "eval", base, home, limit=12)
    return made


@pytest.fixture(scope="session")
def sources(job: Path) -> Sources:
    """What a report finds of the job."""
    return read_sources([job])


@pytest.fixture(scope="session")
def study() -> Path:
    """The result of the experiment with all variants and several seeds."""
    return STUDY
