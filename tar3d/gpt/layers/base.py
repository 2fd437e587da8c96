"""The interface of the GPT's attention layers, and what full and linear attention share.

A layer class owns all of its forms, so that a new one is one file and one line in
`tar3d.gpt.layers.LINEAR_ATTENTION`:

    forward          whole rows in parallel, for training
    prefill          the same, and the cache that decoding goes on from
    decode           one position on that cache
    packed_step      optional, for `tar3d.gpt.engine`: one position as a few device operations on
                     packed weights and static caches

All take (B, S, D) rows packed as [condition][steps][padding] and are causal, so that no position
that counts looks at padding and no mask of S x S is ever built. All use separate q, k, v matrices
(Muon orthogonalises each by itself), an RMS norm per head on q and k (bounded scores: arXiv
2302.05442), and rotary positions after it. A cache is filled once by a whole row, then grows by one
position a call.

Letters: B batch, S positions, D width, H heads, d head dimension, G rows of the engine, C slots of
a key-value cache.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tar3d.gpt.norm import NORM_EPS
from tar3d.gpt.rope import rotate

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    from tar3d.config import GPTConfig
    from tar3d.gpt.rows import PrefixFeatures

Rotary = tuple[Tensor, Tensor]  # (cos, sin), each (S, head_dim) or (B, 1, S, head_dim)
StaticCache = tuple[Tensor, ...]  # belongs to the engine, changed in place


@dataclass(frozen=True)
class RowLengths:
    """The ends of the rows of a batch, `lengths` (B,) int64 or None when all fill it.

    `max_new_steps` is how many steps may be decoded after them, `prefix` what they begin with, for
    blocks that look at it again.
    """

    lengths: Tensor | None
    max_new_steps: int
    prefix: PrefixFeatures | None = None


@dataclass
class LayerCache:
    """The memory of a layer of the positions so far.

    Every tensor of a subclass has the rows of the batch as its first dimension.
    """

    def select(self, rows: Tensor) -> Self:
        """A copy with the rows of that index (n,) int64."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return dataclasses.replace(
            self, **{name: x[rows] for name, x in fields.items() if isinstance(x, Tensor)}
        )


class DecodePosition(NamedTuple):
    """The position of a packed step, as tensors on the device: nothing is read back."""

    cos: Tensor  # (d,) rotary tables
    sin: Tensor  # (d,)
    slot: Tensor  # (1,) int64, where keys and values of this position go
    valid: Tensor | None  # (G, 1, 1, C) bool: slots in use; None: all up to `slot`
    window: int  # slots that are looked at, more than `slot`


class AttentionLayer(nn.Module):
    """Interface of the layers, and their q, k, v, o matrices with normalised and rotated heads.

    A layer may have a packed form: `pack`, `new_static_cache`, `fill_static_cache` and
    `packed_step`. The engine takes it for the very class that defines `packed_step` and for no
    subclass: what a subclass overrides, a packed form that it inherits would not know. A layer
    without one of its own is decoded by `decode` on its own cache.
    """

    # Backends of the engine that have the operations of `packed_step`.
    packed_backends: ClassVar[tuple[str, ...]] = ("plain", "compiled", "triton")
    # How parameters and children start: `tar3d.gpt.init`.
    init_as: ClassVar[dict[str, str]] = {"o": "residual", "qk_gain": "ones"}

    def __init__(self, config: GPTConfig, layer: int) -> None:  # noqa: ARG002  subclasses use it
        super().__init__()
        self.num_heads, self.head_dim = config.num_heads, config.head_dim
        self.q = nn.Linear(config.width, config.width, bias=False)
        self.k = nn.Linear(config.width, config.width, bias=False)
        self.v = nn.Linear(config.width, config.width, bias=False)
        self.o = nn.Linear(config.width, config.width, bias=False)
        # Gains of the RMS norms of q and k.
        self.qk_gain = nn.Parameter(torch.ones(2, 1, 1, 1, config.head_dim))

    def _lacks(self, method: str) -> str:
        """A sentence about a method that a layer does not define."""
        return (
            f"{type(self).__name__} defines no {method}(): an attention layer needs it "
            "(tar3d/gpt/layers/base.py)"
        )

    def forward(self, x: Tensor, rotary: Rotary) -> Tensor:
        """(B, S, D) -> (B, S, D), whole rows."""
        raise NotImplementedError(self._lacks("forward"))

    def prefill(self, x: Tensor, rotary: Rotary, rows: RowLengths) -> tuple[Tensor, LayerCache]:
        """`forward`, and the cache that the rows leave."""
        raise NotImplementedError(self._lacks("prefill"))

    def decode(self, x: Tensor, rotary: Rotary, cache: Any) -> Tensor:
        """One position of every row, (B, 1, D) -> (B, 1, D); `cache` is changed in place."""
        raise NotImplementedError(self._lacks("decode"))

    def multiplications(self, positions: int) -> int:
        """Least multiply-adds of a row of so many positions, beside those of the matrices."""
        raise NotImplementedError(self._lacks("multiplications"))

    def pack(self, gain: Tensor, pack: Callable[..., Tensor]) -> tuple:
        """The weights for `packed_step`, with those of the norm before the layer, `gain` (D,).

        `pack` joins the matrices of linear maps of one input.
        """
        raise NotImplementedError(self._lacks("pack"))

    def new_static_cache(self, rows: int, capacity: int, dtype: torch.dtype) -> StaticCache:
        """A cache of fixed size for `packed_step`: `rows` rows of up to `capacity` positions.

        Activations in it are in `dtype`.
        """
        raise NotImplementedError(self._lacks("new_static_cache"))

    @staticmethod
    def fill_static_cache(static: StaticCache, cache: Any, rows: Tensor) -> None:
        """Copies `rows` (G,) int64 of the cache of a prefill into a static cache."""
        raise NotImplementedError

    @staticmethod
    def packed_step(
        ops: ModuleType, weights: Any, x: Tensor, position: DecodePosition, cache: StaticCache
    ) -> Tensor:
        """Norm, layer and residual of one position, x (G, D) float32 -> (G, D) float32.

        `ops` is `tar3d.gpt.decode_ops` or another module with the same functions. A CUDA graph may
        hold the step: fixed shapes, `cache` changed in place, nothing read back.
        """
        raise NotImplementedError

    def feature_map(self, qk: Tensor) -> Tensor:
        """Applied to normalised q and k (..., d) before the rotation."""
        return qk

    def _qkv(self, x: Tensor, rotary: Rotary) -> tuple[Tensor, Tensor, Tensor]:
        """(B, S, D) -> q, k, v, each (B, H, S, d) in the dtype of v.

        q and k are normalised, mapped and rotated.
        """
        B, S, _ = x.shape
        v = self.v(x).view(B, S, self.num_heads, self.head_dim).transpose(1, 2)
        # As one tensor q and k need half the small operations: that is what a decoded token costs.
        qk = (
            torch.stack([self.q(x), self.k(x)])
            .view(2, B, S, self.num_heads, self.head_dim)
            .transpose(2, 3)
        )
        qk = F.rms_norm(qk.to(self.qk_gain.dtype), (self.head_dim,), eps=NORM_EPS) * self.qk_gain
        q, k = rotate(self.feature_map(qk), *rotary).to(v.dtype).unbind()
        return q, k, v
