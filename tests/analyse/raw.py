"""Random routing, as a router of 8 experts might have made it."""

import torch

from moesaic.analyse.counts import Seen

EXPERTS, CHOSEN = 8, 3


def random_seen(tokens: int, seed: int, tilt: float = 0.0) -> Seen:
    """What random tokens did in a layer of 8 experts, 3 per token; a tilt prefers high ids."""
    generator = torch.Generator().manual_seed(seed)
    logits_TE = torch.randn(tokens, EXPERTS, generator=generator) + tilt * torch.arange(EXPERTS)
    scores_TE = logits_TE.softmax(1)
    weights_TK, ids_TK = scores_TE.topk(CHOSEN)
    words_T = torch.randint(0, 20, (tokens,), generator=generator)
    return Seen(ids_TK, weights_TK, scores_TE, words_T)
