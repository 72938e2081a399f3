"""Every error a user can cause, by kind.

Each message names the thing, its value, the rule and the fix.
"""

import difflib
from collections.abc import Iterable


class MoesaicError(Exception):
    """A mistake in what was asked for, or in a file that was read; the message says what to do."""


class ConfigError(MoesaicError):
    """A setting is unknown, of the wrong type, out of range, or contradicts another."""


class CheckpointError(MoesaicError):
    """A checkpoint folder is incomplete, damaged, or does not fit its configuration."""


class ShardError(MoesaicError):
    """A shard does not belong to this base, or cannot be merged."""


class DataError(MoesaicError):
    """A data source, tokenizer or chat template cannot be used as asked."""


class RequestError(MoesaicError):
    """A request to a built model cannot be served: a prompt too long, an id out of range."""


class TrainingError(MoesaicError):
    """A run had to stop: a loss or gradient that is not finite, a state that does not fit."""


def suggest(name: str, known: Iterable[str]) -> str:
    """``"; did you mean 'x'?"`` for the known name nearest to a wrong one, or nothing."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else ""
