"""`Transformer`: embedding, layers, head, and the loss.

Letters: B sequences, S positions fed, T tokens, D hidden, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from moesaic.config.model import ModelConfig
from moesaic.kernels.cross_entropy import cross_entropy_sum
from moesaic.kernels.matmul import linear
from moesaic.kernels.reference import IGNORED
from moesaic.model.ablation import Ablation
from moesaic.model.block import Block
from moesaic.model.context import Cache, Context, visible_positions
from moesaic.model.dropping import Dropping
from moesaic.model.linear import Linear
from moesaic.model.moe import MoE
from moesaic.model.mtp import PredictionModule
from moesaic.model.norm import RMSNorm
from moesaic.model.residency import ALL_RESIDENT, Residency
from moesaic.model.rope import Rope
from moesaic.model.routing import Routing
from moesaic.model.trace import RoutingTrace


@dataclass(frozen=True, slots=True)
class ModelLoss:
    """Sums over learned positions, in nats, not means: batches of any size add up."""

    next_token: Tensor
    """Sum of -log p of the next token."""
    tokens: Tensor
    """int64, positions it is summed over."""
    mtp: tuple[Tensor, ...] = ()
    """The same for each prediction depth."""
    mtp_tokens: tuple[Tensor, ...] = ()
    """Positions each of them is summed over."""


class Decoder(nn.Module):
    """Everything the checkpoints call ``model``: embedding, layers, last norm."""

    def __init__(self, config: ModelConfig, residency: Residency) -> None:
        super().__init__()
        depth, modules = config.num_hidden_layers, config.num_nextn_predict_layers
        self.embed_tokens = nn.Embedding(
            config.vocab_size, config.hidden_size, _weight=_empty(config)
        )
        blocks = [Block(config, layer, residency) for layer in range(depth)]
        further = [PredictionModule(config, depth + k, residency) for k in range(modules)]
        self.layers = nn.ModuleList([*blocks, *further])
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class Transformer(nn.Module):
    """A decoder of any of the three families, as its configuration says.

    Parameter names are the published ones, except that the routed experts of a layer are stacked:
    ``model.layers.{i}.mlp.experts.gate_up_proj`` [e, 2F, D] and ``.down_proj`` [e, D, F].

    Args:
        config: the model.
        residency: which experts to hold and allow; None for all.
        compute_dtype: dtype of activations and products; None for that of the weights.
        recompute: keep only each layer's input for the backward pass, and compute the rest again.
    """

    def __init__(
        self,
        config: ModelConfig,
        residency: Residency | None = None,
        compute_dtype: torch.dtype | None = None,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        self.config = config
        self.residency = residency or ALL_RESIDENT
        self.residency.check(config)
        self.compute_dtype, self.recompute = compute_dtype, recompute
        self.rope = Rope(config)
        self.model = Decoder(config, self.residency)
        self.lm_head = None
        if not config.tie_word_embeddings:
            self.lm_head = Linear(config.hidden_size, config.vocab_size)

    def forward(
        self,
        ids_BS: Tensor,
        positions_BS: Tensor | None = None,
        documents_BS: Tensor | None = None,
        cache: Cache | None = None,
        trace: RoutingTrace | None = None,
        last_only: bool = False,
    ) -> Tensor:
        """Logits of the next token at every position, [B, S, V] (S = 1 with ``last_only``).

        Args:
            ids_BS: token ids, int64.
            positions_BS: position of each token in its document; None counts from the cache's end.
            documents_BS: which document of its row a token belongs to; tokens see only their own.
                Padding is a document of its own. None where each row is one document.
            cache: keys and values of what was fed before; it is extended.
            trace: receives every layer's routing.
            last_only: return the last position only.
        """
        hidden_BSD = self.hidden_states(ids_BS, positions_BS, documents_BS, cache, trace)
        return self.head(hidden_BSD[:, -1:] if last_only else hidden_BSD)

    def hidden_states(
        self,
        ids_BS: Tensor,
        positions_BS: Tensor | None = None,
        documents_BS: Tensor | None = None,
        cache: Cache | None = None,
        trace: RoutingTrace | None = None,
    ) -> Tensor:
        """What the head turns into logits, [B, S, D]. See `forward` for the arguments."""
        context = self._context(ids_BS, positions_BS, documents_BS, cache, None)
        hidden_BSD = self._decode(context, trace)
        if cache is not None:
            cache.advance(ids_BS.shape[1], documents_BS)
        return hidden_BSD

    def draft(
        self,
        previous_BSD: Tensor,
        ids_BS: Tensor,
        positions_BS: Tensor | None = None,
        documents_BS: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """What the head turns into logits of the token after the next one, [B, S, D].

        Args:
            previous_BSD: `hidden_states` of the positions fed.
            ids_BS: the token after each of them.
            positions_BS: see `forward`.
            documents_BS: see `forward`.
            cache: of the first prediction module; it is extended.
        """
        module = self.model.layers[self.config.num_hidden_layers]
        assert isinstance(module, PredictionModule)
        context = self._context(ids_BS, positions_BS, documents_BS, cache, None)
        embedded_BSD = self._embed(ids_BS)
        previous_BSD = previous_BSD.to(embedded_BSD.dtype)
        hidden_BSD, _ = module.predict(previous_BSD, embedded_BSD, context)
        if cache is not None:
            cache.advance(ids_BS.shape[1], documents_BS)
        return hidden_BSD

    def head(self, hidden: Tensor) -> Tensor:
        """Logits of hidden states: [..., D] to [..., V]."""
        if self.lm_head is not None:
            return self.lm_head(hidden)
        return linear(hidden, self.head_weight.to(hidden.dtype))

    def loss(
        self,
        ids_BS: Tensor,
        labels_BS: Tensor,
        positions_BS: Tensor | None = None,
        documents_BS: Tensor | None = None,
        trace: RoutingTrace | None = None,
        dropping: Dropping | None = None,
        ablation: Ablation | None = None,
    ) -> ModelLoss:
        """Next-token and multi-token losses of a batch; logits are never all in memory.

        Args:
            ids_BS: token ids, int64.
            labels_BS: the id to be predicted *at* each position, -100 where nothing is learned.
            positions_BS: see `forward`.
            documents_BS: see `forward`.
            trace: receives every layer's routing, prediction modules included.
            dropping: capacity of the devices; None drops nothing.
            ablation: what of the routing is switched off; the model holds and allows every expert.
        """
        context = self._context(ids_BS, positions_BS, documents_BS, None, dropping)
        if ablation is not None:
            ablation.check(self.config)
            context = replace(context, ablation=ablation)
        hidden_BSD = self._decode(context, trace)
        sums, counts = [self._loss_sum(hidden_BSD, labels_BS)], [(labels_BS != IGNORED).sum()]
        for depth in range(1, self.config.num_nextn_predict_layers + 1):
            hidden_BSD = self._predict_further(depth, hidden_BSD, context, trace)
            further_BS = labels_at_depth(labels_BS, documents_BS, depth)
            sums.append(self._loss_sum(hidden_BSD, further_BS))
            counts.append((further_BS != IGNORED).sum())
        return ModelLoss(sums[0], counts[0], tuple(sums[1:]), tuple(counts[1:]))

    def moe_layers(self) -> dict[int, MoE]:
        """Layers with experts, prediction modules included, by index."""
        blocks = enumerate(self.model.layers)
        return {i: block.mlp for i, block in blocks if isinstance(block.mlp, MoE)}

    @torch.no_grad()
    def init_weights_(self, generator: torch.Generator) -> None:
        """Fresh weights: normal with ``initializer_range``, norms 1, the choice bias 0.

        They are drawn in float32 at least, so that a seed means the same weights in any dtype.
        """
        for parameter in self.parameters():
            if parameter.ndim == 1:
                parameter.fill_(1.0)
            else:
                dtype = torch.promote_types(parameter.dtype, torch.float32)
                drawn = torch.empty_like(parameter, dtype=dtype)
                parameter.copy_(
                    drawn.normal_(0.0, self.config.initializer_range, generator=generator)
                )
        for name, buffer in self.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.zero_()

    def _context(
        self,
        ids_BS: Tensor,
        positions_BS: Tensor | None,
        documents_BS: Tensor | None,
        cache: Cache | None,
        dropping: Dropping | None,
    ) -> Context:
        positions = positions_BS
        if positions is None:
            start = cache.length if cache is not None else 0
            positions = torch.arange(start, start + ids_BS.shape[1], device=ids_BS.device)[None]
        visible = visible_positions(documents_BS, cache)
        return Context(ids_BS, self.rope(positions), visible, cache, dropping)

    def _embed(self, ids_BS: Tensor) -> Tensor:
        x_BSD = self.model.embed_tokens(ids_BS)
        return x_BSD if self.compute_dtype is None else x_BSD.to(self.compute_dtype)

    @property
    def head_weight(self) -> Tensor:
        """The head, [V, D]: the embedding where the two are tied."""
        return self.model.embed_tokens.weight if self.lm_head is None else self.lm_head.weight

    def _decode(self, context: Context, trace: RoutingTrace | None) -> Tensor:
        """Hidden states after the last norm."""
        x_BSD = self._embed(context.ids_BS)
        for layer in range(self.config.num_hidden_layers):
            x_BSD, routing = self._run_layer(self.model.layers[layer], x_BSD, context)
            if trace is not None and routing is not None:
                trace.layers[layer] = routing
        return self.model.norm(x_BSD)

    def _run_layer(
        self, layer: Callable[..., tuple[Tensor, Routing | None]], *inputs: Tensor | Context
    ) -> tuple[Tensor, Routing | None]:
        """One layer; with `recompute` only its inputs are kept for the backward pass."""
        if not (self.recompute and torch.is_grad_enabled()):
            return layer(*inputs)
        return checkpoint(layer, *inputs, use_reentrant=False, preserve_rng_state=False)  # pyright: ignore[reportReturnType]

    def _predict_further(
        self, depth: int, hidden_BSD: Tensor, context: Context, trace: RoutingTrace | None
    ) -> Tensor:
        """Hidden states of prediction module ``depth``, counted from 1.

        The last ``depth`` positions of a row have no token to embed; they get the row's first one,
        and nothing is learned there.
        """
        layer = self.config.num_hidden_layers + depth - 1
        module = self.model.layers[layer]
        assert isinstance(module, PredictionModule)
        further_BS = context.ids_BS.roll(-depth, dims=1)
        embedded_BSD = self._embed(further_BS)
        hidden_BSD, routing = self._run_layer(module.predict, hidden_BSD, embedded_BSD, context)
        if trace is not None and routing is not None:
            trace.layers[layer] = routing
        return hidden_BSD

    def _loss_sum(self, hidden_BSD: Tensor, labels_BS: Tensor) -> Tensor:
        return cross_entropy_sum(hidden_BSD.flatten(0, 1), self.head_weight, labels_BS.flatten())


def labels_at_depth(labels_BS: Tensor, documents_BS: Tensor | None, depth: int) -> Tensor:
    """The label ``depth`` positions on, where that is still in the same document."""
    further_BS = labels_BS.roll(-depth, dims=1)
    further_BS[:, max(0, labels_BS.shape[1] - depth) :] = IGNORED
    if documents_BS is not None:
        further_BS[documents_BS.roll(-depth, dims=1) != documents_BS] = IGNORED
    return further_BS


def _empty(config: ModelConfig) -> Tensor:
    """An embedding without values: the framework's own constructor would draw them."""
    return torch.empty(config.vocab_size, config.hidden_size)
