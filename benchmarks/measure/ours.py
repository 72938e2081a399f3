"""Our side: what moesaic does when it trains or generates."""

from collections.abc import Callable
from itertools import cycle

import torch
from torch import Tensor

from benchmarks.measure.cases import DECODED, Case, Job, Setting
from benchmarks.measure.work import Evidence, Work
from moesaic.config.train import TrainConfig
from moesaic.data.batch import IGNORED, Batch
from moesaic.infer.blocks import Held
from moesaic.infer.decoder import Fed, build_decoder
from moesaic.infer.generate import pool_for
from moesaic.model.build import load_model
from moesaic.model.transformer import Transformer
from moesaic.train.optim import build_optimizer
from moesaic.train.step import Rates, take_step

_RATES = Rates(learning_rate=3e-4, mtp_weight=0.0, bias_speed=0.0)


def prepare(job: Job) -> Work:
    """Load the model and get ready."""
    setting = job.setting
    dtype = "bfloat16" if setting.precision == "bfloat16" else "float32"
    compute = "bfloat16" if setting.precision == "mixed" else None
    model = load_model(job.folder, dtype, compute_dtype=compute)
    n_parameters = sum(parameter.numel() for parameter in model.parameters())
    if job.case.task == "train":
        return Work(_training(model, job.case, setting), n_parameters)
    model.requires_grad_(False)
    if job.case.task == "decode":
        step, restart = _decoding(model, job.case)
        return Work(step, n_parameters, restart)
    step = _prefilling(model, job.case) if job.case.task == "prefill" else _forward(model, job.case)
    return Work(step, n_parameters)


def _training(model: Transformer, case: Case, setting: Setting) -> Callable[[], Evidence]:
    config = TrainConfig.parse(
        {
            "folder": "run",
            "model": f"{case.size}-{case.family}",
            "data": {"sources": [{"path": "corpus:english"}], "seq_len": case.length},
            "batch": {"rows": case.batch},
            "steps": 1,
            "schedule": {"learning_rate": _RATES.learning_rate},
            "precision": setting.precision,
        }
    )
    optimizer = build_optimizer(model, config.optimizer)
    batches = cycle([_one_document_per_row(ids_BS) for ids_BS in case.inputs()])
    generator = torch.Generator().manual_seed(0)

    def step() -> Evidence:
        found = take_step(model, optimizer, [next(batches)], _RATES, config, generator)
        return {"loss": found.loss, "grad_norm": found.grad_norm}

    return step


def _one_document_per_row(ids_BS: Tensor) -> Batch:
    labels_BS = ids_BS.roll(-1, dims=1)
    labels_BS[:, -1] = IGNORED
    positions_BS = torch.arange(ids_BS.shape[1]).expand_as(ids_BS)
    return Batch(ids_BS, labels_BS, positions_BS, torch.zeros_like(ids_BS))


def _forward(model: Transformer, case: Case) -> Callable[[], Tensor]:
    [ids_BS] = case.inputs(1)

    @torch.inference_mode()
    def step() -> Tensor:
        return model(ids_BS)

    return step


def _prefilling(model: Transformer, case: Case) -> Callable[[], Tensor]:
    prompt = tuple(case.inputs(1)[0][0].tolist())
    pool = pool_for(model, [case.length])
    decoder = build_decoder(model, pool)

    def step() -> Tensor:
        held = Held(pool)
        [found] = decoder.feed([Fed(held, prompt)])
        held.release()
        return found.logits_TV.unsqueeze(0)

    return step


def _decoding(model: Transformer, case: Case) -> tuple[Callable[[], Tensor], Callable[[], None]]:
    rows = [tuple(row) for row in case.inputs(1)[0].tolist()]
    pool = pool_for(model, [case.length + DECODED] * len(rows))
    decoder = build_decoder(model, pool)
    held = [Held(pool) for _ in rows]
    last = [row[-1] for row in rows]

    def restart() -> None:
        nonlocal last
        for one in held:
            one.release()
        decoder.feed([Fed(one, row[:-1]) for one, row in zip(held, rows, strict=True)])
        last = [row[-1] for row in rows]

    def step() -> Tensor:
        nonlocal last
        found = decoder.feed([Fed(one, (token,)) for one, token in zip(held, last, strict=True)])
        logits_BSV = torch.stack([each.logits_TV for each in found])
        last = logits_BSV[:, -1].argmax(-1).tolist()
        return logits_BSV

    return step, restart
