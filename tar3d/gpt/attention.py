"""The attention layers of the hybrid GPT, full and linear, and what they remember while decoding.

All take (B, S, D) rows packed as [condition][tokens][padding] and are causal, so that no position
that counts looks at padding and no mask of S x S is ever built. All use separate q, k, v matrices
(Muon orthogonalises each by itself), an RMS norm per head on q and k (bounded scores: arXiv
2302.05442), and TriPE after it.

A cache is filled once by a whole row, then grows by one position a call. Nothing here runs several
new positions on top of a cache: SDPA's `is_causal` aligns to the top left, which would be wrong
there.

Letters: B batch, S positions, D width, H heads.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tar3d.gpt import gated_attention, linear_attention
from tar3d.gpt.backends import FullBackend, GatedBackend, LinearBackend
from tar3d.gpt.rope import rotate

if TYPE_CHECKING:
    from tar3d.config import GPTConfig

NORM_EPS = 1e-6
FIRST_STEP_SIZE = math.log(math.e - 1)  # softplus of it is 1

Rotary = tuple[Tensor, Tensor]  # (cos, sin), each (S, head_dim) or (B, 1, S, head_dim)


@dataclass(frozen=True)
class Extent:
    """Where the rows of a batch end, `lengths` (B,) int64 or None when all fill it, and the `room`
    to decode after them."""

    lengths: Tensor | None
    room: int


class RMSNorm(nn.RMSNorm):
    """RMS norm in the precision of its gain: under autocast a bfloat16 input is normalised in
    float32."""

    def __init__(self, width: int) -> None:
        super().__init__(width, eps=NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.to(self.weight.dtype), self.normalized_shape, self.weight, self.eps)


@dataclass
class KVCache:
    """Keys and values (B, H, capacity, head_dim) of a full-attention layer; the first `filled`
    slots are in use.

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
    def from_rows(cls, k: Tensor, v: Tensor, extent: Extent) -> KVCache:
        """Holds k, v (B, H, S, head_dim) and `extent.room` free slots."""
        B, H, S, head_dim = k.shape
        capacity = S + extent.room
        keys, values = k.new_empty(B, H, capacity, head_dim), v.new_empty(B, H, capacity, head_dim)
        keys[:, :, :S], values[:, :, :S] = k, v
        valid = None
        if extent.lengths is not None:
            slot = torch.arange(capacity, device=k.device)
            valid = ((slot < extent.lengths[:, None]) | (slot >= S))[:, None, None]
        return cls(keys, values, S, valid)

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Adds one position (B, H, 1, head_dim); returns all keys and values so far and the mask
        over them."""
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


@dataclass
class StateCache:
    """The running state (B, H, head_dim, head_dim) float32 of a linear layer."""

    state: Tensor


LayerCache = KVCache | StateCache


class _Projections(nn.Module):
    """q, k, v, o matrices with normalised and rotated heads: what the two kinds have in common."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.num_heads, self.head_dim = config.num_heads, config.head_dim
        self.q = nn.Linear(config.width, config.width, bias=False)
        self.k = nn.Linear(config.width, config.width, bias=False)
        self.v = nn.Linear(config.width, config.width, bias=False)
        self.o = nn.Linear(config.width, config.width, bias=False)
        self.qk_gain = nn.Parameter(
            torch.ones(2, 1, 1, 1, config.head_dim)
        )  # of the norms of q and of k

    def _qkv(self, x: Tensor, rotary: Rotary) -> tuple[Tensor, Tensor, Tensor]:
        """(B, S, D) -> q, k, v, each (B, H, S, head_dim) in the dtype of v; q and k normalised,
        mapped and rotated."""
        B, S, _ = x.shape
        v = self.v(x).view(B, S, self.num_heads, self.head_dim).transpose(1, 2)
        # As one tensor q and k need half the small operations: that is what a decoded token costs.
        qk = (
            torch.stack([self.q(x), self.k(x)])
            .view(2, B, S, self.num_heads, self.head_dim)
            .transpose(2, 3)
        )
        qk = F.rms_norm(qk.to(self.qk_gain.dtype), (self.head_dim,), eps=NORM_EPS) * self.qk_gain
        q, k = rotate(self._feature_map(qk), *rotary).to(v.dtype).unbind()
        return q, k, v

    def _feature_map(self, qk: Tensor) -> Tensor:
        return qk


class FullAttention(_Projections):
    """Causal softmax attention: whole rows through `gpt.attention_backend`, one decoded position
    through SDPA."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__(config)
        self.attend = FullBackend(config.attention_backend, config.head_dim)

    def forward(self, x: Tensor, rotary: Rotary, cache: KVCache | None = None) -> Tensor:
        """(B, S, D) -> (B, S, D); with a cache S is 1 and the cache is extended in place."""
        q, k, v = self._qkv(x, rotary)
        if cache is None:
            o = self.attend(q, k, v)
        else:
            k, v, valid = cache.append(k, v)
            o = F.scaled_dot_product_attention(q, k, v, attn_mask=valid)
        return self._output(o)

    def prefill(self, x: Tensor, rotary: Rotary, extent: Extent) -> tuple[Tensor, KVCache]:
        """`forward` of whole rows, and the cache they leave."""
        q, k, v = self._qkv(x, rotary)
        o = self.attend(q, k, v)
        return self._output(o), KVCache.from_rows(k, v, extent)

    def _output(self, o: Tensor) -> Tensor:
        return self.o(o.transpose(1, 2).flatten(2))


class LinearAttention(_Projections):
    """Lightning attention with SiLU features, an RMS norm per head on the output and a sigmoid
    gate.

    The output norm is per head because heads that forget slowly sum over more positions and would
    drown the others in a norm over the width (RetNet, arXiv 2307.08621). The gate is that of
    TransNormerLLM and MiniMax-01.
    """

    slopes: Tensor
    backend = LinearBackend

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__(config)
        self.gate = (
            nn.Linear(config.width, config.width, bias=False) if config.linear_gate else None
        )
        self.o_norm = RMSNorm(config.head_dim)
        self.attend = self.backend(config.linear_backend, config.head_dim, config.chunk_size)
        slopes = linear_attention.layer_slopes(config.num_heads, layer, config.num_layers)
        self.register_buffer("slopes", slopes, persistent=False)

    def forward(self, x: Tensor, rotary: Rotary, cache: StateCache | None = None) -> Tensor:
        """(B, S, D) -> (B, S, D); with a cache S is 1 and the cache is updated in place."""
        q, k, v = self._qkv(x, rotary)
        if cache is None:
            o, _ = self.attend(q, k, v, self.slopes, want_state=False)
        else:
            o, cache.state = linear_attention.recurrent_step(q, k, v, self.slopes, cache.state)
        return self._output(o, x)

    def prefill(self, x: Tensor, rotary: Rotary, extent: Extent) -> tuple[Tensor, StateCache]:
        """`forward` of whole rows, and the state at each row's own length."""
        q, k, v = self._qkv(x, rotary)
        o, state = self.attend(q, k, v, self.slopes, lengths=extent.lengths)
        return self._output(o, x), StateCache(state)

    def _feature_map(self, qk: Tensor) -> Tensor:
        return F.silu(qk)

    def _output(self, o: Tensor, x: Tensor) -> Tensor:
        o = self.o_norm(o).transpose(1, 2).flatten(2)
        if self.gate is not None:
            o = o * torch.sigmoid(self.gate(x))
        return self.o(o)


def unit_silu(qk: Tensor) -> Tensor:
    """The feature map of the delta rule, whose keys must be unit vectors."""
    return F.normalize(F.silu(qk), dim=-1)


class GatedLinearAttention(LinearAttention):
    """Linear attention that reads from each position how much a head forgets there, for comparison
    (docs/ablations.md):

        log a_t = -rate softplus(W x_t + bias)          Mamba-2 and the gated delta rule (arXiv 2405.21060, 2412.06464)

    `gpt.linear_attention` "gated" is that alone, "delta" with the delta rule, for which b_t = sigmoid(W' x_t)
    and keys are unit vectors. At the start heads forget as those of lightning attention do.
    """

    backend = GatedBackend
    adamw_parameters = ("forget",)  # a number a head, not a hidden matrix

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__(config, layer)
        self.delta = config.linear_attention == "delta"
        self.forget = nn.Linear(
            config.width, (2 if self.delta else 1) * config.num_heads, bias=False
        )
        self.forget_bias = nn.Parameter(torch.full((config.num_heads,), FIRST_STEP_SIZE))
        self.log_rate = nn.Parameter(self.slopes.log())

    def forward(self, x: Tensor, rotary: Rotary, cache: StateCache | None = None) -> Tensor:
        q, k, v, *gates = self._gated(x, rotary)
        if cache is None:
            o, _ = self.attend(q, k, v, *gates, want_state=False)
        else:
            o, cache.state = gated_attention.recurrent_step(q, k, v, *gates, cache.state)
        return self._output(o, x)

    def prefill(self, x: Tensor, rotary: Rotary, extent: Extent) -> tuple[Tensor, StateCache]:
        o, state = self.attend(*self._gated(x, rotary), lengths=extent.lengths)
        return self._output(o, x), StateCache(state)

    def _gated(
        self, x: Tensor, rotary: Rotary
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
        """q, k, v (B, H, S, head_dim), log_decay and beta (B, H, S) of rows (B, S, D)."""
        gates = self.forget(x).transpose(1, 2)
        return *self._qkv(x, rotary), *head_gates(
            gates, self.forget_bias[:, None], self.log_rate[:, None]
        )

    def _feature_map(self, qk: Tensor) -> Tensor:
        return unit_silu(qk) if self.delta else F.silu(qk)


def head_gates(gates: Tensor, bias: Tensor, log_rate: Tensor) -> tuple[Tensor, Tensor | None]:
    """What `forget` makes of positions, (B, H or 2 H, ...) -> log_decay and beta (B, H, ...) in the
    dtype of `bias`; beta is None without the delta rule. `bias` and `log_rate` (H, ...) broadcast
    to it."""
    forget, *beta = gates.to(bias.dtype).split(len(bias), dim=1)
    return -log_rate.exp() * F.softplus(forget + bias), beta[0].sigmoid() if beta else None
