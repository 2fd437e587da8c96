"""Full attention and its key-value cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tar3d.gpt.backends import FullBackend
from tar3d.gpt.layers.base import (
    AttentionLayer,
    DecodePosition,
    LayerCache,
    Rotary,
    RowLengths,
    StaticCache,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    from tar3d.config import GPTConfig


@dataclass
class KVCache(LayerCache):
    """Keys and values (B, H, capacity, d) of a full-attention layer, `filled` slots of them in use.

    `valid` (B, 1, 1, capacity) bool hides the padding of rows that were shorter than the longest
    when the cache was filled; None when there was none. Decoded positions of all rows share a slot,
    behind the padding: the order of keys means nothing to attention, their positions are in the
    rotation.
    """

    keys: Tensor
    values: Tensor
    filled: int
    valid: Tensor | None

    @classmethod
    def from_rows(cls, k: Tensor, v: Tensor, rows: RowLengths) -> KVCache:
        """Holds k, v (B, H, S, d) and `rows.max_new_steps` free slots."""
        B, H, S, head_dim = k.shape
        capacity = S + rows.max_new_steps
        keys, values = k.new_empty(B, H, capacity, head_dim), v.new_empty(B, H, capacity, head_dim)
        keys[:, :, :S], values[:, :, :S] = k, v
        valid = None
        if rows.lengths is not None:
            slot = torch.arange(capacity, device=k.device)
            valid = ((slot < rows.lengths[:, None]) | (slot >= S))[:, None, None]
        return cls(keys, values, S, valid)

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Adds one position (B, H, 1, d); returns keys and values so far, and their mask."""
        if self.filled == self.keys.shape[2]:
            raise ValueError(f"the cache is full: it was made for {self.filled} positions")
        end = self.filled + 1
        self.keys[:, :, self.filled : end] = k
        self.values[:, :, self.filled : end] = v
        self.filled = end
        return (
            self.keys[:, :, :end],
            self.values[:, :, :end],
            None if self.valid is None else self.valid[..., :end],
        )


class FullWeights(NamedTuple):
    gain: Tensor  # (D,)
    qkv: Tensor  # (3 D, D)
    qk_gain: Tensor  # (2, d)
    o: Tensor  # (D, D)


class FullAttention(AttentionLayer):
    """Causal softmax attention: whole rows by `gpt.attention_backend`, one position by SDPA.

    Nothing here runs several new positions on top of a cache: SDPA's `is_causal` aligns to the top
    left, which would be wrong there.
    """

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__(config, layer)
        self.attend = FullBackend(config.attention_backend, config.head_dim)

    def forward(self, x: Tensor, rotary: Rotary) -> Tensor:
        return self.output(self.attend(*self._qkv(x, rotary)))

    def prefill(self, x: Tensor, rotary: Rotary, rows: RowLengths) -> tuple[Tensor, KVCache]:
        q, k, v = self._qkv(x, rotary)
        o = self.attend(q, k, v)
        return self.output(o), KVCache.from_rows(k, v, rows)

    def decode(self, x: Tensor, rotary: Rotary, cache: KVCache) -> Tensor:
        q, k, v = self._qkv(x, rotary)
        k, v, valid = cache.append(k, v)
        return self.output(F.scaled_dot_product_attention(q, k, v, attn_mask=valid))

    def output(self, o: Tensor) -> Tensor:
        """Heads (B, H, S, d) -> (B, S, D)."""
        return self.o(o.transpose(1, 2).flatten(2))

    def multiplications(self, positions: int) -> int:
        """Half of the S x S products of scores, and of those with the values."""
        return positions * self.num_heads * self.head_dim * (positions + 1)

    def pack(self, gain: Tensor, pack: Callable[..., Tensor]) -> FullWeights:
        qkv = pack(self.q, self.k, self.v)
        return FullWeights(gain, qkv, self.qk_gain.reshape(2, -1), pack(self.o))

    def new_static_cache(self, rows: int, capacity: int, dtype: torch.dtype) -> StaticCache:
        """Keys and values, (rows, H, capacity, d) each."""
        shape = (2, rows, self.num_heads, capacity, self.head_dim)
        return tuple(torch.zeros(shape, dtype=dtype, device=self.o.weight.device))

    @staticmethod
    def fill_static_cache(static: StaticCache, cache: KVCache, rows: Tensor) -> None:
        keys, values = static
        keys[:, :, : cache.filled] = cache.keys[rows, :, : cache.filled]
        values[:, :, : cache.filled] = cache.values[rows, :, : cache.filled]

    @staticmethod
    def packed_step(
        ops: ModuleType,
        weights: FullWeights,
        x: Tensor,
        position: DecodePosition,
        cache: StaticCache,
    ) -> Tensor:
        cos, sin, slot, valid, window = position
        projected = ops.norm_linear(x, weights.gain, weights.qkv)
        o = ops.full_attend(projected, cos, sin, weights.qk_gain, *cache, slot, valid, window)
        return ops.linear_add(o, weights.o, x)
