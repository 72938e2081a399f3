"""How soon and how fast are hundreds of clients at once answered by a server, and always rightly?

A real ``moesaic serve`` answers streams while clients leave, read slowly, and send what is
malformed or too large. Every answer is compared with the one the same request has alone.
Afterwards memory and cache blocks have to be what they were.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import httpx
import torch

from benchmarks.measure.clients import Seen, alone, crowd
from benchmarks.measure.results import write_result
from moesaic.checkpoint.save import save
from moesaic.config.data import DataConfig
from moesaic.config.presets import get_preset
from moesaic.data.bpe import train_on_sources
from moesaic.model.build import build_model
from moesaic.runlog import hardware

_SHAPE: dict[str, Any] = {
    **{"vocab_size": 512, "hidden_size": 128, "num_hidden_layers": 4, "initializer_range": 0.1},
    **{"max_position_embeddings": 1024, "bos_token_id": 0, "eos_token_id": None},
}
_STARTS = (
    "A router sends every token to a few experts",
    "The experts that no token needs are parked",
    "What one miner trained is called a shard",
    "The quick brown fox jumps over the lazy dog, and " * 6,
)
_TOKENS = 40
_SAMPLED: dict[str, Any] = {"temperature": 0.8, "top_p": 0.95, "seed": 7}
DRAWN = 'moesaic_tokens_total{kind="drawn"}'
_SETTINGS = {"cache_tokens": 16384, "max_running": 48, "max_body_bytes": 200_000, "closing_s": 5}


@dataclass(frozen=True, slots=True)
class Server:
    """A server in a process of its own."""

    address: str
    pid: int

    @property
    def rss_bytes(self) -> int:
        """Its memory, as Linux tells it."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmRSS"))

    def figures(self) -> dict[str, float]:
        """Its metrics by name and labels."""
        lines = httpx.get(
            f"{self.address.removesuffix('/v1')}/metrics", timeout=60
        ).text.splitlines()
        pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        return {name: float(value) for name, value in pairs}

    def wait_until_idle(self) -> dict[str, float]:
        """Its metrics when nothing runs or waits.

        Raises:
            TimeoutError: if that does not come about: a request is stuck.
        """
        end = time.monotonic() + 60
        while time.monotonic() < end:
            found = self.figures()
            if not found["moesaic_requests_running"] + found["moesaic_requests_waiting"]:
                return found
            time.sleep(0.1)
        raise TimeoutError("requests are stuck: nobody asks, and the server is still busy")


def main() -> None:
    """Serve, crowd, compare."""
    options = _options()
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home) / "load"
        _write_model(folder)
        cases = {
            "all are let in": _measure(folder, options, max_queue=options.clients),
            "a short queue": _measure(folder, options, max_queue=16, max_running=8),
        }
    what = "serve-quick" if options.quick else "serve"
    print(write_result(what, cases, options.threads))
    if not all(case["sound"] for case in cases.values()):
        sys.exit("the server did not do all that it has to; see above")


def _measure(folder: Path, options: argparse.Namespace, **settings: int) -> dict[str, Any]:
    """Rounds of clients at one server; the first is not measured."""
    with _running(folder, {**_SETTINGS, **settings}, options.threads) as server:
        questions = asyncio.run(alone(server.address, _bodies()))
        rounds: list[Seen] = []
        memory: list[int] = []
        start = end = server.wait_until_idle()
        for seed in range(options.rounds + 1):
            within_s = options.clients / 100
            seen = asyncio.run(crowd(server.address, questions, options.clients, within_s, seed))
            end = server.wait_until_idle()
            memory.append(server.rss_bytes)
            if seed:
                rounds.append(seen)
            else:
                start = {**start, DRAWN: end[DRAWN]}
    case = _told(rounds, memory, start, end, settings)
    print(_summary(case), flush=True)
    return case


def _told(
    rounds: Sequence[Seen],
    memory: Sequence[int],
    start: Mapping[str, float],
    end: Mapping[str, float],
    settings: Mapping[str, int],
) -> dict[str, Any]:
    ends = sum((seen.ends for seen in rounds), start=Counter[str]())
    blocks = "moesaic_cache_blocks_free"
    known = {"answered", "left", "refused as wrong", "refused as busy"}
    return {
        **settings,
        "clients": sum(rounds[0].ends.values()),
        "rounds": len(rounds),
        "ends": dict(sorted(ends.items())),
        "first_token_s": _shares([s for seen in rounds for s in seen.first_s]),
        "next_token_s": _shares([s for seen in rounds for s in seen.between_s]),
        "tokens_per_s": (end[DRAWN] - start[DRAWN]) / sum(seen.seconds for seen in rounds),
        "seconds": [round(seen.seconds, 2) for seen in rounds],
        "rss_bytes_after_each_round": list(memory),
        "cache_blocks_free": [start[blocks], end[blocks]],
        "sound": start[blocks] == end[blocks] and ends.keys() <= known,
    }


def _shares(values: Sequence[float]) -> dict[str, float]:
    """Median, and what 95 and 99 of a hundred do not exceed."""
    points = torch.tensor(values, dtype=torch.float64).quantile(
        torch.tensor([0.5, 0.95, 0.99], dtype=torch.float64)
    )
    names = ("median", "95 %", "99 %")
    return {name: round(float(p), 5) for name, p in zip(names, points, strict=True)}


def _summary(case: Mapping[str, Any]) -> str:
    first, following = (
        " / ".join(f"{1000 * value:.0f}" for value in case[name].values())
        for name in ("first_token_s", "next_token_s")
    )
    memory = [f"{n / 2**20:.0f}" for n in case["rss_bytes_after_each_round"]]
    ends = ", ".join(f"{n} {how}" for how, n in case["ends"].items())
    return (
        f"{case['clients']} clients × {case['rounds']}, {case['max_queue']} may wait: {ends}\n"
        f"  first token {first} ms, next {following} ms (median / 95 % / 99 %) | "
        f"{case['tokens_per_s']:.0f} tok/s\n"
        f"  memory after each round {' '.join(memory)} MiB | cache blocks free "
        f"{' → '.join(f'{n:.0f}' for n in case['cache_blocks_free'])} | "
        f"{'sound' if case['sound'] else 'NOT SOUND'}"
    )


def _bodies() -> list[dict[str, Any]]:
    """Requests that differ: prompts, lengths, greedy and drawn."""
    ways: tuple[dict[str, Any], ...] = ({"temperature": 0}, _SAMPLED)
    return [
        {"model": "load", "prompt": start, "max_tokens": tokens, **way}
        for start, tokens, way in product(_STARTS, (_TOKENS, _TOKENS // 4), ways)
    ]


def _write_model(folder: Path) -> None:
    """A small checkpoint with a tokenizer, the same every time."""
    config = get_preset("tiny-v2").changed(**_SHAPE)
    data = DataConfig.parse({"sources": [{"path": "corpus:english"}], "seq_len": 64})
    save(folder, config, build_model(config, seed=1).state_dict(), "float32")
    train_on_sources(data, config.vocab_size).save(folder)


@contextmanager
def _running(folder: Path, settings: Mapping[str, int], threads: int) -> Iterator[Server]:
    """A server on a free port; it has to end by itself when it is asked to."""
    command = [sys.executable, "-m", "moesaic", "serve", str(folder), "--port", "0", "--json"]
    for name, value in {**settings, "dtype": "float32", "device": "cpu"}.items():
        command += ["--set", f"{name}={value}"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        try:
            assert process.stdout
            address = json.loads(process.stdout.readline())["url"]
            yield Server(address, process.pid)
            process.terminate()
            process.wait(30)
        finally:
            process.kill()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clients", type=int, default=300, help="of each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=hardware()["cores"])
    parser.add_argument("--quick", action="store_true", help="one round of sixty")
    options = parser.parse_args()
    if options.quick:
        options.clients, options.rounds = 60, 1
    return options


if __name__ == "__main__":
    main()
