"""The six operations of `decode_ops` as Triton kernels.

Names, arguments and results are the same; each is one kernel (full_attend: two). Decoding a few
rows is a matter of bytes and of launches. Each kernel reads its weights or its cache once and does
everything else on the way; nothing is read back to the host and grids follow from shapes alone, so
that a CUDA graph can hold them. The least that each must move, in bytes, with w and a the sizes of
a weight and of an activation (2 and 2 in bfloat16):

    | operation     | reads and writes                 | GPT-L, bfloat16, 2 rows                 |
    |---------------|----------------------------------|-----------------------------------------|
    | norm_linear   | w N D + 4 D (B + 1) + a B N      | 8.4 MB (q, k, v, gate), 6.3 MB (q, k, v)|
    | linear_attend | 8 B H d^2 + 5 a B D (no gate: 4) | 1.1 MB                                  |
    | full_attend   | 2 a B D filled slots + 4 a B D   | 8.2 kB a slot: 26.8 MB at 3,269         |
    | linear_add    | w N D + a B D + 8 B N            | 2.1 MB (o), 5.6 MB (down)               |
    | norm_swiglu   | 2 w F D + 4 D (B + 1) + a B F    | 11.3 MB                                 |
    | draw_token    | 4 B V                            | 0.07 MB (16,384 codes, a row a shape)   |

So a linear layer of GPT-L is 28.5 MB, and a full one 25.3 MB and its cache. Activations come to
every program from L2, for small blocks as many bytes as weights: what BLOCK_N weighs against the
number of programs. Weights in float32 are the exception to "once": from 5 rows on they are read
again for every 4 rows, as only TF32 would be fast on tensor cores and it is not float32.

Sums are taken in an order that shapes and `slot` decide: the same inputs give the same bits.
Activations are rounded where `decode_ops` hands them on; some of what it rounds inside an operation
stays float32 here.

Not yet run on a GPU: what is known is that they agree with `decode_ops` in Triton's interpreter,
and that compiled for sm_75 to sm_120 they fit the shared memory there.

Letters: B rows, D width, N outputs, H heads, d head dimension, F width of the MLP, C slots of a
cache, V codebook size.
"""

# Triton's tuples of tensors grow in loops, which Python's types do not know.
# mypy: disable-error-code="assignment, misc"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tar3d.gpt.norm import NORM_EPS
from tar3d.gpt.triton_attention import full_attend, linear_attend
from tar3d.gpt.triton_inputs import OPTIONS, check, shared_memory
from tar3d.gpt.triton_sampling import draw_token

__all__ = [
    "draw_token",
    "full_attend",
    "linear_add",
    "linear_attend",
    "norm_linear",
    "norm_swiglu",
]

# Up to MOST_ROWS_SUMMED rows are multiplied out and summed by threads; for more, tensor cores take
# 16 rows or more at once. A program of 8 weight rows gives 1,024 outputs one program for each of
# 132 SMs, and lets all its loads be on their way at once.
MOST_ROWS_SUMMED, SUM_OUTPUTS, SUM_WARPS = 4, 8, 4
# Tensor cores: their smallest tile where outputs are few, a larger one, which reads x less often,
# from DOT_MANY outputs on.
DOT_WIDTH, DOT_WARPS, DOT_MOST_STAGES, DOT_MOST_ROWS = 128, 4, 4, 64
DOT_OUTPUTS, DOT_OUTPUTS_MANY, DOT_MANY = 16, 32, 2048


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


def _linear(
    x: Tensor,
    gain: Tensor | None,
    weight: Tensor,
    residual: Tensor | None,
    out: Tensor,
    *,
    swiglu: bool = False,
) -> Tensor:
    check(*(tensor for tensor in (x, gain, weight, residual) if tensor is not None))
    (B, D), N = x.shape, out.shape[1]
    if weight.shape != (N * (1 + swiglu), D) or len(out) != B:
        raise ValueError(
            f"x {tuple(x.shape)}, weight {tuple(weight.shape)} and result {tuple(out.shape)} "
            "do not belong together"
        )
    sizes = _block_sizes(x, weight, N, normed=gain is not None, swiglu=swiglu)
    _linear_kernel[triton.cdiv(B, sizes["BLOCK_B"]), triton.cdiv(N, sizes["BLOCK_N"])](
        x,
        gain,
        weight,
        residual,
        out,
        B,
        N,
        WIDTH=D,
        SWIGLU=swiglu,
        EPS=NORM_EPS,
        **sizes,
        **OPTIONS,
    )
    return out


def _block_sizes(
    x: Tensor, weight: Tensor, num_outputs: int, *, normed: bool, swiglu: bool
) -> dict[str, int]:
    """Sizes of a program of `_linear_kernel`, and how it multiplies, by its arguments' names."""
    # Columns of the wider of the two in a load of 16 bytes.
    vector = 16 // max(x.element_size(), weight.element_size())
    rows = triton.next_power_of_2(len(x))
    if len(x) > MOST_ROWS_SUMMED and weight.dtype != torch.float32:
        rows = min(DOT_MOST_ROWS, max(16, rows))
        outputs = DOT_OUTPUTS if num_outputs < DOT_MANY else DOT_OUTPUTS_MANY
        width, warps = DOT_WIDTH, DOT_WARPS
        stages = dot_stages(
            rows * x.element_size(),
            outputs * (1 + swiglu) * weight.element_size(),
            normed=normed,
            limit=shared_memory(weight.device),
        )
    else:
        rows = min(MOST_ROWS_SUMMED, rows)
        outputs = SUM_OUTPUTS // 2 if swiglu or rows == MOST_ROWS_SUMMED else SUM_OUTPUTS
        width, warps = 32 * SUM_WARPS * vector, SUM_WARPS
        stages = 0  # its loop is unrolled
    return {
        "DOT": stages > 0,
        "BLOCK_B": rows,
        "BLOCK_N": outputs,
        "BLOCK_K": width,
        "VECTOR": vector,
        "STAGES": stages,
        "num_warps": warps,
    }


def dot_stages(x_column: int, weight_column: int, *, normed: bool, limit: int) -> int:
    """Number of stages of the tensor-core loop: blocks of its inputs that are in flight at once.

    `x_column` and `weight_column` are the bytes of one column of a block's activations and of its
    weights, `limit` the shared memory of a program in bytes. With n stages, n - 1 blocks wait in
    shared memory, beside the 16-bit activations that are on their way to the tensor cores.
    """
    gain = 4 if normed else 0
    block = DOT_WIDTH * (x_column + weight_column + gain)
    operand = DOT_WIDTH * x_column // (2 if normed else 1)
    fitting = 1 + (limit - operand) // block
    return max(1, min(DOT_MOST_STAGES, fitting))


@triton.jit
# longer than 60 lines: a kernel is one function
def _linear_kernel(  # noqa: PLR0913  arguments of a launch
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
    """BLOCK_N outputs of BLOCK_B rows: x, normed if there is a gain, times the weights.

    With SWIGLU an output has two weights.
    """
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
    """Sums over the last axis of COUNT tensors (N, K) -> (N, COUNT), in one exchange of threads."""
    if COUNT == 1:
        sums = tl.sum(parts[0], 1)[:, None]
    elif COUNT == 2:
        sums = tl.sum(tl.join(parts[0], parts[1]), 1)
    else:
        tl.static_assert(COUNT == 4)
        pairs = tl.join(tl.join(parts[0], parts[2]), tl.join(parts[1], parts[3]))  # (N, K, 2, 2)
        sums = tl.reshape(tl.sum(pairs, 1), (parts[0].shape[0], 4))
    return sums
