"""Routers: which K of the E routed experts each token goes to, and with what gate values.

Letters: B sequences, S positions, T tokens, D hidden, E experts, G expert groups, K experts chosen
per token.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moesaic.config.model import ModelConfig
from moesaic.kernels.matmul import linear
from moesaic.model.ablation import Ablation
from moesaic.model.context import Context
from moesaic.model.routing import Routing

_TINY = 1e-20
"""Added to the sum that normalises gate values, as in the published code."""


class Router(nn.Module):
    """Scores in float32, a choice among the allowed experts, gate values from the scores.

    Scores, and the groups they limit a token to, are taken over all E experts whatever is allowed:
    a token whose natural choice is allowed gets exactly that choice and its gate values.

    Source: DeepSeekMoE (arXiv 2401.06066) eq. 9-11; DeepSeek-V2 (arXiv 2405.04434) section 2.2.2;
    DeepSeek-V3 (arXiv 2412.19437) eq. 12-16.
    """

    weight: Tensor
    e_score_correction_bias: Tensor | None
    allowed: Tensor | None

    def __init__(self, config: ModelConfig, allowed: Sequence[int]) -> None:
        super().__init__()
        assert config.num_experts_per_tok
        self.n_chosen, self.n_groups = config.num_experts_per_tok, config.groups
        self.kept_groups = (config.topk_group or 1) if self.n_groups > 1 else 1
        self.scoring_func = config.scoring_func
        self.norm_topk_prob = config.norm_topk_prob
        # The code of V1 and V2 scales only gate values it does not normalise; V3's scales them all.
        is_scaled = config.model_type == "deepseek_v3" or not config.norm_topk_prob
        self.scale = config.routed_scaling_factor if is_scaled else 1.0
        self.weight = nn.Parameter(torch.empty(config.experts, config.hidden_size))
        bias = (
            torch.zeros(config.experts, dtype=torch.float32)
            if config.topk_method == "noaux_tc"
            else None
        )
        self.register_buffer("e_score_correction_bias", bias)
        self.register_buffer("allowed", _mask(allowed, config.experts), persistent=False)

    def forward(self, x_TD: Tensor, context: Context) -> Routing:
        """Choose K experts for every token.

        Returns:
            The routing. Gate values come from the scores without the bias: the bias moves the
            choice, never the gate value.
        """
        with torch.autocast(x_TD.device.type, enabled=False):
            wide = x_TD if x_TD.dtype == torch.float64 else x_TD.float()
            logits_TE = linear(wide, self.weight.to(wide.dtype))
        if self.scoring_func == "sigmoid":
            scores_TE = logits_TE.sigmoid()
        else:
            scores_TE = logits_TE.softmax(dim=-1)
        ids_TK = self._choose(scores_TE.detach(), context.ablation)
        weights_TK = scores_TE.gather(1, ids_TK)
        if self.norm_topk_prob:
            weights_TK = weights_TK / (weights_TK.sum(-1, keepdim=True) + _TINY)
        if self.scale != 1:
            weights_TK = weights_TK * self.scale
        return routing(scores_TE, ids_TK, weights_TK, context)

    def allow_(self, allowed: Sequence[int]) -> None:
        """Choose among these experts from now on."""
        mask = _mask(allowed, len(self.weight))
        self.allowed = None if mask is None else mask.to(self.weight.device)

    def _choose(self, scores_TE: Tensor, ablation: Ablation) -> Tensor:
        """Ids of the K best allowed experts, in the best groups where groups limit the choice."""
        if self.e_score_correction_bias is not None:
            scores_TE = scores_TE + self.e_score_correction_bias
        if self.n_groups > 1:
            scores_TE = self._limit_to_groups(scores_TE)
        if self.allowed is not None:
            scores_TE = scores_TE.masked_fill(~self.allowed, float("-inf"))
        skipped, n_chosen = ablation.skipped, ablation.chosen or self.n_chosen
        return torch.topk(scores_TE, skipped + n_chosen, dim=-1).indices[:, skipped:]

    def _limit_to_groups(self, scores_TE: Tensor) -> Tensor:
        """Lower the experts outside the best groups, below all others inside them.

        A group's score is its best expert's, or with the choice bias the sum of its best two, over
        all its experts whatever is allowed. Experts outside stay finite: where few are allowed, the
        best groups may hold fewer than K of them, and the rest come from the other groups.
        """
        grouped_TGe = scores_TE.unflatten(1, (self.n_groups, -1))
        n_best = 1 if self.e_score_correction_bias is None else min(2, grouped_TGe.shape[2])
        score_TG = grouped_TGe.topk(n_best, dim=-1).values.sum(-1)
        outside_TG = torch.ones_like(score_TG, dtype=torch.bool)
        outside_TG.scatter_(1, score_TG.topk(self.kept_groups, dim=-1).indices, False)
        outside_TE = outside_TG.repeat_interleave(grouped_TGe.shape[2], dim=1)
        below = 1.0 + scores_TE.amax(-1, keepdim=True) - scores_TE.amin(-1, keepdim=True)
        return torch.where(outside_TE, scores_TE - below, scores_TE)


class HashRouter(nn.Module):
    """Sends a token to one expert by a fixed hash of its id; nothing is learned.

    Source: Roller et al. 2021 (arXiv 2106.04426) section 3, random hash; the baseline of
    DeepSeekMoE (arXiv 2401.06066) table 1.
    """

    def __init__(self, config: ModelConfig, allowed: Sequence[int], layer: int) -> None:
        super().__init__()
        self.n_experts, self.layer = config.experts, layer
        self.register_buffer("choices", torch.tensor(list(allowed)), persistent=False)

    choices: Tensor

    def forward(self, x_TD: Tensor, context: Context) -> Routing:
        """The expert each token's id hashes to, with gate value 1."""
        mixed = context.ids_BS.flatten() + 1 + 0x9E3779B1 * (self.layer + 1)
        for factor in (0x85EBCA6B, 0xC2B2AE35):  # the finaliser of MurmurHash3, 32 bit
            mixed = ((mixed ^ (mixed >> 16)) * factor) & 0xFFFFFFFF
        mixed = mixed ^ (mixed >> 16)
        ids_TK = self.choices[mixed % len(self.choices)].unsqueeze(1)
        scores_TE = F.one_hot(ids_TK.squeeze(1), self.n_experts).float()
        return routing(scores_TE, ids_TK, scores_TE.gather(1, ids_TK), context)

    def allow_(self, allowed: Sequence[int]) -> None:
        """Choose among these experts from now on."""
        self.choices = torch.tensor(list(allowed), device=self.choices.device)


def routing(scores_TE: Tensor, ids_TK: Tensor, weights_TK: Tensor, context: Context) -> Routing:
    """The routing of a choice, with its load, and dropped pairs where the pass asks for them."""
    ones = torch.ones_like(ids_TK, dtype=torch.int64).flatten()
    load_E = ids_TK.new_zeros(scores_TE.shape[1]).index_add_(0, ids_TK.flatten(), ones)
    if context.dropping is None:
        return Routing(scores_TE, ids_TK, weights_TK, load_E)
    kept_TK = context.dropping.kept(scores_TE, ids_TK)
    return Routing(scores_TE, ids_TK, weights_TK * kept_TK, load_E, kept_TK)


def _mask(allowed: Sequence[int], n_experts: int) -> Tensor | None:
    """bool [E]; None where every expert is allowed."""
    if len(allowed) == n_experts:
        return None
    mask_E = torch.zeros(n_experts, dtype=torch.bool)
    mask_E[list(allowed)] = True
    return mask_E
