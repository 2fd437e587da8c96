"""TriPE: rotary positions over the (row, col, plane) of a triplane token, and what it is compared
with (docs/ablations.md).

`kind` "rotation" (default): the rotary pairs of a head are split between row, col and plane, so
that q.k depends on the three offsets alone and norms are kept. "paper_sum" is TAR3D's table (arXiv
2412.16919, section 3.2, and its code): the cos/sin tables of a 2D and of a plane rotation are
added, which scales each pair by 0..2 instead of rotating it. "sequence" is plain rotary positions
along the sequence (arXiv 2104.09864).

Prefix positions have no place on the triplane: all of them are rotated by the identity. Or ("zero",
TAR3D's code) their table is zeros, so that q = k = 0 there: a linear-attention state never sees the
condition.

Letters: T tokens = 3 R^2, D head dimension, B batch, S positions of a packed row.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from tar3d import token_order

if TYPE_CHECKING:
    from tar3d.config import GPTConfig


def _angles(positions: Tensor, frequencies: Tensor) -> Tensor:
    return positions.double()[:, None] * frequencies[None, :]  # (T, pairs)


def _geometric(pairs: int, base: float) -> Tensor:
    return base ** (-torch.arange(pairs, dtype=torch.float64) / pairs)


def pair_shares(head_dim: int) -> tuple[int, int, int]:
    """Rotary pairs given to (row, col, plane). Three planes need few frequencies: they get an
    eighth of the pairs."""
    pairs = head_dim // 2
    spatial = (pairs - max(1, pairs // 8)) // 2
    return spatial, spatial, pairs - 2 * spatial


def tripe_tables(
    grid_size: int,
    head_dim: int,
    base: float,
    kind: str,
    prefix: str = "identity",
    order: str = "cells",
) -> tuple[Tensor, Tensor]:
    """The (cos, sin) tables, each (1 + T, D) float32: entry 0 is for every prefix position, entry 1
    + i for token i.

    A pair is made of the channels (c, c + D/2). `sin` carries the sign of the rotation in its first
    half, which is what `rotate` expects. `kind` and `prefix` are those of the module docstring,
    `order` that of the tokens.
    """
    positions = torch.arange(token_order.num_tokens(grid_size))
    row, col, plane = token_order.coordinates(positions, grid_size, order)
    if kind == "rotation":
        row_pairs, col_pairs, plane_pairs = pair_shares(head_dim)
        # Plane offsets are at most 2, so rope's small frequencies could not tell them apart: halve
        # from 1 rad instead.
        plane_frequencies = 0.5 ** torch.arange(plane_pairs, dtype=torch.float64)
        angles = torch.cat(
            [
                _angles(row, _geometric(row_pairs, base)),
                _angles(col, _geometric(col_pairs, base)),
                _angles(plane, plane_frequencies),
            ],
            dim=1,
        )  # (T, D/2)
        cos, sin = angles.cos(), angles.sin()
    elif kind == "paper_sum":
        pairs = head_dim // 2
        half = _geometric(pairs // 2, base)
        rest = _geometric(pairs - pairs // 2, base)
        spatial = torch.cat([_angles(row, half), _angles(col, rest)], dim=1)
        planar = _angles(plane, _geometric(pairs, base))
        cos, sin = spatial.cos() + planar.cos(), spatial.sin() + planar.sin()
    elif kind == "sequence":
        angles = _angles(positions + 1, _geometric(head_dim // 2, base))  # 0 is the prefix's
        cos, sin = angles.cos(), angles.sin()
    else:
        raise ValueError(f"rope is {kind!r}, allowed are rotation, paper_sum, sequence")
    cos = torch.cat([torch.full_like(cos[:1], 0.0 if prefix == "zero" else 1.0), cos])
    sin = torch.cat([torch.zeros_like(sin[:1]), sin])
    return torch.cat([cos, cos], dim=1).float(), torch.cat([-sin, sin], dim=1).float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Applies a table of `tripe_tables` to `x` (..., S, D); `cos` and `sin` broadcast to it."""
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)


class TriPE(nn.Module):
    """The tables of one configuration as buffers, looked up by step relative to the row's own first
    one.

    A step is a token, or with `tokens_per_step` 3 a cell, which stands where its first token does.
    `config` holds the choices of `tripe_tables`.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        tables = tripe_tables(
            config.grid_size,
            config.head_dim,
            config.rope_base,
            config.rope,
            config.prefix_rope,
            config.token_order,
        )
        cos, sin = (torch.cat([table[:1], table[1 :: config.tokens_per_step]]) for table in tables)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def step(self, index: int) -> tuple[Tensor, Tensor]:
        """(cos, sin), each (1, D), of one step that all rows share."""
        return self.cos[index + 1 : index + 2], self.sin[index + 1 : index + 2]

    def packed(self, prefix_lengths: Tensor | int, num_positions: int) -> tuple[Tensor, Tensor]:
        """(cos, sin) of rows packed as [condition][tokens][padding].

        `prefix_lengths` is one length for all rows (result (S, D)) or one per row, (B,) int64
        (result (B, 1, S, D)). Padding gets some valid entry: no position that counts looks at it.
        """
        positions = torch.arange(num_positions, device=self.cos.device)
        if isinstance(prefix_lengths, int):
            index = (positions + 1 - prefix_lengths).clamp_(0, len(self.cos) - 1)  # (S,)
            return self.cos[index], self.sin[index]
        index = (positions + 1 - prefix_lengths[:, None]).clamp_(0, len(self.cos) - 1)  # (B, S)
        return self.cos[index].unsqueeze(1), self.sin[index].unsqueeze(1)
