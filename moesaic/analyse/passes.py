"""Run models over text, or read recorded routing; and the figures that need more than counts."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from moesaic.analyse.ablate import Ablations
from moesaic.analyse.figures import drift
from moesaic.analyse.likeness import drift_of_weights, likeness
from moesaic.analyse.sources import ROW, Source
from moesaic.analyse.study import (
    OnTokens,
    Study,
    Subjects,
    natural_layers,
    pass_tokens,
    pass_traces,
)
from moesaic.analyse.traces import read_traces
from moesaic.checkpoint.digest import digest
from moesaic.checkpoint.load import Reader
from moesaic.config.analyse import RoutingConfig
from moesaic.config.model import ModelConfig
from moesaic.data.tokenizer import Tokenizer
from moesaic.errors import ConfigError
from moesaic.esft.park import load_frozen
from moesaic.train.setup import choose_device


def from_text(
    study: Study,
    folder: Path,
    sources: Sequence[Source],
    against: Path | None,
    left_out: dict[str, str],
    on_tokens: OnTokens | None,
    on_layer: Callable[[int], None] | None,
) -> dict[str, Any]:
    """Run the model over the text; what is found beside the counts."""
    settings, tokenizer = study.settings, Tokenizer.load(folder)
    readers = Reader(folder), None if against is None else Reader(against)
    if against is not None and Tokenizer.load(against).digest != tokenizer.digest:
        raise ConfigError(
            f"{against} has another tokenizer than {folder}, so that losses and routing cannot be "
            "compared; compare with a checkpoint of the same tokenizer"
        )
    study.use_(choose_device(settings.device))
    subjects = _load(readers, settings, study.device)
    subjects.check()
    seq_len = _seq_len(subjects, settings)
    for source in sources:
        batches = source.batches(tokenizer, seq_len, settings.tokens)
        pass_tokens(study, source.name, subjects, batches, on_tokens)
    reader, other = readers
    parts: dict[str, Any] = {
        "model": _described(reader.config, folder),
        "against": None if other is None else _described(other.config, other.folder),
        "weights": likeness(reader, natural_layers(study), on_layer),
        "drift": None,
        "ablation": _ablation(subjects),
    }
    if subjects.why_no_drift is None and other is not None:
        found = drift(study)
        parts["drift"] = {**found, **drift_of_weights(other, reader, found["layers"], on_layer)}
    else:
        left_out["drift"] = subjects.why_no_drift or ""
    if parts["ablation"] is None:
        left_out["ablation"] = "it was not asked for"
    return parts


def _load(readers: tuple[Reader, Reader | None], settings: RoutingConfig, device: str) -> Subjects:
    """Both models, and what is to be switched off in them."""
    models = [
        None if reader is None else load_frozen(reader, settings.dtype, device, settings.hold)
        for reader in readers
    ]
    asked = settings.ablation
    ablations = [
        None if model is None or asked is None else Ablations(model, asked) for model in models
    ]
    assert models[0] is not None
    return Subjects(models[0], models[1], *ablations)


def _seq_len(subjects: Subjects, settings: RoutingConfig) -> int:
    """Tokens of a row."""
    models = [one for one in (subjects.model, subjects.against) if one is not None]
    most = min(model.config.max_position_embeddings for model in models)
    if settings.seq_len is not None and settings.seq_len > most:
        raise ConfigError(
            f"seq_len={settings.seq_len} is more than max_position_embeddings={most}; lower "
            "seq_len, or leave it out"
        )
    return settings.seq_len or min(ROW, most)


def from_traces(
    study: Study, sources: Sequence[Source], against: Path | None, left_out: dict[str, str]
) -> dict[str, Any]:
    """Read recorded routing."""
    if against is not None or study.settings.ablation is not None:
        raise ConfigError(
            "recorded routing (trace:) can be counted, but nothing runs: give text to compare "
            "with another checkpoint or to switch experts off"
        )
    for source in sources:
        assert source.trace is not None
        pass_traces(study, source.name, read_traces(source.trace, study.config))
    recorded = "routing was recorded, no model ran"
    left_out.update(dict.fromkeys(("weights", "drift", "ablation", "vocabulary"), recorded))
    nothing = dict.fromkeys(("weights", "drift", "ablation"))
    return {"model": _described(study.config, None), **nothing}


def _described(config: ModelConfig, folder: Path | None) -> dict[str, Any]:
    return {
        "folder": None if folder is None else str(folder),
        "digest": None if folder is None else digest(folder),
        "experts": config.experts,
        "chosen": config.num_experts_per_tok,
        "shared": config.n_shared_experts or 0,
        "scoring": "hash" if config.topk_method == "hash" else config.scoring_func,
    }


def _ablation(subjects: Subjects) -> dict[str, Any] | None:
    if subjects.ablations is None:
        return None
    other = subjects.ablations_against
    return {
        "model": subjects.ablations.to_json(),
        "against": None if other is None else other.to_json(),
    }
