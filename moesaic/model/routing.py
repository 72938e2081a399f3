"""`Routing`: which experts each token went to, and with what gate values.

Letters: T tokens, E routed experts of the layer, K experts chosen per token.
"""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Routing:
    """What one router decided in one pass. Rows are the tokens of the batch, row by row."""

    scores_TE: Tensor
    """float32 affinity of every token to every expert, after softmax or sigmoid, without bias."""
    ids_TK: Tensor
    """int64 ids of the chosen experts, best first."""
    weights_TK: Tensor
    """float32 gate values of the chosen experts; 0 where the pair was dropped."""
    load_E: Tensor
    """int64 tokens that chose each expert, before any dropping."""
    kept_TK: Tensor | None = None
    """bool, False where a pair exceeded its device's capacity; None when nothing is dropped."""
