"""One variant's training steps, in a process of its own: ours, and transformers' beside it."""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.measure.alone import run_module
from benchmarks.measure.cases import KEEP_MEMORY
from benchmarks.measure.machine import forget_peak, resident_bytes
from moesaic.checkpoint.load import Reader
from moesaic.config.lora import LoraConfig
from moesaic.config.train import TrainConfig
from moesaic.data.batch import IGNORED, Batch
from moesaic.esft.hold import hold_rest_
from moesaic.esft.park import load_slice
from moesaic.esft.select import Selection
from moesaic.model.adapt import adapt_, fresh_factors
from moesaic.model.build import load_model
from moesaic.model.residency import layers_with_experts
from moesaic.model.transformer import Transformer
from moesaic.planner.adapters import adapted_tensors
from moesaic.runlog import peak_bytes
from moesaic.train.optim import build_optimizer
from moesaic.train.step import Rates, take_step

_SMALL = {"linears": "int8", "parked": True}
_ATTENTION = LoraConfig(targets=("attention",))
VARIANTS: dict[str, dict[str, Any]] = {
    "A masked": {},
    "A masked, int8 states": {"states": "int8"},
    "A masked, int8 states and linears": {"states": "int8", **_SMALL},
    "B frozen-kept": {"kept": 16},
    "C natural": {"kept": None},
    "D natural, int8": {"kept": None, "hold": "int8"},
    "D natural, int4": {"kept": None, "hold": "int4"},
    "D natural, int4, int8 linears": {"kept": None, "hold": "int4", **_SMALL},
    "D natural, int4, int8 states": {"kept": None, "hold": "int4", "states": "int8"},
    "E natural, cpu": {"kept": None, "hold": "cpu"},
    "E natural, disk": {"kept": None, "hold": "disk"},
    "LoRA natural": {"kept": None, "lora": LoraConfig()},
    "QLoRA natural, int4": {"kept": None, "hold": "int4", "linears": "int4", "lora": LoraConfig()},
    "LoRA on attention": {"kept": None, "lora": _ATTENTION},
    "full": {"full": True},
    "transformers natural, grouped_mm": {"peer": "grouped_mm"},
    "transformers natural, eager": {"peer": "eager"},
    "transformers LoRA on attention": {"peer": "grouped_mm", "lora": _ATTENTION},
    "transformers full": {"peer": "grouped_mm", "full": True},
}
"""How many experts are kept frozen beside the trained ones (None: all the others), how they and the
linear layers are held, whether the embedding is parked, what AdamW keeps its moments in, and what
is trained instead: adapters or everything; of the peer, its experts implementation."""
_RATES = Rates(learning_rate=1e-5, mtp_weight=0.0, bias_speed=0.0)


@dataclass(frozen=True, slots=True)
class Job:
    """One variant, as a process of its own gets it."""

    variant: str
    folder: str
    trained: int
    """Experts of each layer."""
    rows: int
    sequence: int
    steps: int
    device: str
    threads: int
    recompute: bool

    def inputs(self, vocabulary: int) -> list[Tensor]:
        """The same ids for every variant."""
        generator = torch.Generator().manual_seed(1)
        shape = (self.rows, self.sequence)
        return [torch.randint(vocabulary, shape, generator=generator) for _ in range(self.steps)]


def work(job: Job) -> dict[str, Any]:
    """Load, train, measure."""
    torch.set_num_threads(job.threads)
    before, kind = resident_bytes(), VARIANTS[job.variant]
    vocabulary = Reader(job.folder).config.vocab_size
    step = _peer(job, kind) if "peer" in kind else _ours(job, kind)
    _forget(job.device)
    losses, seconds = [], []
    for ids_BS in job.inputs(vocabulary):
        start = time.perf_counter()
        losses.append(step(ids_BS.to(job.device)))
        _wait(job.device)
        seconds.append(time.perf_counter() - start)
    on_gpu = job.device == "cuda"
    peak = torch.cuda.max_memory_allocated() if on_gpu else peak_bytes() - before
    return {"losses": losses, "seconds": seconds, "peak_bytes": peak}


def _ours(job: Job, kind: dict[str, Any]) -> Callable[[Tensor], float]:
    reader = Reader(job.folder)
    config = TrainConfig.parse(
        {
            "folder": "run",
            "model": job.folder,
            "data": {"sources": [{"path": "corpus:english"}], "seq_len": job.sequence},
            "batch": {"rows": job.rows},
            "steps": 1,
            "schedule": {"learning_rate": _RATES.learning_rate},
            "precision": "bfloat16",
            "optimizer": {"states": kind["states"]} if "states" in kind else {},
        }
    )
    model = _model(job, kind, reader)
    optimizer = build_optimizer(model, config.optimizer)
    generator = torch.Generator().manual_seed(0)

    def step(ids_BS: Tensor) -> float:
        batch = _one_document_per_row(ids_BS)
        return take_step(model, optimizer, [batch], _RATES, config, generator).loss

    return step


def _model(job: Job, kind: dict[str, Any], reader: Reader) -> Transformer:
    device, recompute = job.device, job.recompute
    if "full" in kind:
        return load_model(job.folder, "bfloat16", device, recompute=recompute)
    chosen = _selection(reader, job.trained, kind.get("kept", 0))
    held, hold = chosen.at_rest() if "lora" in kind else chosen, kind.get("hold", "weights")
    model = load_slice(reader, held, "bfloat16", device, recompute=recompute, hold=hold)
    hold_rest_(model, kind.get("linears", "weights"), kind.get("parked", False))
    if "lora" in kind:
        lora: LoraConfig = kind["lora"]
        adapted = adapted_tensors(reader.config, lora, chosen.experts)
        make = fresh_factors(lora.rank, torch.Generator().manual_seed(0))
        adapt_(model, adapted, make, lora.scale, torch.bfloat16)
    return model


def _selection(reader: Reader, trained: int, kept: int | None) -> Selection:
    layers = layers_with_experts(reader.config)
    selection = Selection(experts={layer: tuple(range(trained)) for layer in layers})
    if kept is None:
        return selection.natural(reader.config)
    beside = tuple(range(trained, trained + kept))
    return selection.changed(frozen={layer: beside for layer in layers} if beside else {})


def _one_document_per_row(ids_BS: Tensor) -> Batch:
    labels_BS = ids_BS.roll(-1, dims=1)
    labels_BS[:, -1] = IGNORED
    positions_BS = torch.arange(ids_BS.shape[1], device=ids_BS.device).expand_as(ids_BS)
    return Batch(ids_BS, labels_BS, positions_BS, torch.zeros_like(ids_BS))


def _peer(job: Job, kind: dict[str, Any]) -> Callable[[Tensor], float]:
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(
        job.folder, dtype=torch.bfloat16, attn_implementation="sdpa"
    )
    model.to(job.device)
    model.set_experts_implementation(kind["peer"])
    model.train().requires_grad_("full" in kind)
    if "lora" in kind:
        model = _with_adapters(model, kind["lora"])
    if job.recompute:
        model.gradient_checkpointing_enable()
    stacks, masters = [], [p for p in model.parameters() if p.requires_grad]
    if not masters:
        stacks = [p for name, p in model.named_parameters() if ".mlp.experts." in name]
        masters = [_cut_gradients(stack, job.trained) for stack in stacks]
    optimizer = torch.optim.AdamW(masters, lr=_RATES.learning_rate, weight_decay=0.1, fused=True)

    def step(ids_BS: Tensor) -> float:
        loss = model(input_ids=ids_BS, labels=ids_BS, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(masters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            for stack, master in zip(stacks, masters, strict=bool(stacks)):
                stack[: job.trained].copy_(master)
        return loss.item()

    return step


def _with_adapters(model: Any, lora: LoraConfig) -> Any:
    """PEFT's, of the attention: it has none for some experts of a stack."""
    import peft

    attention = [name for name, _ in model.named_modules() if ".self_attn." in name]
    names = sorted({name.split(".")[-1] for name in attention if not name.endswith("norm")})
    settings = peft.LoraConfig(r=lora.rank, lora_alpha=int(lora.alpha), target_modules=names)
    return peft.get_peft_model(model, settings, autocast_adapter_dtype=False)


def _cut_gradients(stack: torch.nn.Parameter, trained: int) -> torch.nn.Parameter:
    """The trained experts as a parameter of their own; the rest of a gradient is freed at once."""
    master = torch.nn.Parameter(stack[:trained].detach().clone())
    stack.requires_grad_(True)

    def cut(whole: Tensor) -> None:
        assert whole.grad is not None
        master.grad, whole.grad = whole.grad[:trained].clone(), None

    stack.register_post_accumulate_grad_hook(cut)
    return master


def _forget(device: str) -> None:
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        forget_peak()


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def run_alone(job: Job) -> dict[str, Any]:
    """The job in a process of its own."""
    # Expert by expert, shapes change at every step: the peer may keep a kernel for each.
    is_peer = "peer" in VARIANTS[job.variant]
    many_shapes = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "20000"} if is_peer else {}
    return run_module("benchmarks.measure.slice_steps", asdict(job), KEEP_MEMORY | many_shapes)


if __name__ == "__main__":
    print(json.dumps(work(Job(**json.loads(sys.argv[1])))))
