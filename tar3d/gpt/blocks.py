"""The repeated block of the GPT: attention and a SwiGLU MLP, each with a norm and a residual.

Letters: B batch, S positions, D width, F width of the MLP.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from tar3d.gpt.layers import build_attention
from tar3d.gpt.norm import RMSNorm

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    from tar3d.config import GPTConfig
    from tar3d.gpt.layers.base import LayerCache, Rotary, RowLengths


def mlp_width(width: int) -> int:
    """Hidden width of SwiGLU: 8/3 of the width, up to the next multiple of 64."""
    return 64 * math.ceil(8 * width / (3 * 64))


def matrix_elements(module: nn.Module) -> int:
    """Entries of the matrices that a position of this module is multiplied with."""
    return sum(m.weight.numel() for m in module.modules() if isinstance(m, nn.Linear))


class MLPWeights(NamedTuple):
    gain: Tensor  # (D,)
    gate_up: Tensor  # (2 F, D)
    down: Tensor  # (D, F)


class SwiGLU(nn.Module):
    """down(silu(gate x) * up x), arXiv 2002.05202.

    Its packed form, which includes the norm before it and the residual, holds for this very class
    only, as that of an attention layer does.
    """

    init_as: ClassVar[dict[str, str]] = {"down": "residual"}

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width, mlp_width(width), bias=False)
        self.up = nn.Linear(width, mlp_width(width), bias=False)
        self.down = nn.Linear(mlp_width(width), width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))

    def pack(self, gain: Tensor, pack: Callable[..., Tensor]) -> MLPWeights:
        return MLPWeights(gain, pack(self.gate, self.up), pack(self.down))

    @staticmethod
    def packed_step(ops: ModuleType, weights: MLPWeights, x: Tensor) -> Tensor:
        """Norm, MLP and residual, x (G, D) float32 -> (G, D) float32."""
        return ops.linear_add(ops.norm_swiglu(x, weights.gain, weights.gate_up), weights.down, x)


class Block(nn.Module):
    """Pre-norm attention and MLP with residuals; `gpt.layer_pattern` decides which attention."""

    reads_prefix = False  # True where `forward` takes the prefix too

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.width)
        self.attention = build_attention(config, layer)
        self.mlp_norm = RMSNorm(config.width)
        self.mlp = SwiGLU(config.width)

    def forward(self, x: Tensor, rotary: Rotary) -> Tensor:
        """Whole rows, (B, S, D) -> (B, S, D)."""
        x = x + self.attention(self.attention_norm(x), rotary)
        return x + self.mlp(self.mlp_norm(x))

    def prefill(self, x: Tensor, rotary: Rotary, rows: RowLengths) -> tuple[Tensor, LayerCache]:
        """`forward`, and the cache that the rows leave."""
        attended, cache = self.attention.prefill(self.attention_norm(x), rotary, rows)
        x = x + attended
        return x + self.mlp(self.mlp_norm(x)), cache

    def decode(self, x: Tensor, rotary: Rotary, cache: Any) -> Tensor:
        """One position of every row, (B, 1, D) -> (B, 1, D); `cache` is changed in place."""
        x = x + self.attention.decode(self.attention_norm(x), rotary, cache)
        return x + self.mlp(self.mlp_norm(x))

    def multiplications(self, positions: int, prefix_length: int) -> int:  # noqa: ARG002
        """Least multiply-adds of a row of so many positions, its prefix among them."""
        matrices = positions * (matrix_elements(self.attention) + matrix_elements(self.mlp))
        return matrices + self.attention.multiplications(positions)
