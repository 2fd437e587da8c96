"""Linear attention with a decay read from the data, and the delta rule (docs/ablations.md)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tar3d.gpt import decode_ops, gated_attention
from tar3d.gpt.backends import GatedBackend
from tar3d.gpt.layers.linear import LinearAttention

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    from tar3d.config import GPTConfig
    from tar3d.gpt.layers.base import DecodePosition, StaticCache

FIRST_STEP_SIZE = math.log(math.e - 1)  # softplus of it is 1


def unit_silu(qk: Tensor) -> Tensor:
    """The feature map of the delta rule, whose keys must be unit vectors."""
    return F.normalize(decode_ops.silu_features(qk), dim=-1)


def head_gates(gates: Tensor, bias: Tensor, log_rate: Tensor) -> tuple[Tensor, Tensor | None]:
    """Outputs of `forget`, (B, H or 2 H, ...) -> log_decay and beta (B, H, ...).

    Both have the dtype of `bias`; beta is None without the delta rule. `bias` and `log_rate` (H,
    ...) broadcast to the result.
    """
    forget, *beta = gates.to(bias.dtype).split(len(bias), dim=1)
    return -log_rate.exp() * F.softplus(forget + bias), beta[0].sigmoid() if beta else None


class GatedWeights(NamedTuple):
    gain: Tensor  # (D,)
    projections: Tensor  # q, k, v, the gate if there is one, and H or 2 H rows of `forget`
    qk_gain: Tensor  # (2, d)
    forget_bias: Tensor  # (H,)
    log_rate: Tensor  # (H,)
    o_gain: Tensor  # (d,)
    o: Tensor  # (D, D)
    delta: bool


def packed_step(
    ops: ModuleType, weights: GatedWeights, x: Tensor, position: DecodePosition, cache: StaticCache
) -> Tensor:
    """`AttentionLayer.packed_step` of both classes."""
    projected = ops.norm_linear(x, weights.gain, weights.projections)
    return ops.linear_add(gated_attend(projected, weights, position, *cache), weights.o, x)


def gated_attend(
    projected: Tensor, weights: GatedWeights, position: DecodePosition, state: Tensor
) -> Tensor:
    """One position, `projected` (B, N) -> (B, D); the state (B, H, d, d) float32 is updated.

    N is 3 D or with a gate 4 D, and H or with the delta rule 2 H more.
    """
    B, H, d, _ = state.shape
    feature_map = unit_silu if weights.delta else decode_ops.silu_features
    q, k = decode_ops.rotated(
        feature_map, projected, position.cos, position.sin, weights.qk_gain, H
    )
    v = projected[:, 2 * H * d : 3 * H * d].view(B, H, 1, d).float()
    gates = projected.shape[1] % (H * d)
    log_decay, beta = head_gates(projected[:, -gates:], weights.forget_bias, weights.log_rate)
    state.mul_(log_decay.exp()[..., None, None])
    if beta is not None:
        v = (v - k[:, :, None] @ state) * beta[..., None, None]
    state.addcmul_(k[..., None], v)
    o = decode_ops.normalise(q[:, :, None] @ state) * weights.o_gain  # (B, H, 1, d)
    o = o.reshape(B, H * d)
    if projected.shape[1] - gates == 4 * H * d:
        o = o * torch.sigmoid(projected[:, 3 * H * d : -gates].float())
    return o.to(projected.dtype)


class GatedAttention(LinearAttention):
    """`gpt.linear_attention` "gated": each position says how much a head forgets there,

        log a_t = -rate softplus(W x_t + bias)

    as in Mamba-2 (arXiv 2405.21060). At the start heads forget as those of lightning attention do.
    """

    backend = GatedBackend
    recurrent_step = staticmethod(gated_attention.recurrent_step)
    adamw_parameters = ("forget",)  # a number a head, not a hidden matrix
    packed_backends = ("plain", "compiled")
    packed_step = staticmethod(packed_step)
    init_as: ClassVar[dict[str, str]] = {
        **LinearAttention.init_as,
        "forget_bias": "own",
        "log_rate": "own",
    }
    delta = False  # the delta rule

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__(config, layer)
        self.forget = nn.Linear(
            config.width, (2 if self.delta else 1) * config.num_heads, bias=False
        )
        self.forget_bias = nn.Parameter(torch.full((config.num_heads,), FIRST_STEP_SIZE))
        self.log_rate = nn.Parameter(self.slopes.log())

    def decay(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """log_decay and beta, (B, H, S) each."""
        gates = self.forget(x).transpose(1, 2)
        return head_gates(gates, self.forget_bias[:, None], self.log_rate[:, None])

    def pack(self, gain: Tensor, pack: Callable[..., Tensor]) -> GatedWeights:
        gates = [self.forget] if self.gate is None else [self.gate, self.forget]
        return GatedWeights(
            gain,
            pack(self.q, self.k, self.v, *gates),
            self.qk_gain.reshape(2, -1),
            self.forget_bias,
            self.log_rate,
            self.o_norm.weight,
            pack(self.o),
            self.delta,
        )


class DeltaAttention(GatedAttention):
    """`gpt.linear_attention` "delta": the gated delta rule (arXiv 2412.06464).

    Beside the decay each position says how much of its value is written, b_t = sigmoid(W' x_t), and
    keys are unit vectors.
    """

    delta = True
    state_products = 3
    packed_step = staticmethod(packed_step)

    def feature_map(self, qk: Tensor) -> Tensor:
        return unit_silu(qk)
