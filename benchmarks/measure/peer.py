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
        begin = _after_prompt if job.case.context is None else _after_random
        step, restart = _decoding(model, job.case, setting, begin)
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


Begin = Callable[[Any, Case, Setting], tuple[Any, Tensor, int]]
"""Gives a cache, the token that comes next in every sequence, and how many are cached."""


def _decoding(
    model: Any, case: Case, setting: Setting, begin: Begin
) -> tuple[Callable[[], Tensor], Callable[[], None]]:
    forward = torch.compile(model) if setting.compiled else model
    cache: Any = None
    last_BS, held = torch.zeros(case.batch, 1, dtype=torch.int64), 0

    @torch.inference_mode()
    def restart() -> None:
        nonlocal cache, last_BS, held
        cache, last_BS, held = begin(model, case, setting)

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


def _after_prompt(model: Any, case: Case, setting: Setting) -> tuple[Any, Tensor, int]:
    [ids_BS] = case.inputs(1)
    cache = _cache(model, case, setting)
    model(input_ids=ids_BS[:, :-1], past_key_values=cache, use_cache=True, logits_to_keep=1)
    return cache, ids_BS[:, -1:], case.length - 1


def _after_random(model: Any, case: Case, setting: Setting) -> tuple[Any, Tensor, int]:
    """A cache of random numbers: what is in it does not change the time. A first token shows the
    widths of what is cached."""
    generator = torch.Generator().manual_seed(1)
    cache, next_BS = _cache(model, case, setting), torch.full((case.batch, 1), 5)
    if case.length:
        model(input_ids=next_BS, past_key_values=cache, use_cache=True, logits_to_keep=1)
    layers: list[Any] = list(cache.layers) if case.length > 1 else []
    for index, layer in enumerate(layers):
        keys, values = (
            torch.randn(*part.shape[:2], case.length - 1, part.shape[3], generator=generator)
            for part in (layer.keys, layer.values)
        )
        cache.update(keys.to(model.dtype), values.to(model.dtype), index)
    return cache, next_BS, case.length


def _cache(model: Any, case: Case, setting: Setting) -> Any:
    """A cache of fixed size where the pass is compiled; it would be compiled anew at every size."""
    if setting.compiled:
        room = case.length + DECODED
        return transformers.StaticCache(config=model.config, max_cache_len=room)
    return transformers.DynamicCache(config=model.config)


def _autocast(setting: Setting) -> AbstractContextManager[Any]:
    return torch.autocast("cpu", torch.bfloat16, enabled=setting.precision == "mixed")
