"""The five operations of `decode_ops` as Triton kernels: same names, arguments and results, one
kernel each (full_attend: two).

Decoding a few rows is a matter of bytes and of launches. Each kernel reads its weights or its cache
once and does everything else on the way; nothing is read back to the host and grids follow from
shapes alone, so that a CUDA graph can hold them. The least that each must move, in bytes, with w
and a the sizes of a weight and of an activation (2 and 2 in bfloat16):

    | operation     | reads and writes                     | GPT-L, bfloat16, 2 rows                       |
    |---------------|--------------------------------------|-----------------------------------------------|
    | norm_linear   | w N D + 4 D (B + 1) + a B N          | 8.4 MB (q, k, v, gate), 6.3 MB (q, k, v)      |
    | linear_attend | 8 B H d^2 + 5 a B D (no gate: 4)     | 1.1 MB                                        |
    | full_attend   | 2 a B D filled slots + 4 a B D       | 8.2 kB a slot: 26.8 MB at 3,269               |
    | linear_add    | w N D + a B D + 8 B N                | 2.1 MB (o), 5.6 MB (down)                     |
    | norm_swiglu   | 2 w F D + 4 D (B + 1) + a B F        | 11.3 MB                                       |

So a linear layer of GPT-L is 28.5 MB, and a full one 25.3 MB and its cache. Activations come to
every program from L2, for small blocks as many bytes as weights: what BLOCK_N weighs against the
number of programs. Weights in float32 are the exception to "once": from 5 rows on they are read
again for every 4 rows, as only TF32 would be fast on tensor cores and it is not float32.

Sums are taken in an order that shapes and `slot` decide: the same inputs give the same bits.
Activations are rounded where `decode_ops` hands them on; some of what it rounds inside an operation
stays float32 here.

Not yet run on a GPU: what is known is that they agree with `decode_ops` in Triton's interpreter and
compile for sm_90.

Letters: B rows, D width, N outputs, H heads, d head dimension, F width of the MLP, C slots of a
cache.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tar3d.gpt.norm import NORM_EPS

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MOST_HEAD_DIM = 128  # a state of 128 x 128 still fits the registers of one program

# Up to MOST_ROWS_SUMMED rows are multiplied out and summed by threads; for more, tensor cores take
# 16 rows or more at once. A program of 8 weight rows gives 1,024 outputs one program for each of
# 132 SMs, and lets all its loads be on their way at once.
MOST_ROWS_SUMMED, SUM_OUTPUTS, SUM_WARPS = 4, 8, 4
# Tensor cores: their smallest tile where outputs are few, a larger one, which reads x less often,
# from DOT_MANY outputs on.
DOT_WIDTH, DOT_WARPS, DOT_STAGES, DOT_MOST_ROWS = 128, 4, 4, 64
DOT_OUTPUTS, DOT_OUTPUTS_MANY, DOT_MANY = 16, 32, 2048
# Attention: slots that a program takes at once, and the number of programs to aim at: 132 SMs hold
# 3 each of 150 registers. Where that is not enough for the heads, a few splits keep the last
# programs from running alone.
ATTEND_SLOTS, ATTEND_PROGRAMS, ATTEND_LEAST_SPLITS, ATTEND_STAGES = 64, 384, 4, 3
OPTIONS = {
    "enable_fp_fusion": True
}  # a product and its sum as one instruction; no longer Triton's default from 3.10 on


def norm_linear(x: Tensor, gain: Tensor, weight: Tensor) -> Tensor:
    """RMS norm of x (B, D) float32 with `gain` (D,), times weight (N, D) -> (B, N)."""
    out = torch.empty(len(x), len(weight), dtype=weight.dtype, device=weight.device)
    return _linear(x, gain, weight, None, out)


def linear_add(x: Tensor, weight: Tensor, residual: Tensor) -> Tensor:
    """residual (B, N) float32 plus x (B, D) times weight (N, D) -> (B, N) float32."""
    return _linear(x, None, weight, residual, torch.empty_like(residual))


def norm_swiglu(x: Tensor, gain: Tensor, weight: Tensor) -> Tensor:
    """norm_linear with weight (2 F, D), gate rows first -> silu(gate) up (B, F)."""
    out = torch.empty(len(x), len(weight) // 2, dtype=weight.dtype, device=weight.device)
    return _linear(x, gain, weight, None, out, swiglu=True)


def linear_attend(
    projected: Tensor,
    cos: Tensor,
    sin: Tensor,
    qk_gain: Tensor,
    decay: Tensor,
    o_gain: Tensor,
    state: Tensor,
) -> Tensor:
    """Lightning attention of one position: q, k, v and the gate, if there is one, as `projected`
    (B, 3 D or 4 D) -> (B, D).

    cos, sin (d,); qk_gain (2, d); decay (H,), exp(-slope) of each head; o_gain (d,); state (B, H,
    d, d) float32, updated.
    """
    B, H, d, _ = state.shape
    _check_heads(projected, d, B, (3 * H * d, 4 * H * d))
    _check(projected, cos, sin, qk_gain, decay, o_gain, state)
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


def full_attend(
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
    _check_heads(projected, d, B, (3 * H * d,))
    _check(projected, cos, sin, qk_gain, keys, values, slot)
    if not keys.dtype == values.dtype == projected.dtype:
        raise ValueError(
            f"keys {keys.dtype}, values {values.dtype} and projected {projected.dtype} must have one dtype"
        )
    if valid is not None:
        if valid.dtype != torch.bool or valid.shape not in ((B, 1, 1, C), (1, 1, 1, C)):
            raise ValueError(
                f"valid must be ({B} or 1, 1, 1, {C}) bool, got {tuple(valid.shape)} {valid.dtype}"
            )
        _check(valid)
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


def _linear(
    x: Tensor,
    gain: Tensor | None,
    weight: Tensor,
    residual: Tensor | None,
    out: Tensor,
    *,
    swiglu: bool = False,
) -> Tensor:
    _check(*(tensor for tensor in (x, gain, weight, residual) if tensor is not None))
    (B, D), N = x.shape, out.shape[1]
    if weight.shape != (N * (1 + swiglu), D) or len(out) != B:
        raise ValueError(
            f"x {tuple(x.shape)}, weight {tuple(weight.shape)} and result {tuple(out.shape)} do not belong together"
        )
    vector = 16 // max(
        x.element_size(), weight.element_size()
    )  # columns of the wider one in a load of 16 bytes
    dot = B > MOST_ROWS_SUMMED and weight.dtype != torch.float32
    if dot:
        rows, outputs = (
            min(DOT_MOST_ROWS, max(16, triton.next_power_of_2(B))),
            DOT_OUTPUTS if N < DOT_MANY else DOT_OUTPUTS_MANY,
        )
        width, warps = DOT_WIDTH, DOT_WARPS
    else:
        rows, warps, width = (
            min(MOST_ROWS_SUMMED, triton.next_power_of_2(B)),
            SUM_WARPS,
            32 * SUM_WARPS * vector,
        )
        outputs = SUM_OUTPUTS // 2 if swiglu or rows == MOST_ROWS_SUMMED else SUM_OUTPUTS
    _linear_kernel[triton.cdiv(B, rows), triton.cdiv(N, outputs)](
        x,
        gain,
        weight,
        residual,
        out,
        B,
        N,
        WIDTH=D,
        SWIGLU=swiglu,
        DOT=dot,
        EPS=NORM_EPS,
        BLOCK_B=rows,
        BLOCK_N=outputs,
        BLOCK_K=width,
        VECTOR=vector,
        STAGES=DOT_STAGES,
        num_warps=warps,
        **OPTIONS,
    )
    return out


@triton.jit
def _linear_kernel(
    x_ptr,
    gain_ptr,
    weight_ptr,
    residual_ptr,
    out_ptr,
    num_rows,
    num_outputs,
    WIDTH: tl.constexpr,
    SWIGLU: tl.constexpr,
    DOT: tl.constexpr,
    EPS: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    VECTOR: tl.constexpr,
    STAGES: tl.constexpr,
):
    """BLOCK_N outputs of BLOCK_B rows: x, normed if there is a gain, times the weights; with SWIGLU
    both weights of an output."""
    first_row = tl.program_id(0) * BLOCK_B
    output = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    row = first_row + tl.arange(0, BLOCK_B)
    place = output[:, None] + row[None, :] * num_outputs
    inside = (output < num_outputs)[:, None] & (row < num_rows)[None, :]
    if residual_ptr is not None:
        residual = tl.load(residual_ptr + place, mask=inside, other=0.0)
    # Instead of what lies outside the last one is read, and not stored.
    weight_rows = weight_ptr + tl.minimum(output, num_outputs - 1) * WIDTH
    up_rows = weight_rows + num_outputs * WIDTH
    column = tl.arange(0, BLOCK_K)
    if DOT:  # weights (N, K) times x (K, B): the weights are the side that tensor cores take 16 of
        x_rows = x_ptr + tl.minimum(row, num_rows - 1) * WIDTH
        dtype = weight_ptr.dtype.element_ty
        if gain_ptr is not None:
            square = tl.zeros((BLOCK_K, BLOCK_B), tl.float32)
            for start in tl.static_range(0, WIDTH, BLOCK_K):
                k = start + column
                x = tl.load(x_rows[None, :] + k[:, None], mask=(k < WIDTH)[:, None], other=0.0).to(
                    tl.float32
                )
                square += x * x
            scale = tl.rsqrt(tl.sum(square, 0) / WIDTH + EPS)
        sums = tl.zeros((BLOCK_N, BLOCK_B), tl.float32)
        up_sums = tl.zeros((BLOCK_N, BLOCK_B), tl.float32)
        for start in tl.range(0, WIDTH, BLOCK_K, num_stages=STAGES):
            k = start + column
            part = tl.load(x_rows[None, :] + k[:, None], mask=(k < WIDTH)[:, None], other=0.0)
            if gain_ptr is not None:
                gain = tl.load(gain_ptr + k, mask=k < WIDTH, other=0.0).to(tl.float32)
                part = part.to(tl.float32) * scale[None, :] * gain[:, None]
            part = part.to(dtype)
            weight = tl.load(
                weight_rows[:, None] + k[None, :], mask=(k < WIDTH)[None, :], other=0.0
            )
            sums = tl.dot(weight, part, sums)
            if SWIGLU:
                up = tl.load(up_rows[:, None] + k[None, :], mask=(k < WIDTH)[None, :], other=0.0)
                up_sums = tl.dot(up, part, up_sums)
    else:
        products, up_products, squares = (), (), ()  # a tensor for each row
        for _ in tl.static_range(BLOCK_B):
            products += (tl.zeros((BLOCK_N, BLOCK_K), tl.float32),)
            up_products += (tl.zeros((BLOCK_N, BLOCK_K), tl.float32),)
            squares += (tl.zeros((1, BLOCK_K), tl.float32),)
        # Unrolled, so that all loads come first. As wide a load of weights as of x lays both out
        # alike: otherwise the weights would go through shared memory, one block after the other.
        for start in tl.static_range(0, WIDTH, BLOCK_K):
            k = (start + column)[None, :]
            weight = tl.load(
                tl.max_contiguous(weight_rows[:, None] + k, (1, VECTOR)), mask=k < WIDTH, other=0.0
            )
            if SWIGLU:
                up = tl.load(
                    tl.max_contiguous(up_rows[:, None] + k, (1, VECTOR)), mask=k < WIDTH, other=0.0
                )
            xs = ()
            for r in tl.static_range(BLOCK_B):
                x_row = x_ptr + tl.minimum(first_row + r, num_rows - 1) * WIDTH
                xs += (tl.load(x_row + k, mask=k < WIDTH, other=0.0).to(tl.float32),)
            if gain_ptr is not None:
                gain = tl.load(gain_ptr + k, mask=k < WIDTH, other=0.0).to(tl.float32)
            for r in tl.static_range(BLOCK_B):  # takes the first of each tuple and puts it last
                x = xs[r]
                if gain_ptr is not None:
                    squares = squares[1:] + (squares[0] + x * x,)
                    x *= gain
                products = products[1:] + (products[0] + weight.to(tl.float32) * x,)
                if SWIGLU:
                    up_products = up_products[1:] + (up_products[0] + up.to(tl.float32) * x,)
        sums, up_sums = _sums(products, BLOCK_B), _sums(up_products, BLOCK_B)
        if gain_ptr is not None:  # the norm is a factor of a row: no weight waits for it
            scale = tl.rsqrt(_sums(squares, BLOCK_B) / WIDTH + EPS)
            sums, up_sums = sums * scale, up_sums * scale
    if SWIGLU:
        sums = sums * tl.sigmoid(sums) * up_sums
    if residual_ptr is not None:
        sums += residual
    tl.store(out_ptr + place, sums.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _sums(parts, COUNT: tl.constexpr):
    """Sums over the last axis of COUNT tensors (N, K) -> (N, COUNT), all in one exchange between
    threads."""
    if COUNT == 1:
        sums = tl.sum(parts[0], 1)[:, None]
    elif COUNT == 2:
        sums = tl.sum(tl.join(parts[0], parts[1]), 1)
    else:
        tl.static_assert(COUNT == 4)
        pairs = tl.join(tl.join(parts[0], parts[2]), tl.join(parts[1], parts[3]))  # (N, K, 2, 2)
        sums = tl.reshape(tl.sum(pairs, 1), (parts[0].shape[0], 4))
    return sums


@triton.jit
def _head(x_ptr, gain_ptr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """A head's q or k and its gain (BLOCK_D,) float32, zero from HEAD_DIM on, then both once more
    with the halves exchanged: a channel is rotated with one of the other half, and loading it again
    is cheaper than passing it between threads."""
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
    """What `_head` loaded, normed, mapped and rotated as by `rotate` (BLOCK_D,)."""
    x, gain, y, other_gain = head
    scale = tl.rsqrt(tl.sum(x * x, 0) / HEAD_DIM + EPS)
    x, y = x * scale * gain, y * scale * other_gain
    if SILU:
        x, y = x * tl.sigmoid(x), y * tl.sigmoid(y)
    return x * cos + y * sin


@triton.jit
def _linear_attend_kernel(
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
    """One head of one row: a program holds its whole state. All loads come first: none is moved
    over an exchange of threads."""
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
def _attend_kernel(
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
    """One head of one row over every SPLITS-th block of slots: its weighted sum of values, highest
    score and sum of weights.

    The program whose block holds `slot` writes k and v there and takes its own; nobody reads that
    slot of the caches.
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
def _combine_kernel(
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
    """What the splits of one head of one row come to together; 0 where no slot is valid."""
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


# Under TRITON_INTERPRET=1 kernels are run by Python, on the CPU.
_INTERPRETED = not isinstance(_linear_kernel, triton.JITFunction)


def _check(*tensors: Tensor) -> None:
    for tensor in tensors:
        if tensor.dtype not in (*DTYPES, torch.int64, torch.bool):
            raise ValueError(
                f"decoding with Triton takes float32, bfloat16 and float16, got {tensor.dtype}"
            )
        if not tensor.is_contiguous():
            shape, strides = tuple(tensor.shape), tensor.stride()
            raise ValueError(
                f"decoding with Triton takes contiguous tensors, got {shape} with strides {strides}"
            )
        if not (tensor.is_cuda or _INTERPRETED):
            raise ValueError(
                f"decoding with Triton needs tensors on a CUDA device, got one on {tensor.device}"
            )


def _check_heads(projected: Tensor, head_dim: int, rows: int, widths: tuple[int, ...]) -> None:
    if head_dim % 2 or head_dim > MOST_HEAD_DIM:
        raise ValueError(
            f"decoding with Triton takes even head dimensions up to {MOST_HEAD_DIM}, got {head_dim}"
        )
    if len(projected) != rows or projected.shape[1] not in widths:
        raise ValueError(
            f"projected must be ({rows}, {' or '.join(map(str, widths))}), got {tuple(projected.shape)}"
        )
