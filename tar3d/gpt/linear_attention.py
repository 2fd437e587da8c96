"""Lightning attention: causal linear attention with one fixed decay per head, in three equal forms.

    o_t = sum_{s <= t} exp(-slope (t - s)) (q_t . k_s) v_s = q_t S_t
    S_t = exp(-slope) S_{t-1} + k_t v_t^T

(arXiv 2401.04658.) `reference` is the plain quadratic sum, `chunked` is exact and linear in T,
`recurrent_step` takes one token. All are `(q, k, v, slopes, state=None) -> (o, state)`; the first
two also take `lengths`. No normaliser is kept: the caller normalises the output. Everything is pure
PyTorch; there is no feature map and no scale here.

Letters: B batch, H heads, T positions, D head dimension, C chunk size, n chunks. Shapes: q, k, v, o
(B, H, T, D); slopes (H,) >= 0; state (B, H, D, D) float32 (float64 for float64 inputs), indexed
[key channel, value channel]; lengths (B,) int64: row b's positions from lengths[b] on are padding.
The state returned is the one at the row's own length: padding neither enters nor decays it. Outputs
at padding are finite and mean nothing.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def alibi_slopes(num_heads: int) -> Tensor:
    """(H,) float32 decay rates 2^(-8 h / H), h = 1..H (ALiBi, arXiv 2108.12409).

    Lightning attention uses the same. For an H that is no power of two, the slopes of the power of
    two below come first, then every other one of the next.
    """
    power = 2 ** math.floor(math.log2(num_heads))
    slopes = [2 ** (-8 * (h + 1) / power) for h in range(power)]
    slopes += [2 ** (-4 * (2 * h + 1) / power) for h in range(num_heads - power)]
    return torch.tensor(slopes)


def layer_slopes(num_heads: int, layer: int, num_layers: int) -> Tensor:
    """(H,) slopes of one layer: ALiBi's times 1 - layer/(L-1) + 1e-5.

    TransNormerLLM and MiniMax-01 do the same: deeper layers forget more slowly. With a long token
    sequence behind the prefix that is what lets the condition reach the last tokens: the slowest of
    12 unscaled heads halves its memory every 177 tokens, out of 3,072.
    """
    depth = layer / (num_layers - 1) if num_layers > 1 else 0.0
    return alibi_slopes(num_heads) * (1.0 - depth + 1e-5)


def _state_dtype(q: Tensor) -> torch.dtype:
    return torch.float64 if q.dtype == torch.float64 else torch.float32


def _decay(slopes: Tensor, age: Tensor) -> Tensor:
    """exp(-slope age) where age >= 0, else 0.

    The age is clamped before the exponential, which would overflow for age < 0.
    """
    return torch.where(age >= 0, torch.exp(-slopes * age.clamp_min(0)), 0.0)


def reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    slopes: Tensor,
    state: Tensor | None = None,
    *,
    lengths: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The definition, O(T^2), that the other forms are tested against."""
    dtype = _state_dtype(q)
    with torch.autocast(q.device.type, enabled=False):
        B, _, T, _ = q.shape
        output_dtype, (q, k, v) = q.dtype, (x.to(dtype) for x in (q, k, v))
        slopes = slopes.to(dtype)
        if lengths is None:
            lengths = torch.full((B,), T, device=q.device)
        position = torch.arange(T, device=q.device)
        weight = _decay(slopes[:, None, None], position[:, None] - position)  # (H, T, T)
        o = ((q @ k.transpose(-1, -2)) * weight) @ v
        to_end = _decay(slopes[:, None], lengths[:, None, None] - 1 - position)  # (B, H, T)
        final = (k * to_end[..., None]).transpose(-1, -2) @ v
        if state is not None:
            o = o + (q @ state.to(dtype)) * _decay(slopes[:, None], position + 1)[..., None]
            final = final + state.to(dtype) * _decay(slopes, lengths[:, None])[..., None, None]
    return o.to(output_dtype), final


def chunked(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    slopes: Tensor,
    state: Tensor | None = None,
    *,
    lengths: Tensor | None = None,
    chunk_size: int = 64,
) -> tuple[Tensor, Tensor]:
    """Exact and O(T C + T D): quadratic inside a chunk, a carried state between chunks.

    Products run in the inputs' dtype, the carried states in float32. Every exponent is <= 0, so no
    slope overflows.
    """
    dtype = _state_dtype(q)
    B, H, T, D = q.shape
    C = min(chunk_size, T)
    n = -(-T // C)
    with torch.autocast(q.device.type, enabled=False):
        slopes = slopes.to(dtype)
        if n * C > T:
            q, k, v = (F.pad(x, (0, 0, 0, n * C - T)) for x in (q, k, v))
        q, k, v = (x.reshape(B, H, n, C, D) for x in (q, k, v))
        position = torch.arange(C, device=q.device)
        inside = _decay(slopes[:, None, None], position[:, None] - position).to(
            q.dtype
        )  # (H, C, C)
        from_start = _decay(slopes[:, None], position + 1).to(q.dtype)  # (H, C)
        to_end = _decay(slopes[:, None], C - 1 - position).to(q.dtype)  # (H, C)

        sums = ((k * to_end[:, None, :, None]).transpose(-1, -2) @ v).to(dtype)  # (B, H, n, D, D)
        # The state before chunk c is sum_{b < c} exp(-slope C (c - 1 - b)) sums_b: one matrix
        # product over chunks.
        chunk = torch.arange(n, device=q.device)
        between = _decay(slopes[:, None, None], C * (chunk[:, None] - 1 - chunk))  # (H, n, n)
        before = (between @ sums.reshape(B, H, n, D * D)).reshape(B, H, n, D, D)
        if state is not None:
            before = (
                before
                + state.to(dtype)[:, :, None] * _decay(slopes[:, None], C * chunk)[..., None, None]
            )

        scores = (q @ k.transpose(-1, -2)) * inside[:, None]  # (B, H, n, C, C)
        o = scores @ v + (q * from_start[:, None, :, None]) @ before.to(q.dtype)
        final = _state_at(k, v, slopes, before, T if lengths is None else lengths)
    return o.reshape(B, H, n * C, D)[:, :, :T], final


def _state_at(
    k: Tensor, v: Tensor, slopes: Tensor, before: Tensor, lengths: Tensor | int
) -> Tensor:
    """The state (B, H, D, D) at `lengths`, from that before the chunk of the last valid position.

    Going on from there at the chunk's true length avoids the exp(+slope padding) that undoing a
    padded tail would need.
    """
    B, _, _, C, _ = k.shape
    if isinstance(lengths, int):
        lengths = torch.full((B,), lengths, device=k.device)
    last = (lengths - 1).clamp_min(0) // C  # (B,)
    rest = lengths - last * C  # (B,) valid positions of that chunk
    row = torch.arange(B, device=k.device)
    weight = _decay(
        slopes[:, None], rest[:, None, None] - 1 - torch.arange(C, device=k.device)
    )  # (B, H, C)
    added = (k[row, :, last].to(before.dtype) * weight[..., None]).transpose(-1, -2) @ v[
        row, :, last
    ].to(before.dtype)
    return before[row, :, last] * _decay(slopes, rest[:, None])[..., None, None] + added


def recurrent_step(
    q: Tensor, k: Tensor, v: Tensor, slopes: Tensor, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """One position: T must be 1. O(D^2), whatever came before."""
    if q.shape[2] != 1:
        raise ValueError(
            f"recurrent_step takes one position, got {q.shape[2]}; use chunked for more"
        )
    dtype = _state_dtype(q)
    added = k.to(dtype).transpose(-1, -2) * v.to(dtype)  # (B, H, D, D)
    if state is not None:
        added = added + state.to(dtype) * torch.exp(-slopes.to(dtype))[:, None, None]
    return (q.to(dtype) @ added).to(q.dtype), added
