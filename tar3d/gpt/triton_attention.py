"""The attention of one position as Triton kernels, for `tar3d.gpt.decode_triton`.

Letters: B rows, D width, H heads, d head dimension, C slots of a cache.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tar3d.gpt.norm import NORM_EPS
from tar3d.gpt.triton_inputs import OPTIONS, check, check_heads

# Slots that a program takes at once, and the number of programs to aim at: 132 SMs hold 3 each of
# 150 registers. Where that is not enough for the heads, a few splits keep the last programs from
# running alone.
ATTEND_SLOTS, ATTEND_PROGRAMS, ATTEND_LEAST_SPLITS, ATTEND_STAGES = 64, 384, 4, 3


def linear_attend(
    projected: Tensor,
    cos: Tensor,
    sin: Tensor,
    qk_gain: Tensor,
    decay: Tensor,
    o_gain: Tensor,
    state: Tensor,
) -> Tensor:
    """Lightning attention of one position: `projected` (B, 3 D or 4 D) -> (B, D).

    `projected` holds q, k, v and the gate, if there is one. cos, sin (d,); qk_gain (2, d); decay
    (H,), exp(-slope) of each head; o_gain (d,); state (B, H, d, d) float32, updated.
    """
    B, H, d, _ = state.shape
    check_heads(projected, d, B, (3 * H * d, 4 * H * d))
    check(projected, cos, sin, qk_gain, decay, o_gain, state)
    if state.dtype != torch.float32:
        raise ValueError(f"the state must be float32, got {state.dtype}")
    out = torch.empty(B, H * d, dtype=projected.dtype, device=projected.device)
    block = triton.next_power_of_2(d)
    _linear_attend_kernel[B * H,](
        projected,
        cos,
        sin,
        qk_gain,
        decay,
        o_gain,
        state,
        out,
        H,
        HEAD_DIM=d,
        BLOCK_D=block,
        GATE=projected.shape[1] == 4 * H * d,
        EPS=NORM_EPS,
        num_warps=4 if block <= 64 else 8,
        **OPTIONS,
    )
    return out


# longer than 60 lines: two launches with all their arguments
def full_attend(  # noqa: PLR0913  one argument for each tensor of the kernel
    projected: Tensor,
    cos: Tensor,
    sin: Tensor,
    qk_gain: Tensor,
    keys: Tensor,
    values: Tensor,
    slot: Tensor,
    valid: Tensor | None,
    window: int,
) -> Tensor:
    """Softmax attention of one position: q, k, v as `projected` (B, 3 D) -> (B, D).

    k and v go to `slot` (1,) int64 of keys, values (B, H, C, d); attention sees the slots up to it,
    of those the ones in `valid` (B or 1, 1, 1, C) bool, None if all of them hold something. Unlike
    in `decode_ops` those behind `slot` are never read, whatever `valid` and `window` say: `window`
    (more than `slot`) only bounds the number of programs.
    """
    B, H, C, d = keys.shape
    check_heads(projected, d, B, (3 * H * d,))
    check(projected, cos, sin, qk_gain, keys, values, slot)
    if not keys.dtype == values.dtype == projected.dtype:
        raise ValueError(
            f"keys {keys.dtype}, values {values.dtype} and projected {projected.dtype} "
            "must have one dtype"
        )
    if valid is not None:
        if valid.dtype != torch.bool or valid.shape not in ((B, 1, 1, C), (1, 1, 1, C)):
            raise ValueError(
                f"valid must be ({B} or 1, 1, 1, {C}) bool, got {tuple(valid.shape)} {valid.dtype}"
            )
        check(valid)
    splits = min(
        triton.cdiv(window, ATTEND_SLOTS), max(ATTEND_LEAST_SPLITS, ATTEND_PROGRAMS // (B * H))
    )
    partial = torch.empty(B * H, splits, d, dtype=torch.float32, device=keys.device)
    scores = torch.empty(
        B * H, splits, 2, dtype=torch.float32, device=keys.device
    )  # the highest, sum of the weights
    out = torch.empty(B, H * d, dtype=keys.dtype, device=keys.device)
    block = triton.next_power_of_2(d)
    sizes = {"HEAD_DIM": d, "SPLITS": splits, "BLOCK_D": block, "BLOCK_S": ATTEND_SLOTS}
    stride = 0 if valid is None or len(valid) == 1 else C
    _attend_kernel[B * H, splits](
        projected,
        cos,
        sin,
        qk_gain,
        keys,
        values,
        slot,
        valid,
        stride,
        partial,
        scores,
        H,
        C,
        EPS=NORM_EPS,
        STAGES=ATTEND_STAGES,
        **sizes,
        num_warps=4 if block <= 64 else 8,
        **OPTIONS,
    )
    _combine_kernel[B * H,](
        partial,
        scores,
        slot,
        out,
        BLOCK_SPLITS=triton.next_power_of_2(splits),
        **sizes,
        num_warps=1,
        **OPTIONS,
    )
    return out


@triton.jit
def _head(x_ptr, gain_ptr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """A head's q or k and its gain (BLOCK_D,) float32, then both once more with halves exchanged.

    They are zero from HEAD_DIM on. A channel is rotated with one of the other half, and loading it
    again is cheaper than passing it between threads.
    """
    c = tl.arange(0, BLOCK_D)
    inside = c < HEAD_DIM
    other = tl.where(c < HEAD_DIM // 2, c + HEAD_DIM // 2, c - HEAD_DIM // 2)
    x, gain = (
        tl.load(x_ptr + c, mask=inside, other=0.0),
        tl.load(gain_ptr + c, mask=inside, other=0.0),
    )
    y, other_gain = (
        tl.load(x_ptr + other, mask=inside, other=0.0),
        tl.load(gain_ptr + other, mask=inside, other=0.0),
    )
    return x.to(tl.float32), gain.to(tl.float32), y.to(tl.float32), other_gain.to(tl.float32)


@triton.jit
def _rotated(head, cos, sin, HEAD_DIM: tl.constexpr, EPS: tl.constexpr, SILU: tl.constexpr):
    """A head from `_head`, normalised, mapped and rotated as by `rotate` (BLOCK_D,)."""
    x, gain, y, other_gain = head
    scale = tl.rsqrt(tl.sum(x * x, 0) / HEAD_DIM + EPS)
    x, y = x * scale * gain, y * scale * other_gain
    if SILU:
        x, y = x * tl.sigmoid(x), y * tl.sigmoid(y)
    return x * cos + y * sin


@triton.jit
def _linear_attend_kernel(  # noqa: PLR0913  arguments of a launch
    projected_ptr,
    cos_ptr,
    sin_ptr,
    gain_ptr,
    decay_ptr,
    o_gain_ptr,
    state_ptr,
    out_ptr,
    num_heads,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    GATE: tl.constexpr,
    EPS: tl.constexpr,
):
    """One head of one row: a program holds its whole state.

    All loads come first: none is moved over an exchange of threads.
    """
    pair = tl.program_id(0)
    row, head = pair // num_heads, pair % num_heads
    width = num_heads * HEAD_DIM
    c = tl.arange(0, BLOCK_D)
    inside = c < HEAD_DIM
    tile = inside[:, None] & inside[None, :]
    state_block = (
        state_ptr + pair.to(tl.int64) * HEAD_DIM * HEAD_DIM + c[:, None] * HEAD_DIM + c[None, :]
    )
    here = projected_ptr + row * width * (4 if GATE else 3) + head * HEAD_DIM
    state = tl.load(state_block, mask=tile, other=0.0)
    q_head, k_head = (
        _head(here, gain_ptr, HEAD_DIM, BLOCK_D),
        _head(here + width, gain_ptr + HEAD_DIM, HEAD_DIM, BLOCK_D),
    )
    cos = tl.load(cos_ptr + c, mask=inside, other=0.0).to(tl.float32)
    sin = tl.load(sin_ptr + c, mask=inside, other=0.0).to(tl.float32)
    v = tl.load(here + 2 * width + c, mask=inside, other=0.0).to(tl.float32)
    decay = tl.load(decay_ptr + head).to(tl.float32)
    o_gain = tl.load(o_gain_ptr + c, mask=inside, other=0.0).to(tl.float32)
    if GATE:
        gate = tl.load(here + 3 * width + c, mask=inside, other=0.0).to(tl.float32)
    q, k = (
        _rotated(q_head, cos, sin, HEAD_DIM, EPS, True),
        _rotated(k_head, cos, sin, HEAD_DIM, EPS, True),
    )
    state = state * decay + k[:, None] * v[None, :]
    tl.store(state_block, state, mask=tile)
    o = tl.sum(q[:, None] * state, 0)
    o *= tl.rsqrt(tl.sum(o * o, 0) / HEAD_DIM + EPS) * o_gain
    if GATE:
        o *= tl.sigmoid(gate)
    tl.store(
        out_ptr + row * width + head * HEAD_DIM + c, o.to(out_ptr.dtype.element_ty), mask=inside
    )


@triton.jit
# longer than 60 lines: a kernel is one function
def _attend_kernel(  # noqa: PLR0913  arguments of a launch
    projected_ptr,
    cos_ptr,
    sin_ptr,
    gain_ptr,
    keys_ptr,
    values_ptr,
    slot_ptr,
    valid_ptr,
    valid_stride,
    partial_ptr,
    scores_ptr,
    num_heads,
    capacity,
    HEAD_DIM: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_S: tl.constexpr,
    EPS: tl.constexpr,
    STAGES: tl.constexpr,
):
    """One head of one row over every SPLITS-th block of slots.

    Stores its weighted sum of values, highest score and sum of weights. The program whose block
    holds `slot` writes k and v there and takes its own; nobody reads that slot of the caches.
    """
    pair, split = tl.program_id(0), tl.program_id(1)
    row, head = pair // num_heads, pair % num_heads
    width = num_heads * HEAD_DIM
    c = tl.arange(0, BLOCK_D)
    inside = c < HEAD_DIM
    here = projected_ptr + row * width * 3 + head * HEAD_DIM
    slot = tl.load(slot_ptr).to(tl.int32)
    q_head = _head(here, gain_ptr, HEAD_DIM, BLOCK_D)
    cos = tl.load(cos_ptr + c, mask=inside, other=0.0).to(tl.float32)
    sin = tl.load(sin_ptr + c, mask=inside, other=0.0).to(tl.float32)
    if split * BLOCK_S > slot:  # _combine_kernel knows which those are
        return
    dtype = keys_ptr.dtype.element_ty
    keys_ptr += pair.to(tl.int64) * capacity * HEAD_DIM
    values_ptr += pair.to(tl.int64) * capacity * HEAD_DIM
    q = _rotated(q_head, cos, sin, HEAD_DIM, EPS, False).to(dtype).to(tl.float32)
    q *= 1.4426950408889634 / tl.sqrt(HEAD_DIM * 1.0)  # to the base of exp2
    # Each of BLOCK_S lanes keeps its own highest score and sums: nothing is exchanged between
    # threads on the way.
    lane = tl.arange(0, BLOCK_S)
    highest = tl.full((BLOCK_S,), float("-inf"), tl.float32)
    weights = tl.zeros((BLOCK_S,), tl.float32)
    sums = tl.zeros((BLOCK_S, BLOCK_D), tl.float32)
    for start in tl.range(split * BLOCK_S, slot, SPLITS * BLOCK_S, num_stages=STAGES):
        s = start + lane
        seen = s < slot
        tile = seen[:, None] & inside[None, :]
        if valid_ptr is not None:
            seen = seen & (tl.load(valid_ptr + row * valid_stride + s, mask=seen, other=0) != 0)
        k = tl.load(keys_ptr + s[:, None] * HEAD_DIM + c[None, :], mask=tile, other=0.0).to(
            tl.float32
        )
        v = tl.load(values_ptr + s[:, None] * HEAD_DIM + c[None, :], mask=tile, other=0.0).to(
            tl.float32
        )
        score = tl.where(seen, tl.sum(k * q[None, :], 1), float("-inf"))
        higher = tl.maximum(highest, score)
        base = tl.where(higher == float("-inf"), 0.0, higher)  # -inf - -inf is NaN
        weight, fade = tl.exp2(score - base), tl.exp2(highest - base)
        weights = weights * fade + weight
        sums = sums * fade[:, None] + weight[:, None] * v
        highest = higher
    own_score = float("-inf")
    own_v = tl.zeros((BLOCK_D,), tl.float32)
    if (slot // BLOCK_S) % SPLITS == split:
        k_head = _head(here + width, gain_ptr + HEAD_DIM, HEAD_DIM, BLOCK_D)
        k = _rotated(k_head, cos, sin, HEAD_DIM, EPS, False).to(dtype)
        v = tl.load(here + 2 * width + c, mask=inside, other=0.0)
        tl.store(keys_ptr + slot * HEAD_DIM + c, k, mask=inside)
        tl.store(values_ptr + slot * HEAD_DIM + c, v, mask=inside)
        own_score = tl.sum(q * k.to(tl.float32), 0)
        if valid_ptr is not None:
            own_score = tl.where(
                tl.load(valid_ptr + row * valid_stride + slot) != 0, own_score, float("-inf")
            )
        own_v = v.to(tl.float32)
    top = tl.maximum(tl.max(highest, 0), own_score)
    base = tl.where(top == float("-inf"), 0.0, top)
    fade, own_weight = tl.exp2(highest - base), tl.exp2(own_score - base)
    place = pair * SPLITS + split
    tl.store(
        partial_ptr + place * HEAD_DIM + c,
        tl.sum(sums * fade[:, None], 0) + own_weight * own_v,
        mask=inside,
    )
    tl.store(scores_ptr + place * 2, top)
    tl.store(scores_ptr + place * 2 + 1, tl.sum(weights * fade, 0) + own_weight)


@triton.jit
def _combine_kernel(  # noqa: PLR0913  arguments of a launch
    partial_ptr,
    scores_ptr,
    slot_ptr,
    out_ptr,
    HEAD_DIM: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_SPLITS: tl.constexpr,
):
    """The splits of one head of one row, combined; 0 where no slot is valid."""
    pair = tl.program_id(0)
    c, split = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_SPLITS)
    inside = c < HEAD_DIM
    written = (split < SPLITS) & (split * BLOCK_S <= tl.load(slot_ptr).to(tl.int32))
    place = pair * SPLITS + split
    highest = tl.load(scores_ptr + place * 2, mask=written, other=float("-inf"))
    weights = tl.load(scores_ptr + place * 2 + 1, mask=written, other=0.0)
    sums = tl.load(
        partial_ptr + place[:, None] * HEAD_DIM + c[None, :],
        mask=written[:, None] & inside[None, :],
        other=0.0,
    )
    top = tl.max(highest, 0)
    fade = tl.exp2(highest - tl.where(top == float("-inf"), 0.0, top))
    total = tl.sum(weights * fade, 0)
    o = tl.sum(sums * fade[:, None], 0) / tl.where(total == 0.0, 1.0, total)
    tl.store(out_ptr + pair * HEAD_DIM + c, o.to(out_ptr.dtype.element_ty), mask=inside)
