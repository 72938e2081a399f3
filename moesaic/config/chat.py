"""`ChatConfig`: how a model is held and answers in a conversation."""

from typing import Literal

from pydantic import PositiveInt

from moesaic.config.infer import HeldConfig

TemplateName = Literal["deepseek-v2", "deepseek-v3", "deepseek-r1"]
"""Chat templates that ship with moesaic."""


class ChatConfig(HeldConfig):
    """A conversation with a model: how it answers, and how it is held."""

    max_new_tokens: PositiveInt = 512
    """Most tokens of an answer."""
    system: str = ""
    """What the model is told before the conversation; nothing if empty."""
    context: PositiveInt = 8192
    """Most tokens of a conversation, its last answer included; never more than the model's
    positions. Memory is their bytes."""
    chat_template: TemplateName | None = None
    """How a conversation is written; None follows the tokenizer's own template."""
