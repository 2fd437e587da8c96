"""TriPE: rotary positions over the coordinates of a token, and what it is compared with.

The coordinates are the axes of the sequence's layout: row, column and plane of a triplane token.
"rotation" (the default of `gpt.rope`) splits the rotary pairs of a head between the axes, so that
q.k depends on the offsets alone and norms are kept. "paper_sum" is TAR3D's table (arXiv 2412.16919,
section 3.2, and its code): the cos/sin tables of a 2D and of a plane rotation are added, which
scales each pair by 0..2 instead of rotating it. "sequence" is plain rotary positions along the
sequence (arXiv 2104.09864). docs/ablations.md compares them.

Prefix positions have no coordinates: all of them are rotated by the identity. Or (`gpt.prefix_rope`
"zero", TAR3D's code) their table is zeros, so that q = k = 0 there: a linear-attention state never
sees the condition.

Letters: s steps, D head dimension, B batch, S positions of a packed row.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tar3d.config import GPTConfig
    from tar3d.layouts.base import Axis, Layout


def _angles(positions: Tensor, frequencies: Tensor) -> Tensor:
    return positions.double()[:, None] * frequencies[None, :]  # (s, pairs)


def _geometric(pairs: int, base: float) -> Tensor:
    return base ** (-torch.arange(pairs, dtype=torch.float64) / pairs)


def _values(axis: Axis) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(axis.values))  # (s,)


def pair_shares(head_dim: int, axes: Sequence[Axis]) -> list[int]:
    """Rotary pairs given to each axis.

    A category needs few frequencies: it gets an eighth of the pairs. The others share the rest
    equally, and the last axis gets the remainder. Raises ValueError where an axis would get none.
    """
    pairs = head_dim // 2
    few = max(1, pairs // 8)
    distances = [axis for axis in axes if not axis.categorical]
    equal = (pairs - few * (len(axes) - len(distances))) // max(1, len(distances))
    shares = [few if axis.categorical else equal for axis in axes]
    shares[-1] += pairs - sum(shares)
    if min(shares) < 1:
        raise ValueError(
            f"heads of {head_dim} have {pairs} rotary pairs, too few for the axes "
            f"{', '.join(axis.name for axis in axes)}: "
            "write a smaller gpt.num_heads, or gpt.rope=sequence"
        )
    return shares


def rotary_tables(
    layout: Layout, head_dim: int, base: float, kind: str, prefix: str = "identity"
) -> tuple[Tensor, Tensor]:
    """The (cos, sin) tables, each (1 + s, D) float32.

    Entry 0 is for every prefix position, entry 1 + i for step i. A pair is made of the channels
    (c, c + D/2). `sin` carries the sign of the rotation in its first half, which is what `rotate`
    expects. `kind` and `prefix` are those of the module docstring.
    """
    axes = layout.axes()
    if kind == "rotation":
        shares = zip(axes, pair_shares(head_dim, axes), strict=True)
        angles = torch.cat([_axis_angles(axis, pairs, base) for axis, pairs in shares], dim=1)
        cos, sin = angles.cos(), angles.sin()  # (s, D/2)
    elif kind == "paper_sum":
        cos, sin = _paper_sum(layout, axes, head_dim // 2, base)
    elif kind == "sequence":
        first_tokens = torch.arange(0, layout.num_tokens, layout.tokens_per_step)
        # Position 0 is the prefix's.
        angles = _angles(first_tokens + 1, _geometric(head_dim // 2, base))
        cos, sin = angles.cos(), angles.sin()
    else:
        raise ValueError(f"rope is {kind!r}, allowed are rotation, paper_sum, sequence")
    cos = torch.cat([torch.full_like(cos[:1], 0.0 if prefix == "zero" else 1.0), cos])
    sin = torch.cat([torch.zeros_like(sin[:1]), sin])
    return torch.cat([cos, cos], dim=1).float(), torch.cat([-sin, sin], dim=1).float()


def _axis_angles(axis: Axis, pairs: int, base: float) -> Tensor:
    """The angles (s, pairs) of one axis.

    Offsets of categories are small, so rope's small frequencies could not tell them apart: theirs
    halve from 1 rad instead.
    """
    if axis.categorical:
        return _angles(_values(axis), 0.5 ** torch.arange(pairs, dtype=torch.float64))
    return _angles(_values(axis), _geometric(pairs, base))


def _paper_sum(
    layout: Layout, axes: Sequence[Axis], pairs: int, base: float
) -> tuple[Tensor, Tensor]:
    """(cos, sin), each (s, pairs), of TAR3D's sum."""
    if [axis.categorical for axis in axes] != [False, False, True]:
        raise ValueError(
            "gpt.rope is paper_sum, which is made of two coordinates and a plane, but the layout "
            f"{layout.name} has {', '.join(axis.name for axis in axes)}: write gpt.rope=rotation"
        )
    row, column, plane = (_values(axis) for axis in axes)
    half, rest = _geometric(pairs // 2, base), _geometric(pairs - pairs // 2, base)
    spatial = torch.cat([_angles(row, half), _angles(column, rest)], dim=1)
    planar = _angles(plane, _geometric(pairs, base))
    return spatial.cos() + planar.cos(), spatial.sin() + planar.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Applies a table of `rotary_tables` to `x` (..., S, D); `cos` and `sin` broadcast to it."""
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)


class TriPE(nn.Module):
    """The tables of one configuration, looked up by step relative to the row's own first one.

    `config` holds the choices of `rotary_tables`.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, config: GPTConfig, layout: Layout) -> None:
        super().__init__()
        cos, sin = rotary_tables(
            layout, config.head_dim, config.rope_base, config.rope, config.prefix_rope
        )
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def step(self, index: int) -> tuple[Tensor, Tensor]:
        """(cos, sin), each (1, D), of one step that all rows share."""
        return self.cos[index + 1 : index + 2], self.sin[index + 1 : index + 2]

    def packed(self, prefix_lengths: Tensor | int, num_positions: int) -> tuple[Tensor, Tensor]:
        """(cos, sin) of rows packed as [condition][steps][padding].

        `prefix_lengths` is one length for all rows (result (S, D)) or one per row, (B,) int64
        (result (B, 1, S, D)). Padding gets some valid entry: no position that counts looks at it.
        """
        positions = torch.arange(num_positions, device=self.cos.device)
        if isinstance(prefix_lengths, int):
            index = (positions + 1 - prefix_lengths).clamp_(0, len(self.cos) - 1)  # (S,)
            return self.cos[index], self.sin[index]
        index = (positions + 1 - prefix_lengths[:, None]).clamp_(0, len(self.cos) - 1)  # (B, S)
        return self.cos[index].unsqueeze(1), self.sin[index].unsqueeze(1)
