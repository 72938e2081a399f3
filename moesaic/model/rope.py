"""Rotary position with YaRN's scaling.

Letters: B sequences, S positions, H heads, R rotated width.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from moesaic.config.model import ModelConfig, RopeScaling


@dataclass(frozen=True, slots=True)
class Rotation:
    """Cosines and sines of the angles of one pass, [B or 1, S, 1, R/2], float32."""

    cos: Tensor
    sin: Tensor
    interleaved: bool
    """Whether pairs are neighbours, or half the width apart."""

    def __call__(self, x_BSHR: Tensor) -> Tensor:
        """Turn each pair by its angle. Pairs come out half the width apart, whatever they were:
        queries and keys are permuted alike, so their products are the same."""
        cos, sin = self.cos.to(x_BSHR.dtype), self.sin.to(x_BSHR.dtype)
        if self.interleaved:
            first, second = x_BSHR[..., 0::2], x_BSHR[..., 1::2]
        else:
            first, second = x_BSHR.chunk(2, dim=-1)
        return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


class Rope:
    """The rotary angles of a model.

    Source: Su et al. 2021 (arXiv 2104.09864) section 3.2; YaRN (arXiv 2309.00071) section 3.2.
    """

    def __init__(self, config: ModelConfig) -> None:
        self.frequencies = _frequencies(config)
        self.length = _length(config.rope_scaling)
        self.interleaved = config.rope_interleave
        self._placed: dict[torch.device, Tensor] = {}

    def __call__(self, positions_BS: Tensor) -> Rotation:
        """The rotation at each position."""
        device = positions_BS.device
        if device not in self._placed:  # a pass that a GPU repeats by itself may not copy them
            self._placed[device] = self.frequencies.to(device)
        angles = positions_BS[..., None, None].float() * self._placed[device]
        return Rotation(angles.cos() * self.length, angles.sin() * self.length, self.interleaved)


def softmax_scale(config: ModelConfig) -> float:
    """Factor on the attention scores: 1/√width, and YaRN's temperature where it asks for one.

    Source: the published ``modeling_deepseek.py`` of V2 and V3.
    """
    scale = config.qk_head_dim**-0.5
    scaling = config.rope_scaling
    if scaling is None or not scaling.mscale_all_dim:
        return scale
    return scale * _temperature(scaling.factor, scaling.mscale_all_dim) ** 2


def _frequencies(config: ModelConfig) -> Tensor:
    """Radians per position of each pair, float32 [R/2]."""
    width, scaling = config.rope_dim, config.rope_scaling
    pair = torch.arange(0, width, 2, dtype=torch.float32, device="cpu")
    natural = 1.0 / config.rope_theta ** (pair / width)
    if scaling is None:
        return natural
    low, high = (
        _pair_of_rotations(rotations, config, scaling)
        for rotations in (scaling.beta_fast, scaling.beta_slow)
    )
    low, high = max(math.floor(low), 0), min(math.ceil(high), width - 1)
    ramp = (torch.arange(width // 2, device="cpu").float() - low) / max(high - low, 0.001)
    stretched = ramp.clamp(0, 1)
    return natural / scaling.factor * stretched + natural * (1 - stretched)


def _pair_of_rotations(rotations: float, config: ModelConfig, scaling: RopeScaling) -> float:
    """Index of the pair that turns this often over the original context."""
    wavelength = scaling.original_max_position_embeddings / (rotations * 2 * math.pi)
    return config.rope_dim * math.log(wavelength) / (2 * math.log(config.rope_theta))


def _length(scaling: RopeScaling | None) -> float:
    """Factor on rotated queries and keys."""
    if scaling is None:
        return 1.0
    whole = _temperature(scaling.factor, scaling.mscale_all_dim)
    return _temperature(scaling.factor, scaling.mscale) / whole


def _temperature(factor: float, mscale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0
