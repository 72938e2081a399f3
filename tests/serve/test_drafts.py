"""A server drafts for the base and its shards, and answers as without drafts."""

import httpx
from jobs import prompts
from served import plain_client_of, running
from shards import MakeHome, answers, ask

from moesaic.serve.served import Served


def drafts_of(served: Served) -> int:
    return served.engine.stats().meter.drafts.drafts


def test_shards_are_drafted_for_and_answer_alike(make_home: MakeHome):
    """One changes an expert of the prediction module, too."""
    home, rows = make_home("v3", "float32"), prompts(4, longest=40)
    shards = {
        "law": home.shard("law"),
        "all": home.shard("all", {1: (1, 2, 5), 3: (1, 4, 6)}, seed=1, modules=("router",)),
    }
    found = {}
    for way in ("never", "always"):
        served = home.served(shards=shards, deterministic=False, speculate=way)
        with served.engine:
            found[way] = [
                [
                    [token for token, _ in answer]
                    for answer in answers(served, name, rows, temperature=t, max_new_tokens=12)
                ]
                for name in served.names
                for t in (0, 0.8)
            ]
            assert (drafts_of(served) > 0) == (way == "always")
        assert served.engine.decoder.pool.n_free == served.engine.decoder.pool.n_blocks
    assert found["always"] == found["never"]
    assert len({str(each) for each in found["never"]}) == 6


def test_metrics_count_drafts(make_home: MakeHome):
    served = make_home("v3", "float32").served(deterministic=False, speculate="always")
    with running(served) as server, plain_client_of(server) as client:
        assert _values(client)["moesaic_drafts_total"] == 0
        for row in prompts(3):
            list(ask(served, served.name, row))
        values = _values(client)
    assert 0 <= values["moesaic_drafts_accepted_total"] <= values["moesaic_drafts_total"]
    assert values["moesaic_drafts_total"] == drafts_of(served) > 0


def _values(client: httpx.Client) -> dict[str, float]:
    lines = client.get("/metrics").text.splitlines()
    pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return {name: float(value) for name, value in pairs}
