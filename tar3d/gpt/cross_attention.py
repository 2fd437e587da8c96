"""Blocks that look at the condition again: every position attends to all positions of the prefix.

A prefix alone reaches a token through the states of linear layers, which forget it, and through the
few full layers. With `gpt.cross_attention` n every n-th block has another attention, between its
own and its MLP, whose keys and values are of the embedded prefix itself, as in SAR3D (arXiv
2411.16856) and OctGPT (arXiv 2504.09975). The null prefix of guidance is a prefix like any other.

A cross-attention has no packed form: the engine runs such a block by its own `decode`.

Letters: B batch, S positions, P prefix length, D width, H heads, d head dimension.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tar3d.gpt.blocks import Block
from tar3d.gpt.layers.base import LayerCache
from tar3d.gpt.norm import NORM_EPS, RMSNorm

if TYPE_CHECKING:
    from tar3d.config import GPTConfig
    from tar3d.gpt.layers.base import Rotary, RowLengths
    from tar3d.gpt.rows import PrefixFeatures


class KeysValues(NamedTuple):
    """Keys and values of a prefix, (B, H, P, d), and which count, (B, 1, 1, P) bool; None: all."""

    keys: Tensor
    values: Tensor
    valid: Tensor | None


class CrossAttention(nn.Module):
    """Softmax attention of positions to a prefix, with normalised queries and keys."""

    init_as: ClassVar[dict[str, str]] = {"o": "residual", "qk_gain": "ones"}

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.num_heads, self.head_dim = config.num_heads, config.head_dim
        self.norm, self.prefix_norm = RMSNorm(config.width), RMSNorm(config.width)
        self.q = nn.Linear(config.width, config.width, bias=False)
        self.k = nn.Linear(config.width, config.width, bias=False)
        self.v = nn.Linear(config.width, config.width, bias=False)
        self.o = nn.Linear(config.width, config.width, bias=False)
        self.qk_gain = nn.Parameter(torch.ones(2, config.head_dim))

    def keys_values(self, prefix: PrefixFeatures) -> KeysValues:
        """The keys and values of a prefix, the same for all positions."""
        x = self.prefix_norm(prefix.embedded)
        valid = None if prefix.mask is None else prefix.mask[:, None, None]
        return KeysValues(self._normed(self.k(x), 1), self._heads(self.v(x)), valid)

    def forward(self, x: Tensor, prefix: KeysValues) -> Tensor:
        """(B, S, D) -> (B, S, D), for any number of positions."""
        keys, values, valid = prefix
        q = self._normed(self.q(self.norm(x)), 0)
        o = F.scaled_dot_product_attention(q, keys.to(q.dtype), values.to(q.dtype), attn_mask=valid)
        return self.o(o.transpose(1, 2).flatten(2))

    def multiplications(self, positions: int, prefix_length: int) -> int:
        """Least multiply-adds of a row of so many positions."""
        width = self.num_heads * self.head_dim
        matrices = 2 * (positions + prefix_length) * width * width
        return matrices + 2 * positions * prefix_length * width

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.num_heads, self.head_dim)).transpose(1, 2)

    def _normed(self, x: Tensor, which: int) -> Tensor:
        heads = self._heads(x)
        normed = F.rms_norm(heads.to(self.qk_gain.dtype), (self.head_dim,), eps=NORM_EPS)
        return (normed * self.qk_gain[which]).to(x.dtype)


@dataclass
class CrossCache(LayerCache):
    """The cache of a block's own attention, and the prefix that its cross-attention looks at."""

    own: LayerCache
    prefix: KeysValues

    def select(self, rows: Tensor) -> CrossCache:
        """A copy with the rows of that index (n,) int64."""
        keys, values, valid = self.prefix
        valid = None if valid is None else valid[rows]
        return CrossCache(self.own.select(rows), KeysValues(keys[rows], values[rows], valid))


class CrossBlock(Block):
    """A block with a cross-attention between its attention and its MLP."""

    reads_prefix = True

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__(config, layer)
        self.cross = CrossAttention(config)

    def forward(self, x: Tensor, rotary: Rotary, prefix: PrefixFeatures | None = None) -> Tensor:
        """Whole rows, (B, S, D) -> (B, S, D)."""
        assert prefix is not None
        x = x + self.attention(self.attention_norm(x), rotary)
        x = x + self.cross(x, self.cross.keys_values(prefix))
        return x + self.mlp(self.mlp_norm(x))

    def prefill(self, x: Tensor, rotary: Rotary, rows: RowLengths) -> tuple[Tensor, CrossCache]:
        assert rows.prefix is not None
        attended, own = self.attention.prefill(self.attention_norm(x), rotary, rows)
        x, prefix = x + attended, self.cross.keys_values(rows.prefix)
        x = x + self.cross(x, prefix)
        return x + self.mlp(self.mlp_norm(x)), CrossCache(own, prefix)

    def decode(self, x: Tensor, rotary: Rotary, cache: CrossCache) -> Tensor:
        x = x + self.attention.decode(self.attention_norm(x), rotary, cache.own)
        x = x + self.cross(x, cache.prefix)
        return x + self.mlp(self.mlp_norm(x))

    def multiplications(self, positions: int, prefix_length: int) -> int:
        own = super().multiplications(positions, prefix_length)
        return own + self.cross.multiplications(positions, prefix_length)


def build_block(config: GPTConfig, layer: int) -> Block:
    """The block of a layer: every `gpt.cross_attention`-th one looks at the prefix again."""
    every = config.cross_attention
    return (CrossBlock if every and (layer + 1) % every == 0 else Block)(config, layer)
