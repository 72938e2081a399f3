"""`ChatConfig`: how a model is held and answers in a conversation."""

from typing import Literal

from pydantic import PositiveInt

from moesaic.config.infer import GenerateConfig
from moesaic.config.memory import Memory


class ChatConfig(GenerateConfig):
    """A conversation with a model: how it answers, and how it is held."""

    max_new_tokens: PositiveInt = 512
    """Most tokens of an answer."""
    system: str = ""
    """What the model is told before the conversation; nothing if empty."""
    context: PositiveInt = 8192
    """Most tokens of a conversation, its last answer included; never more than the model's
    positions. Memory is their bytes."""
    chat_template: Literal["deepseek-v2", "deepseek-v3", "deepseek-r1"] | None = None
    """How a conversation is written; None follows the tokenizer's own template."""
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    """Of weights, products and caches."""
    device: str = "cpu"
    """Where the model is held: cpu, cuda, cuda:1, …"""
    form: Literal["weights", "int8", "int4"] = "weights"
    """How matrices are held on a CPU: as they are stored, or in integers with a scale per group."""
    memory: Memory | None = None
    """Most bytes of weights, as 8GiB: experts that do not fit are read when they are chosen. None
    holds all."""
