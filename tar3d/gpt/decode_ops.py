"""One new position of every row, as six operations in plain PyTorch.

    norm_linear, linear_attend or full_attend, linear_add, norm_swiglu, linear_add        is a layer
    linear_add, draw_token                                                  the head, and its tokens

They read nothing back to the host and change caches in place, so that a CUDA graph can hold them;
`decode_triton` has the same six as one kernel each. Activations between operations are in the
weights' dtype; the residual stream and everything inside an operation are float32.
`tar3d.gpt.model.GPT.decode` is what both are tested against.

Letters: B rows, D width, N outputs, H heads, d head dimension, F width of the MLP, C slots of a
cache, V codebook size, T tokens of a row.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from tar3d.gpt.norm import NORM_EPS
from tar3d.gpt.rope import rotate
from tar3d.gpt.sampling import sample

if TYPE_CHECKING:
    from collections.abc import Callable

    from tar3d.config import SamplingConfig

# In oneDNN's blocked layout a matrix is read at the memory's speed for a few rows, which the BLAS
# behind F.linear misses by half or more on a CPU. Below this size the call itself costs more.
ONEDNN_LEAST_WEIGHTS = 1 << 16
ONEDNN_ROWS = 2  # a hint; the layout serves any number of rows


def pack(weight: Tensor) -> Tensor:
    """A weight (N, D) in the form in which these operations read it fastest on its device."""
    weight = weight.detach().contiguous()
    if (
        weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and weight.numel() >= ONEDNN_LEAST_WEIGHTS
        and torch.backends.mkldnn.is_available()
    ):
        return torch.ops.mkldnn._reorder_linear_weight(weight, ONEDNN_ROWS)
    return weight


def silu_features(qk: Tensor) -> Tensor:
    """The feature map of the stock linear layers, in `forward` and in their packed steps alike.

    The Triton kernel of lightning attention has the same function written out.
    """
    return F.silu(qk)


def norm_linear(x: Tensor, gain: Tensor, weight: Tensor) -> Tensor:
    """RMS norm of x (B, D) float32 with `gain` (D,), times weight (N, D) -> (B, N)."""
    return _linear((normalise(x) * gain).to(weight.dtype), weight)


def linear_add(x: Tensor, weight: Tensor, residual: Tensor) -> Tensor:
    """residual (B, N) float32 plus x (B, D) times weight (N, D) -> (B, N) float32."""
    return residual + _linear(x, weight)


def norm_swiglu(x: Tensor, gain: Tensor, weight: Tensor) -> Tensor:
    """norm_linear with weight (2 F, D), gate rows first -> silu(gate) up (B, F)."""
    gate, up = norm_linear(x, gain, weight).chunk(2, dim=-1)
    return F.silu(gate) * up


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
    q, k = rotated(silu_features, projected, cos, sin, qk_gain, H)
    v = projected[:, 2 * H * d : 3 * H * d].view(B, H, 1, d).float()
    state.mul_(decay[:, None, None]).addcmul_(k[..., None], v)
    o = normalise(q[:, :, None] @ state) * o_gain  # (B, H, 1, d)
    o = o.reshape(B, H * d)
    if projected.shape[1] == 4 * H * d:
        o = o * torch.sigmoid(projected[:, 3 * H * d :].float())
    return o.to(projected.dtype)


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

    k and v go to `slot` (1,) int64 of keys, values (B, H, C, d). Attention sees the first `window`
    slots (more than `slot`), of those the ones in `valid` (B or 1, 1, 1, C) bool, None if all of
    them hold something.
    """
    B, H, _, d = keys.shape
    q, k = rotated(None, projected, cos, sin, qk_gain, H)
    keys.index_copy_(2, slot, k[:, :, None].to(keys.dtype))
    values.index_copy_(2, slot, projected[:, 2 * H * d :].view(B, H, 1, d))
    o = F.scaled_dot_product_attention(
        q[:, :, None].to(keys.dtype),
        keys[:, :, :window],
        values[:, :, :window],
        attn_mask=None if valid is None else valid[..., :window],
    )
    return o.reshape(B, H * d)


def draw_token(
    logits: Tensor,
    sampling: SamplingConfig,
    draws: Tensor,
    position: Tensor,
    logit_sums: Tensor,
    ids: Tensor,
) -> Tensor:
    """Draws the tokens (B,) int64 of `position` (1,) from logits (B, V) float32, by `sample`.

    They are decided by draws (B, T) float32 in [0, 1), and stored in ids (B, T) int64; the sum of
    the logits is added to logit_sums (B,) float32.
    """
    logit_sums.add_(logits.sum(1))
    token = sample(logits, sampling, draws.index_select(1, position)[:, 0])
    ids.index_copy_(1, position, token[:, None])
    return token


def normalise(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + NORM_EPS)


def rotated(
    feature_map: Callable[[Tensor], Tensor] | None,
    projected: Tensor,
    cos: Tensor,
    sin: Tensor,
    qk_gain: Tensor,
    num_heads: int,
) -> tuple[Tensor, Tensor]:
    """q and k (B, H, d) float32 out of `projected`: normalised, mapped and rotated."""
    d = qk_gain.shape[1]
    qk = projected[:, : 2 * num_heads * d].view(-1, 2, num_heads, d).float()
    qk = normalise(qk) * qk_gain[:, None]
    if feature_map is not None:
        qk = feature_map(qk)
    q, k = rotate(qk, cos, sin).unbind(1)
    return q, k


def _linear(x: Tensor, weight: Tensor) -> Tensor:
    if weight.is_mkldnn:
        return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
    return F.linear(x, weight)
