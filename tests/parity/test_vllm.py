"""vLLM loads the folders that are written here and gives our log-probabilities, and it and SGLang
take the commands that are printed for them."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from models import random_ids, random_model
from torch import Tensor

from moesaic.checkpoint.load import Reader
from moesaic.checkpoint.quantise import Form, quantise_folder
from moesaic.checkpoint.save import save
from moesaic.config.launch import LaunchConfig
from moesaic.config.model import ModelConfig
from moesaic.data.bpe import train_bpe
from moesaic.model.build import load_model
from moesaic.serve.engines import Cluster, Engine
from moesaic.serve.launch import plan_launch

pytestmark = [pytest.mark.parity, pytest.mark.slow]
Build = Callable[..., ModelConfig]
needs_vllm = pytest.mark.skipif(find_spec("vllm") is None, reason="vllm is not installed")
needs_sglang = pytest.mark.skipif(find_spec("sglang") is None, reason="sglang is not installed")
EXACT = "bfloat16" if torch.cuda.is_available() else "float32"
"""Attention with latents takes no float32 on GPUs."""
ENVIRONMENT = {
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    "PYTHONPATH": os.pathsep.join(sys.path),
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
}
WIDE = {
    "vocab_size": 300,
    "initializer_range": 0.06,
    "hidden_size": 128,
    "intermediate_size": 128,
    "moe_intermediate_size": 128,
    "num_nextn_predict_layers": 0,
}
LATENT = {"kv_lora_rank": 512, "qk_nope_head_dim": 64, "qk_rope_head_dim": 64, "v_head_dim": 64}
"""Sizes of latents that vLLM computes on a CPU."""
PARSERS = {
    "vllm": """
import json, sys
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser
parser = make_arg_parser(FlexibleArgumentParser())
for words in json.load(sys.stdin):
    parser.parse_args(words[2:])
""",
    "sglang": """
import argparse, json, sys
from sglang.srt.server_args import ServerArgs
parser = argparse.ArgumentParser(allow_abbrev=False)
ServerArgs.add_cli_args(parser)
for words in json.load(sys.stdin):
    parser.parse_args(words[3:])
""",
}
ASKED: list[tuple[dict[str, int], dict[str, Any]]] = [
    ({}, {"name": "other", "context": 64}),
    ({"gpus": 2}, {}),
    ({"gpus": 2}, {"attention": "data"}),
    ({"gpus": 2, "redundant": 2}, {}),
    ({"gpus": 2, "nodes": 2, "redundant": 4}, {"first_address": "10.0.0.1", "machine": 1}),
    ({"gpus": 2, "nodes": 2}, {"first_address": "10.0.0.1", "attention": "data"}),
]


@pytest.fixture
def write(tmp_path: Path, tiny_config: Build) -> Callable[..., Path]:
    """``write("v3", form="4")``: a folder with random weights, as other engines need it."""

    def build(family: str, form: Form | None = None, **changes: Any) -> Path:
        latent = {} if family == "v1" else LATENT
        query = {"q_lora_rank": 128} if family == "v3" else {}
        config = tiny_config(family, **WIDE, **latent, **query, **changes)
        folder = tmp_path / "base"
        save(folder, config, random_model(config).state_dict(), "bfloat16")
        train_bpe(["one two three four. " * 20], 300).save(folder)
        if form is not None:
            quantise_folder(Reader(folder), tmp_path / "fewer", form, 64, lambda spec: None)
            folder = tmp_path / "fewer"
        return folder

    return build


def distance(folder: Path, told: list[tuple[list[int], list[float]]]) -> Tensor:
    """How far log-probabilities of tokens are from ours in float32."""
    model, apart = load_model(folder, "float32"), []
    for ids, theirs in told:
        with torch.inference_mode():
            ours = model(torch.tensor([ids]))[0].log_softmax(-1)
        found = ours[:-1].gather(1, torch.tensor(ids)[1:, None])[:, 0]
        apart.append((found - torch.tensor(theirs)).abs())
    return torch.cat(apart)


def ask_vllm(folder: Path, dtype: str) -> list[tuple[list[int], list[float]]]:
    """Tokens and their log-probabilities, from vLLM in a process of its own."""
    model = Reader(folder).config
    prompts, out = random_ids(model, 4, 64).tolist(), folder.parent / "told.json"
    [command] = plan_launch(folder, model, "vllm", Cluster(), LaunchConfig()).commands
    overrides = dict(pairwise(command)).get("--hf-overrides", "{}")
    program = Path(__file__).with_name("in_vllm.py")
    done = subprocess.run(
        [sys.executable, str(program), str(folder), dtype, overrides, str(out)],
        input=json.dumps(prompts),
        env={**os.environ, **ENVIRONMENT},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(out.read_text())


def assert_near(apart: Tensor, dtype: str) -> None:
    if dtype == "float32":
        assert apart.max() < 1e-4
    else:
        assert apart.mean() < 0.04  # bfloat16, where some tokens go to other experts


@needs_vllm
@pytest.mark.parametrize("family", ["v1", "v2", "v3"])
def test_vllm_gives_our_log_probabilities(write: Callable[..., Path], family: str):
    folder = write(family)
    assert_near(distance(folder, ask_vllm(folder, EXACT)), EXACT)


@needs_vllm
def test_vllm_computes_experts_without_groups(write: Callable[..., Path]):
    folder = write("v2", topk_method="greedy", n_group=None, topk_group=None)
    assert_near(distance(folder, ask_vllm(folder, EXACT)), EXACT)


@needs_vllm
@pytest.mark.parametrize("family", ["v1", "v3"])
@pytest.mark.parametrize("form", ["4", "8", "fp8"])
def test_vllm_loads_quantised_folders_as_they_are_read_here(
    write: Callable[..., Path], family: str, form: Form
):
    folder = write(family, form)
    dtype = "bfloat16" if form == "fp8" else EXACT
    assert_near(distance(folder, ask_vllm(folder, dtype)), dtype)


@contextmanager
def served(command: tuple[str, ...], port: int, log: Path) -> Iterator[None]:
    """A server that answers, for as long as this lasts."""
    words = [*command, "--enforce-eager"]
    with log.open("w") as file:
        process = subprocess.Popen(
            words, env={**os.environ, **ENVIRONMENT}, stdout=file, stderr=subprocess.STDOUT
        )
    try:
        for _ in range(300):
            assert process.poll() is None, log.read_text()[-4000:]
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2).close()
                break
            except (urllib.error.URLError, TimeoutError):
                time.sleep(1)
        yield
    finally:
        process.terminate()
        process.wait(60)


@needs_vllm
@pytest.mark.parametrize("family", ["v1", "v3"])
def test_the_printed_command_serves_the_folder(
    write: Callable[..., Path], tmp_path: Path, family: str
):
    folder = write(family)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    model = Reader(folder).config
    config = LaunchConfig.parse({"port": port, "memory_share": 0.05, "name": "this"})
    [command] = plan_launch(folder, model, "vllm", Cluster(), config).commands
    [ids] = random_ids(model, 1, 64).tolist()
    body = {"model": "this", "prompt": ids, "max_tokens": 1, "prompt_logprobs": 0}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with served(command, port, tmp_path / "log.txt"), urllib.request.urlopen(request) as answer:
        [choice] = json.load(answer)["choices"]
    tables = choice["prompt_logprobs"][1:]
    theirs = [table[str(i)]["logprob"] for i, table in zip(ids[1:], tables, strict=True)]
    assert_near(distance(folder, [(ids, theirs)]), "bfloat16")


@pytest.mark.parametrize(
    "engine", [pytest.param("vllm", marks=needs_vllm), pytest.param("sglang", marks=needs_sglang)]
)
def test_the_engine_takes_every_option(write: Callable[..., Path], engine: Engine):
    folder, commands = write("v3"), []
    model = Reader(folder).config
    for where, settings in ASKED:
        config = LaunchConfig.parse(settings)
        for each in (model, model.changed(n_group=None, topk_group=None)):
            commands += plan_launch(folder, each, engine, Cluster(**where), config).commands
    done = subprocess.run(
        [sys.executable, "-c", PARSERS[engine]],
        input=json.dumps(commands),
        env={**os.environ, **ENVIRONMENT},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
