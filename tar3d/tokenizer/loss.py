"""The tokenizer's training loss: occupancy of volume and near-surface points, and commitment."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass
class TokenizerLoss:
    """Scalars: the weighted total, and its three terms."""

    total: Tensor
    volume: Tensor  # binary cross-entropy on points uniform in the cube, nats
    near: Tensor  # the same on points near the surface
    commitment: Tensor  # squared distance of the latents to their codes


def tokenizer_loss(
    logits: Tensor,
    inside: Tensor,
    is_near: Tensor,
    commitment: Tensor,
    *,
    near_weight: float,
    commitment_weight: float,
) -> TokenizerLoss:
    """Loss of `logits` (B, M) float against `inside` (B, M) bool.

    `is_near` (B, M) bool marks the near-surface points. total = volume + near_weight near +
    commitment_weight commitment, after TAR3D (arXiv 2412.16919, section 3.1); a term without points
    is 0.
    """
    bce = F.binary_cross_entropy_with_logits(logits.float(), inside.float(), reduction="none")
    near_share = is_near.float()
    near = (bce * near_share).sum() / near_share.sum().clamp_min(1)
    volume = (bce * (1 - near_share)).sum() / (1 - near_share).sum().clamp_min(1)
    total = volume + near_weight * near + commitment_weight * commitment
    return TokenizerLoss(total, volume, near, commitment)


@torch.no_grad()
def intersection_over_union(logits: Tensor, inside: Tensor, chosen: Tensor) -> Tensor:
    """IoU (B,) of {logit > 0} and `inside` over the `chosen` points, all (B, M).

    It is 1 where neither holds a chosen point.
    """
    predicted = (logits > 0) & chosen
    true = inside & chosen
    union = (predicted | true).sum(-1)
    return torch.where(
        union > 0,
        (predicted & true).sum(-1) / union.clamp_min(1),
        torch.ones_like(union, dtype=torch.float32),
    )
