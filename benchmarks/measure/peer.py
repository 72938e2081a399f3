"""The other side: transformers, used as its documentation says."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from itertools import cycle
from typing import Any

import torch
import transformers
from torch import Tensor

from benchmarks.measure.cases import DECODED, Case, Job, Setting
from benchmarks.measure.work import Evidence, Work

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


def prepare(job: Job) -> Work:
    """Load the model and get ready."""
    setting = job.setting
    dtype = torch.bfloat16 if setting.precision == "bfloat16" else torch.float32
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(
        job.folder, dtype=dtype, attn_implementation=setting.attention
    )
    model.set_experts_implementation(setting.experts)
    n_parameters = sum(parameter.numel() for parameter in model.parameters())
    if job.case.task == "train":
        return Work(_training(model, job.case, setting), n_parameters)
    model.eval().requires_grad_(False)
    if job.case.task == "decode":
        step, restart = _decoding(model, job.case, setting)
        return Work(step, n_parameters, restart)
    return Work(_forward(model, job.case, last_only=job.case.task == "prefill"), n_parameters)


def _training(model: Any, case: Case, setting: Setting) -> Callable[[], Evidence]:
    model.train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True
    )
    batches = cycle(case.inputs())

    def step() -> Evidence:
        ids_BS = next(batches)
        with _autocast(setting):
            loss = model(input_ids=ids_BS, labels=ids_BS, use_cache=False).loss
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return {"loss": loss.item(), "grad_norm": norm.item()}

    return step


def _forward(model: Any, case: Case, last_only: bool) -> Callable[[], Tensor]:
    [ids_BS] = case.inputs(1)

    @torch.inference_mode()
    def step() -> Tensor:
        kept = {"logits_to_keep": 1} if last_only else {}
        return model(input_ids=ids_BS, use_cache=last_only, **kept).logits

    return step


def _decoding(
    model: Any, case: Case, setting: Setting
) -> tuple[Callable[[], Tensor], Callable[[], None]]:
    [ids_BS] = case.inputs(1)
    forward = torch.compile(model) if setting.compiled else model
    cache: Any = None
    last_BS, held = ids_BS[:, -1:], 0

    @torch.inference_mode()
    def restart() -> None:
        nonlocal cache, last_BS, held
        cache, held = _cache(model, case, setting), case.length - 1
        model(input_ids=ids_BS[:, :-1], past_key_values=cache, use_cache=True, logits_to_keep=1)
        last_BS = ids_BS[:, -1:]

    @torch.inference_mode()
    def step() -> Tensor:
        nonlocal last_BS, held
        positions = torch.full_like(last_BS, held)
        logits_BSV = forward(
            input_ids=last_BS, past_key_values=cache, position_ids=positions, use_cache=True
        ).logits
        last_BS, held = logits_BSV.argmax(-1), held + 1
        return logits_BSV

    return step, restart


def _cache(model: Any, case: Case, setting: Setting) -> Any:
    """A cache of fixed size where the pass is compiled; it would be compiled anew at every size."""
    if setting.compiled:
        room = case.length + DECODED
        return transformers.StaticCache(config=model.config, max_cache_len=room)
    return transformers.DynamicCache(config=model.config)


def _autocast(setting: Setting) -> AbstractContextManager[Any]:
    return torch.autocast("cpu", torch.bfloat16, enabled=setting.precision == "mixed")
