"""Layers that the encoders and the decoder share.

Fourier features, attention, and the block that mixes a triplane. Letters: B batch, R grid side, D
width, H heads, L sequence length. A triplane of tokens is (B, 3, R, R, D); planes are xy, xz, yz,
and plane `ab` has rows along b and columns along a.
"""

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

SHORT_SEQUENCE = 512  # keys up to which plain attention is faster on a CPU


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention softmax(q k^T / sqrt(d)) v of q (B, H, L, d) over k, v (B, H, S, d).

    The CPU kernel behind scaled_dot_product_attention is built for long sequences: forward and
    backward over the 32 to 256 keys of a small triplane take 2 to 9 times longer than the plain
    form in bfloat16.
    """
    if q.device.type == "cpu" and k.shape[-2] <= SHORT_SEQUENCE:
        return (
            torch.softmax((q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2), dim=-1).to(v.dtype) @ v
        )
    return F.scaled_dot_product_attention(q, k, v)


def linear_flops(module: nn.Module, rows: int) -> int:
    """Operations of all linear layers in `module` over `rows` rows, a multiply-add counted as two.

    Every `flops` of this folder counts the same way: one shape forward, matrix products,
    convolutions and attention. Element-wise work (norms, activations, interpolation, pooling) is
    left out.
    """
    return 2 * rows * sum(m.weight.numel() for m in module.modules() if isinstance(m, nn.Linear))


def attention_flops(queries: int, keys: int, width: int) -> int:
    """Operations of the two products of attention, over all heads of total `width`."""
    return 2 * 2 * queries * keys * width


def blocks_flops(blocks: Iterable[Any], size: int) -> int:
    """Operations of all `blocks`, each of which has `flops(size)`."""
    return sum(block.flops(size) for block in blocks)


class FourierFeatures(nn.Module):
    """Coordinates (..., 3) in [-1, 1] -> features (..., 3 + 6 n), n = `num_frequencies`.

    The features are the coordinates, then sin and cos of pi 2^i times each, i < n.
    """

    frequencies: Tensor  # (n,)

    def __init__(self, num_frequencies: int) -> None:
        super().__init__()
        self.width = 3 + 6 * num_frequencies
        self.register_buffer(
            "frequencies", torch.pi * 2.0 ** torch.arange(num_frequencies), persistent=False
        )

    def forward(self, x: Tensor) -> Tensor:
        angles = (x[..., None] * self.frequencies).flatten(-2)
        return torch.cat([x, angles.sin(), angles.cos()], dim=-1)


class _Projections(nn.Module):
    """The four matrices of multi-head attention.

    Queries, keys and values have one each, because Muon orthogonalises matrices.
    """

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query, self.key, self.value, self.out = (
            nn.Linear(width, width, bias=False) for _ in range(4)
        )


class Attention(_Projections):
    """Multi-head attention of x (B, L, D) over context (B, S, D), or over itself."""

    def heads(self, x: Tensor, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        split = "b l (h d) -> b h l d"
        return (
            rearrange(self.query(x), split, h=self.num_heads),
            rearrange(self.key(context), split, h=self.num_heads),
            rearrange(self.value(context), split, h=self.num_heads),
        )

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        q, k, v = self.heads(x, x if context is None else context)
        return self.out(rearrange(attend(q, k, v), "b h l d -> b l (h d)"))


class MLP(nn.Sequential):
    """Two linear layers with a GELU between them."""

    def __init__(self, width: int, expansion: int = 4) -> None:
        super().__init__(
            nn.Linear(width, expansion * width), nn.GELU(), nn.Linear(expansion * width, width)
        )


class SelfAttentionBlock(nn.Module):
    """Pre-norm self-attention and MLP over a flat sequence (B, L, D)."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.norm_attention, self.norm_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention, self.mlp = Attention(width, num_heads), MLP(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm_attention(x))
        return x + self.mlp(self.norm_mlp(x))

    def flops(self, length: int) -> int:
        return linear_flops(self, length) + attention_flops(
            length, length, self.norm_mlp.weight.numel()
        )


class SharedAxisAttention(_Projections):
    """Attention across the three planes, among tokens that share a coordinate.

    Two planes share one axis: xy and xz share x, xy and yz share y, xz and yz share z. For each
    axis and each of its R coordinates, the 2R tokens of the two planes attend to each other; a
    token takes part in two such groups and receives the mean of both. A point's three plane
    features are related exactly through these groups, and the cost is O(R^3) instead of the O(R^4)
    of attention over all 3 R^2 tokens.
    """

    def forward(self, x: Tensor) -> Tensor:  # (B, 3, R, R, D)
        B, _, R, _, _ = x.shape
        groups = [_to_axis_groups(t) for t in (self.query(x), self.key(x), self.value(x))]
        q, k, v = (
            rearrange(g, "b r a l (h d) -> (b r a) h l d", h=self.num_heads) for g in groups
        )  # l = 2R
        out = rearrange(attend(q, k, v), "(b r a) h l d -> b r a l (h d)", a=3, b=B, r=R)
        return self.out(_from_axis_groups(out))


def _to_axis_groups(x: Tensor) -> Tensor:
    """Tokens (B, 3, R, R, D) -> (B, R coordinates on the axis, 3 axes, 2R tokens, D).

    In this order, one copy makes all the groups.
    """
    xy, xz, yz = x.unbind(1)  # rows, columns: xy is (y, x), xz is (z, x), yz is (z, y)
    x_axis = [xy.transpose(1, 2), xz.transpose(1, 2)]
    y_axis = [xy, yz.transpose(1, 2)]
    z_axis = [xz, yz]
    halves = torch.stack([*x_axis, *y_axis, *z_axis], dim=2)
    return rearrange(halves, "b r (a half) l d -> b r a (half l) d", a=3)


def _from_axis_groups(groups: Tensor) -> Tensor:
    """Mean of the two groups that each token belongs to, (B, 3, R, R, D).

    It is the inverse of `_to_axis_groups` when both copies of a token are equal.
    """
    x_axis, y_axis, z_axis = groups.unbind(2)
    R = x_axis.shape[1]
    xy = x_axis[:, :, :R].transpose(1, 2) + y_axis[:, :, :R]
    xz = x_axis[:, :, R:].transpose(1, 2) + z_axis[:, :, :R]
    yz = y_axis[:, :, R:].transpose(1, 2) + z_axis[:, :, R:]
    return torch.stack([xy, xz, yz], dim=1) / 2


class TriplaneBlock(nn.Module):
    """Self-attention within each plane, attention across the planes, and an MLP, all pre-norm.

    Tokens are (B, 3, R, R, D).
    """

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.norm_plane, self.norm_across, self.norm_mlp = (nn.LayerNorm(width) for _ in range(3))
        self.within_plane = Attention(width, num_heads)
        self.across_planes = SharedAxisAttention(width, num_heads)
        self.mlp = MLP(width)

    def forward(self, x: Tensor) -> Tensor:
        B, _, R, _, _ = x.shape
        flat = rearrange(self.norm_plane(x), "b p r c d -> (b p) (r c) d")
        x = x + rearrange(self.within_plane(flat), "(b p) (r c) d -> b p r c d", b=B, r=R)
        x = x + self.across_planes(self.norm_across(x))
        return x + self.mlp(self.norm_mlp(x))

    def flops(self, grid_size: int) -> int:
        R, D = grid_size, self.norm_mlp.weight.numel()
        return (
            linear_flops(self, 3 * R * R)
            + 3 * attention_flops(R * R, R * R, D)
            + 3 * R * attention_flops(2 * R, 2 * R, D)
        )
