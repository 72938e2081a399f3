"""lm-evaluation-harness's ``local-completions`` gets from a server what the model gives."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from served import NAME, served

import moesaic
from moesaic.data.tokenizer import Tokenizer
from moesaic.model.transformer import Transformer

PAIRS = [("You are all resolved", " rather to die"), ("To be or not", " to be"), ("a b", " c")]
STARTS = ["First Citizen:", "You are all resolved rather to die than to famish"]


@pytest.mark.slow
@pytest.mark.skipif(
    not all(map(find_spec, ("lm_eval", "tenacity"))), reason="lm_eval[api] is not installed"
)
def test_the_harness_gets_likelihoods_and_texts_from_a_server(
    model: Transformer, tokenizer: Tokenizer, tmp_path: Path
):
    (tmp_path / "tokenizer").mkdir()
    tokenizer.save(tmp_path / "tokenizer")
    (tmp_path / "tokenizer" / "config.json").write_text('{"model_type": "deepseek_v2"}')
    with served(model, tokenizer) as server:
        job = {
            "url": f"{server.address}/v1/completions",
            "model": NAME,
            "tokenizer": str(tmp_path / "tokenizer"),
            "pairs": PAIRS,
            "starts": STARTS,
        }
        (tmp_path / "job.json").write_text(json.dumps(job))
        script = Path(__file__).with_name("harness_client.py")
        done = subprocess.run(
            [sys.executable, str(script), str(tmp_path)],
            capture_output=True,
            text=True,
            timeout=300,
        )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "result.json").read_text())
    for (start, end), (total, is_greedy) in zip(PAIRS, found["loglikelihoods"], strict=True):
        ids, n = tokenizer.encode(start + end), len(tokenizer.encode(start))
        with torch.no_grad():
            logprobs = model(torch.tensor([ids]))[0].double().log_softmax(-1)
        rows = range(n - 1, len(ids) - 1)
        expected = [float(logprobs[row, ids[row + 1]]) for row in rows]
        assert total == pytest.approx(sum(expected), abs=1e-3)
        assert is_greedy == all(int(logprobs[row].argmax()) == ids[row + 1] for row in rows)
    alone = moesaic.generate(
        model,
        [tokenizer.encode(start) for start in STARTS],
        tokenizer,
        max_new_tokens=12,
        temperature=0,
        stop=("z",),
    )
    assert found["texts"] == [each.text for each in alone]
