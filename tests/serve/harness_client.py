"""lm-evaluation-harness's own client of completion servers, in a process of its own, because the
harness changes settings that a test process shares.

``python harness_client.py FOLDER`` reads FOLDER/job.json and writes FOLDER/result.json.
"""

import json
import sys
from pathlib import Path
from typing import Any


def run(job: dict[str, Any]) -> dict[str, Any]:
    """What the server says of pairs of texts, and how it goes on after others."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    kind: Any = LocalCompletionsAPI  # takes what its base does
    client = kind(
        base_url=job["url"],
        model=job["model"],
        tokenizer=job["tokenizer"],
        tokenizer_backend="huggingface",
        num_concurrent=3,
        max_retries=1,
        max_length=400,
        timeout=60,
    )
    pairs = [Instance("loglikelihood", {}, tuple(pair), i) for i, pair in enumerate(job["pairs"])]
    asked = [
        Instance("generate_until", {}, (start, {"until": ["z"], "max_gen_toks": 12}), i)
        for i, start in enumerate(job["starts"])
    ]
    return {
        "loglikelihoods": client.loglikelihood(pairs, disable_tqdm=True),
        "texts": client.generate_until(asked, disable_tqdm=True),
    }


if __name__ == "__main__":
    place = Path(sys.argv[1])
    found = run(json.loads((place / "job.json").read_text()))
    (place / "result.json").write_text(json.dumps(found))
