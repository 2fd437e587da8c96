"""Linear attention with a decay that depends on the data, and the gated delta rule.

    S_t = a_t S_{t-1} + k_t v_t^T
    S_t = a_t (S_{t-1} - b_t k_t (k_t^T S_{t-1})) + b_t k_t v_t^T
    o_t = q_t S_t,      a_t = exp(log_decay_t)

The first recurrence, without beta, is Mamba-2's (arXiv 2405.21060), the second, with beta, the
gated delta rule (arXiv 2412.06464, eq. 10). There are three equal forms: `reference` takes one
position after the other, `chunked` is exact in products of chunks (the delta rule's inverse is that
of arXiv 2406.06484), `recurrent_step` takes one position. All are `(q, k, v, log_decay, beta,
state=None) -> (o, state)`. With beta the keys should be unit vectors, or the recurrence may grow.

Shapes: q, k, v, o (B, H, T, D); log_decay <= 0 and beta in [0, 1], or None, (B, H, T); state (B, H,
D, D) float32 (float64 for float64 inputs), indexed [key channel, value channel]; lengths (B,) int64
as in `tar3d.gpt.linear_attention`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def _precise(q: Tensor) -> torch.dtype:
    return torch.float64 if q.dtype == torch.float64 else torch.float32


def without_padding(
    lengths: Tensor | None, k: Tensor, log_decay: Tensor, beta: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """k, log_decay and beta with padding that neither enters the state nor decays it."""
    if lengths is None:
        return k, log_decay, beta
    valid = (torch.arange(k.shape[2], device=k.device) < lengths[:, None])[:, None]  # (B, 1, T)
    return k * valid[..., None], log_decay * valid, None if beta is None else beta * valid


def recurrent_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    beta: Tensor | None,
    state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One position: T must be 1. O(D^2), whatever came before."""
    if q.shape[2] != 1:
        raise ValueError(
            f"recurrent_step takes one position, got {q.shape[2]}; use chunked for more"
        )
    dtype = _precise(q)
    output_dtype, (q, k, v) = q.dtype, (x.to(dtype) for x in (q, k, v))
    state = q.new_zeros(*q.shape[:2], q.shape[3], v.shape[3]) if state is None else state.to(dtype)
    state = state * log_decay.to(dtype).exp()[..., None]
    if beta is not None:
        v = (v - k @ state) * beta.to(dtype)[
            ..., None
        ]  # part of v that the state does not hold yet
    state = state + k.transpose(-1, -2) * v
    return (q @ state).to(output_dtype), state


def reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    beta: Tensor | None,
    state: Tensor | None = None,
    *,
    lengths: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The definition, one position after the other, that the other forms are tested against."""
    k, log_decay, beta = without_padding(lengths, k, log_decay, beta)
    outputs = []
    with torch.autocast(q.device.type, enabled=False):
        for t in range(q.shape[2]):
            at = slice(t, t + 1)
            o, state = recurrent_step(
                q[:, :, at],
                k[:, :, at],
                v[:, :, at],
                log_decay[:, :, at],
                None if beta is None else beta[:, :, at],
                state,
            )
            outputs.append(o)
    assert state is not None, "there is at least one position"
    return torch.cat(outputs, dim=2), state


def chunked(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    beta: Tensor | None,
    state: Tensor | None = None,
    *,
    lengths: Tensor | None = None,
    chunk_size: int = 64,
) -> tuple[Tensor, Tensor]:
    """Exact and O(T C + T D): quadratic inside a chunk, a carried state between chunks.

    Every exponent is <= 0. Products run in float32 with beta, whose inverse needs it, else in the
    inputs' dtype.
    """
    dtype, output_dtype = _precise(q), q.dtype
    B, H, T, D = q.shape
    C = min(chunk_size, T)
    n = -(-T // C)
    with torch.autocast(q.device.type, enabled=False):
        k, log_decay, beta = without_padding(lengths, k, log_decay, beta)
        padding = n * C - T
        if padding:
            q, k, v = (F.pad(x, (0, 0, 0, padding)) for x in (q, k, v))
            log_decay = F.pad(log_decay, (0, padding))
            beta = None if beta is None else F.pad(beta, (0, padding))
        if beta is not None:
            q, k, v, beta = (x.to(dtype) for x in (q, k, v, beta))
        q, k, v = (x.reshape(B, H, n, C, D) for x in (q, k, v))
        # From the chunk's start to each position, and (B, H, n, C, C) between positions.
        total = _running_sum(log_decay.to(dtype).reshape(B, H, n, C))
        later = torch.ones(C, C, dtype=torch.bool, device=q.device).triu(1)
        inside = (total[..., :, None] - total[..., None, :]).masked_fill(later, -torch.inf).exp()
        from_start, to_end = total.exp()[..., None], (total[..., -1:] - total).exp()[..., None]
        q_start, k_end = q * from_start.to(q.dtype), k * to_end.to(q.dtype)
        known = None
        if beta is not None:
            v, known = _delta_inverse(k, v, beta.reshape(B, H, n, C, 1), inside, from_start)
        scores = (q @ k.transpose(-1, -2)) * inside.to(q.dtype)
        state = q.new_zeros(B, H, D, D, dtype=dtype) if state is None else state.to(dtype)
        outputs = []
        for c in range(n):
            added = v[:, :, c]
            if known is not None:
                added = added - known[:, :, c] @ state
            outputs.append(q_start[:, :, c] @ state.to(q.dtype) + scores[:, :, c] @ added)
            state = state * from_start[:, :, c, -1:] + (
                k_end[:, :, c].transpose(-1, -2) @ added
            ).to(dtype)
    return torch.cat(outputs, dim=2)[:, :, :T].to(output_dtype), state


def _running_sum(x: Tensor) -> Tensor:
    """Sums over the entries of the last axis up to each; a product where bits must repeat.

    `cumsum` has no deterministic form on CUDA.
    """
    if not torch.are_deterministic_algorithms_enabled():
        return x.cumsum(-1)
    return x @ x.new_ones(x.shape[-1], x.shape[-1]).triu()


def _delta_inverse(
    k: Tensor, v: Tensor, b: Tensor, inside: Tensor, from_start: Tensor
) -> tuple[Tensor, Tensor]:
    """The values that a chunk writes into an empty state, and the keys for a carried one.

    The product of those keys with the carried state is taken off the values; (B, H, n, C, D) each.
    """
    within = (b * k @ k.transpose(-1, -2)) * inside
    unit = torch.eye(k.shape[-2], dtype=k.dtype, device=k.device) + within.tril(-1)
    sides = torch.cat([b * v, b * k * from_start], dim=-1)
    solved = torch.linalg.solve_triangular(unit, sides, upper=False, unitriangular=True)
    written, known = solved.split(k.shape[-1], dim=-1)
    return written, known
