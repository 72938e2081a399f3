"""AdamW whose moments have a form of their own, lie on the CPU, or are rounded at random.

Where weights, gradients and moments have one type torch's own AdamW is faster: `build_optimizer`
decides. Everything is computed in float32, a piece of a tensor at a time, so what a step needs
besides weights, gradients and moments does not grow with the tensors.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from moesaic.planner.working import PIECE
from moesaic.train.moments import BLOCK, SCALES, Held, Moment, write_rounded_

CPU_PIECE = 2**19
"""Weights that are moved at a time on a CPU, as `PIECE` on a GPU: they stay in its cache. Both are
multiples of a block."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of a parameter."""

    parameter: nn.Parameter
    group: dict[str, Any]
    """Settings of the parameter's group."""
    state: dict[str, Tensor]
    start: int
    stop: int

    def of(self, tensor: Tensor) -> Tensor:
        """A view of the stretch of a tensor with one value per weight."""
        return tensor.detach().view(-1)[self.start : self.stop]

    def held(self) -> dict[str, Tensor]:
        """Views of the stretch of the moments."""
        blocks = slice(self.start // BLOCK, -(-self.stop // BLOCK))
        return {
            name: tensor[blocks] if name.endswith(SCALES) else self.of(tensor)
            for name, tensor in self.state.items()
            if name != "step"
        }


class AdamW(torch.optim.Optimizer):
    """AdamW with a choice of how its moments are held. The arithmetic is that of torch's.

    Moments that are offloaded are updated on the parameter's device nevertheless: they come and go
    while others are computed with, and the gradients, which are as large as moments in bfloat16,
    need not travel. The CPU would take seconds for what a GPU does in the time of the transfer.

    Random rounding: each step draws one number from the generator and seeds one on the parameters'
    device with it, so the state of the given one is all that is needed to repeat the steps.

    Source: Decoupled Weight Decay Regularization (arXiv 1711.05101) algorithm 2.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        betas: tuple[float, float],
        eps: float,
        moments: Callable[[torch.dtype], tuple[Moment, Moment]],
        offload: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        """Take parameters; their moments are made at the first step.

        Args:
            groups: ``params`` and ``weight_decay`` of each.
            betas: decay of the means of gradients and of their squares.
            eps: added to the root of the mean square.
            moments: the forms of both means for weights of a type.
            offload: whether moments lie in the memory of the CPU.
            generator: on the CPU; None rounds to the nearest.
        """
        super().__init__(groups, {"lr": 0.0, "betas": betas, "eps": eps, "weight_decay": 0.0})
        self._moments, self._offload, self._generator = moments, offload, generator

    def fresh_state(self, parameter: Tensor) -> dict[str, Tensor]:
        """A parameter's state before its first step, in the form it is held in."""
        first, second = self._moments(parameter.dtype)
        shape, zeros = tuple(parameter.shape), partial(_zeros, parameter.device, self._offload)
        moments = first.empty("exp_avg", shape, zeros) | second.empty("exp_avg_sq", shape, zeros)
        return {"step": torch.zeros(()), **moments}

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Move every parameter that has a gradient."""
        device = self.param_groups[0]["params"][0].device
        generator = None if self._generator is None else _seeded(device, self._generator)
        pieces = self._pieces()
        held = carried(pieces, device) if self._offload else ((p, p.held()) for p in pieces)
        for piece, moments in held:
            self._update_(piece, moments, generator)

    def _pieces(self) -> Iterator[Piece]:
        """Everything there is to move; counts the step in each parameter's state."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state.update(self.fresh_state(parameter))
                state["step"] += 1
                size = CPU_PIECE if parameter.device.type == "cpu" else PIECE
                for start in range(0, parameter.numel(), size):
                    stop = min(start + size, parameter.numel())
                    yield Piece(parameter, group, state, start, stop)

    def _update_(self, piece: Piece, held: Held, generator: torch.Generator | None) -> None:
        """Move a stretch of weights and moments."""
        assert piece.parameter.grad is not None
        first, second = self._moments(piece.parameter.dtype)
        group, step = piece.group, piece.state["step"].item()
        rate, (beta1, beta2) = group["lr"], group["betas"]
        grad = piece.of(piece.parameter.grad).float()
        mean = first.read(held, "exp_avg").lerp_(grad, 1 - beta1)
        square = second.read(held, "exp_avg_sq").mul_(beta2)
        square.addcmul_(grad, grad, value=1 - beta2)
        root = square.sqrt().div_((1 - beta2**step) ** 0.5).add_(group["eps"])
        weights = piece.of(piece.parameter)
        moved = weights.float().mul_(1 - rate * group["weight_decay"])
        moved.addcdiv_(mean, root, value=-rate / (1 - beta1**step))
        write_rounded_(weights, moved, generator)
        first.write_(held, "exp_avg", mean, generator)
        second.write_(held, "exp_avg_sq", square, generator)


def carried(pieces: Iterable[Piece], device: torch.device) -> Iterator[tuple[Piece, Held]]:
    """Each piece with copies of its moments on the device; they go back afterwards.

    Two streams carry, one in each direction: the next piece comes and the one before goes while a
    piece is in use. At most three are on the device; all are back when the last has been used.
    """
    road, coming, leaving = _Road(device), None, None
    for piece in chain(pieces, (None,)):
        following = None if piece is None else (piece, *road.bring(piece))
        if coming is not None:
            used, held, arrived = coming
            road.await_(arrived)
            yield used, held
            gone = road.take_back(used, held)
            if leaving is not None:
                leaving[1].synchronize()
            leaving = held, gone  # what leaves is in memory until it has gone
        coming = following
    if leaving is not None:
        leaving[1].synchronize()


class _Road:
    """The way between the CPU's memory and a device, with a stream in each direction."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._streams = torch.get_device_module(device)
        self._inward, self._outward = self._streams.Stream(), self._streams.Stream()

    def bring(self, piece: Piece) -> tuple[Held, Any]:
        """Copies of a piece's moments, and the event that they have arrived."""
        with self._streams.stream(self._inward):
            held = {
                name: view.to(self._device, non_blocking=True, copy=True)
                for name, view in piece.held().items()
            }
        return held, self._mark(self._inward)

    def await_(self, event: Any) -> None:
        """What is computed from now on comes after an event."""
        self._streams.current_stream().wait_event(event)

    def take_back(self, piece: Piece, held: Held) -> Any:
        """Copy them back once all computed so far is done; returns the event of it."""
        self._outward.wait_stream(self._streams.current_stream())
        with self._streams.stream(self._outward):
            for name, view in piece.held().items():
                view.copy_(held[name], non_blocking=True)
        return self._mark(self._outward)

    def _mark(self, stream: Any) -> Any:
        event = self._streams.Event()
        event.record(stream)
        return event


def _zeros(
    device: torch.device, offload: bool, shape: tuple[int, ...], dtype: torch.dtype
) -> Tensor:
    """Zeros on a device, or for it in memory of the CPU that it can read while it computes."""
    if not offload:
        return torch.zeros(shape, dtype=dtype, device=device)
    return torch.zeros(shape, dtype=dtype, pin_memory=device.type != "cpu")


def _seeded(device: torch.device, source: torch.Generator) -> torch.Generator:
    """A generator on a device that goes on from one number of another."""
    seed = int(torch.randint(2**63 - 1, (), generator=source))
    return torch.Generator(device).manual_seed(seed)
