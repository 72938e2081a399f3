"""Plan, train, fine-tune in part, merge and run DeepSeek-style Mixture-of-Experts models.

The public names are loaded when they are first used, so that ``import moesaic`` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moesaic.config import presets
    from moesaic.config.model import ModelConfig
    from moesaic.esft.merge import merge_shards
    from moesaic.esft.score import score_experts
    from moesaic.eval.run import evaluate
    from moesaic.infer.generate import generate
    from moesaic.model.build import load_model
    from moesaic.model.transformer import Transformer
    from moesaic.planner.params import plan

__version__ = "0.1.0"

__all__ = [
    "ModelConfig",
    "Transformer",
    "evaluate",
    "generate",
    "load_model",
    "merge_shards",
    "plan",
    "presets",
    "score_experts",
]

_HOMES = {
    "ModelConfig": "moesaic.config.model",
    "Transformer": "moesaic.model.transformer",
    "evaluate": "moesaic.eval.run",
    "generate": "moesaic.infer.generate",
    "load_model": "moesaic.model.build",
    "merge_shards": "moesaic.esft.merge",
    "plan": "moesaic.planner.params",
    "presets": "moesaic.config",
    "score_experts": "moesaic.esft.score",
}
"""The module each public name comes from."""


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'moesaic' has no attribute {name!r}")
    if name == "presets":
        return import_module("moesaic.config.presets")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
