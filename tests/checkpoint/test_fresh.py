"""Random checkpoints of any size, and the memory that writing and reading one takes."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from moesaic.checkpoint.files import read_safetensors
from moesaic.checkpoint.fresh import fresh_tensor, tensor_seed
from moesaic.checkpoint.load import Reader
from moesaic.config.model import ModelConfig
from moesaic.planner.inventory import TensorSpec, tensors

Fresh = Callable[..., Path]
MEASURES = """
import json, resource, sys
import torch
from moesaic.checkpoint.fresh import write_fresh
from moesaic.checkpoint.load import Reader, load_into
from moesaic.checkpoint.names import state_shapes
from moesaic.config.presets import MID_V2
from moesaic.planner.inventory import tensors

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

torch.empty(1000).normal_()
before = peak()
write_fresh(sys.argv[1], MID_V2, "bfloat16", 0, lambda spec: None)
written = peak() - before
reader = Reader(sys.argv[1])
shapes = state_shapes(reader.config)
state = {name: torch.zeros(shape, dtype=torch.bfloat16).fill_(1) for name, shape in shapes.items()}
before = peak()
load_into(reader, state)
largest = 2 * max(spec.size for spec in tensors(reader.config))
print(json.dumps({"written": written, "loaded": peak() - before, "largest": largest}))
"""


@pytest.mark.parametrize("family", ["v1", "v2", "v3"])
def test_norms_are_one_router_biases_zero_and_matrices_normal(fresh: Fresh, family: str) -> None:
    reader = Reader(fresh(family))
    drawn = []
    for spec in tensors(reader.config):
        tensor = reader.read(spec.name)
        if spec.is_router_bias:
            assert not tensor.any()
        elif tensor.ndim == 1:
            assert bool((tensor == 1).all())
        else:
            drawn.append(tensor.flatten())
    every = torch.cat(drawn)
    # the mean of n values of deviation s lies within 5 s / √n of 0, their deviation near s
    assert abs(every.mean().item()) < 5 * 0.1 / len(every) ** 0.5
    assert every.std().item() == pytest.approx(0.1, rel=0.05)


def test_a_tensor_is_the_same_whatever_is_written_with_it(
    fresh: Fresh, tiny_config: Callable[..., ModelConfig]
) -> None:
    one = read_safetensors(fresh("v2") / "model.safetensors")
    two = read_safetensors(fresh("v2", name="deeper", num_hidden_layers=5) / "model.safetensors")
    assert one.keys() < two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    spec = next(tensors(tiny_config("v2")))
    draw = torch.Generator().manual_seed(tensor_seed(0, spec.name))
    assert torch.equal(fresh_tensor(spec, 0.1, torch.float32, draw), one[spec.name])


def test_no_two_tensors_are_alike(fresh: Fresh) -> None:
    found = read_safetensors(fresh("v1") / "model.safetensors").values()
    first = [tensor.flatten()[:4].tolist() for tensor in found if tensor.ndim == 2]
    assert len({tuple(values) for values in first}) == len(first)


def test_large_tensors_do_not_repeat_themselves(generator: torch.Generator) -> None:
    spec = TensorSpec("x", (3, 2**22), "dense")
    tensor = fresh_tensor(spec, 1.0, torch.bfloat16, generator)
    assert tensor.dtype == torch.bfloat16
    assert not torch.equal(tensor[0], tensor[1])


@pytest.mark.slow
def test_writing_and_reading_take_the_memory_of_one_tensor(tmp_path: Path) -> None:
    command = [sys.executable, "-c", MEASURES, str(tmp_path / "mid")]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=root)
    peak = json.loads(done.stdout)
    fixed = 64 * 2**20  # the chunk that is drawn, buffers, the allocator's reserve
    assert peak["written"] < peak["largest"] + fixed
    assert peak["loaded"] < peak["largest"] + fixed
