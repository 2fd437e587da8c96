"""Lightning attention: one fixed decay per head (arXiv 2401.04658)."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from tar3d.gpt import linear_attention
from tar3d.gpt.backends import LinearBackend
from tar3d.gpt.layers.linear import LinearAttention

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    from tar3d.gpt.layers.base import DecodePosition, StaticCache


class LightningWeights(NamedTuple):
    gain: Tensor  # (D,)
    projections: Tensor  # q, k, v: (3 D, D), or (4 D, D) with the gate
    qk_gain: Tensor  # (2, d)
    decay: Tensor  # (H,), exp(-slope)
    o_gain: Tensor  # (d,)
    o: Tensor  # (D, D)


class LightningAttention(LinearAttention):
    """`gpt.linear_attention` "lightning": S_t = exp(-slope) S_{t-1} + k_t v_t^T."""

    backend = LinearBackend
    recurrent_step = staticmethod(linear_attention.recurrent_step)

    def decay(self, x: Tensor) -> tuple[Tensor]:  # noqa: ARG002
        return (self.slopes,)

    def pack(self, gain: Tensor, pack: Callable[..., Tensor]) -> LightningWeights:
        gates = [] if self.gate is None else [self.gate]
        return LightningWeights(
            gain,
            pack(self.q, self.k, self.v, *gates),
            self.qk_gain.reshape(2, -1),
            torch.exp(-self.slopes),
            self.o_norm.weight,
            pack(self.o),
        )

    @staticmethod
    def packed_step(
        ops: ModuleType,
        weights: LightningWeights,
        x: Tensor,
        position: DecodePosition,
        cache: StaticCache,
    ) -> Tensor:
        gain, projections, qk_gain, decay, o_gain, o = weights
        projected = ops.norm_linear(x, gain, projections)
        heads = ops.linear_attend(
            projected, position.cos, position.sin, qk_gain, decay, o_gain, *cache
        )
        return ops.linear_add(heads, o, x)
