"""The common part of linear-attention layers: a running state in the place of keys and values.

A subclass gives its decay, the parallel forms (`backend`) and the recurrent step; a layer of
another kind need not derive from this, but from `AttentionLayer`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from tar3d.gpt import linear_attention
from tar3d.gpt.decode_ops import silu_features
from tar3d.gpt.layers.base import AttentionLayer, LayerCache, Rotary, RowLengths, StaticCache
from tar3d.gpt.norm import RMSNorm

if TYPE_CHECKING:
    from collections.abc import Callable

    from tar3d.config import GPTConfig
    from tar3d.gpt.backends import GatedBackend, LinearBackend


@dataclass
class StateCache(LayerCache):
    """The running state (B, H, d, d) float32 of a linear layer."""

    state: Tensor


class LinearAttention(AttentionLayer):
    """Linear attention with SiLU features, an RMS norm per head on the output and a sigmoid gate.

    The output norm is per head because heads that forget slowly sum over more positions and would
    drown the others in a norm over the width (RetNet, arXiv 2307.08621). The gate is that of
    TransNormerLLM and MiniMax-01.
    """

    slopes: Tensor  # (H,) decay rates of lightning attention, where those of others begin
    backend: ClassVar[type[LinearBackend | GatedBackend]]  # whole rows
    recurrent_step: ClassVar[Callable[..., tuple[Tensor, Tensor]]]  # one position of the same
    state_products = 2  # products of d x d a position and head: k v^T and q S
    init_as: ClassVar[dict[str, str]] = {**AttentionLayer.init_as, "o_norm": "ones"}

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__(config, layer)
        self.gate = (
            nn.Linear(config.width, config.width, bias=False) if config.linear_gate else None
        )
        self.o_norm = RMSNorm(config.head_dim)
        self.attend: Callable[..., tuple[Tensor, Any]] = self.backend(
            config.linear_backend, config.head_dim, config.chunk_size
        )
        slopes = linear_attention.layer_slopes(config.num_heads, layer, config.num_layers)
        self.register_buffer("slopes", slopes, persistent=False)

    def decay(self, x: Tensor) -> tuple[Tensor | None, ...]:
        """The arguments of `attend` and `recurrent_step` after q, k, v for x (B, S, D)."""
        raise NotImplementedError

    def forward(self, x: Tensor, rotary: Rotary) -> Tensor:
        decay = self.decay(x)
        o, _ = self.attend(*self._qkv(x, rotary), *decay, want_state=False)
        return self.output(o, x)

    def prefill(self, x: Tensor, rotary: Rotary, rows: RowLengths) -> tuple[Tensor, StateCache]:
        """`forward` of whole rows, and the state at each row's own length."""
        decay = self.decay(x)
        o, state = self.attend(*self._qkv(x, rotary), *decay, lengths=rows.lengths)
        return self.output(o, x), StateCache(state)

    def decode(self, x: Tensor, rotary: Rotary, cache: StateCache) -> Tensor:
        decay = self.decay(x)
        o, cache.state = self.recurrent_step(*self._qkv(x, rotary), *decay, cache.state)
        return self.output(o, x)

    def feature_map(self, qk: Tensor) -> Tensor:
        return silu_features(qk)

    def output(self, o: Tensor, x: Tensor) -> Tensor:
        """Heads (B, H, S, d), normed and gated by x (B, S, D) -> (B, S, D)."""
        o = self.o_norm(o).transpose(1, 2).flatten(2)
        if self.gate is not None:
            o = o * torch.sigmoid(self.gate(x))
        return self.o(o)

    def multiplications(self, positions: int) -> int:
        return positions * self.num_heads * self.head_dim * self.state_products * self.head_dim

    def new_static_cache(self, rows: int, capacity: int, dtype: torch.dtype) -> StaticCache:  # noqa: ARG002
        """The state (rows, H, d, d) float32, whatever the capacity."""
        shape = (rows, self.num_heads, self.head_dim, self.head_dim)
        return (torch.zeros(shape, dtype=torch.float32, device=self.o.weight.device),)

    @staticmethod
    def fill_static_cache(static: StaticCache, cache: StateCache, rows: Tensor) -> None:
        static[0].copy_(cache.state[rows])
