"""The tokenizer's training loss: occupancy on volume and near-surface points apart, and the
commitment to the codebook."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass
class TokenizerLoss:
    total: Tensor
    volume: Tensor  # binary cross-entropy on points uniform in the cube, nats
    near: Tensor  # the same on points near the surface
    commitment: Tensor


def tokenizer_loss(
    logits: Tensor,
    inside: Tensor,
    is_near: Tensor,
    commitment: Tensor,
    *,
    near_weight: float,
    commitment_weight: float,
) -> TokenizerLoss:
    """logits, inside (bool), is_near (bool) all (B, M). total = volume + near_weight near +
    commitment_weight commitment."""
    bce = F.binary_cross_entropy_with_logits(logits.float(), inside.float(), reduction="none")
    near_share = is_near.float()
    near = (bce * near_share).sum() / near_share.sum().clamp_min(1)
    volume = (bce * (1 - near_share)).sum() / (1 - near_share).sum().clamp_min(1)
    total = volume + near_weight * near + commitment_weight * commitment
    return TokenizerLoss(total, volume, near, commitment)


@torch.no_grad()
def intersection_over_union(logits: Tensor, inside: Tensor, chosen: Tensor) -> Tensor:
    """IoU (B,) of {logit > 0} and `inside` over the `chosen` (B, M) points; 1 where both are
    empty."""
    predicted = (logits > 0) & chosen
    true = inside & chosen
    union = (predicted | true).sum(-1)
    return torch.where(
        union > 0,
        (predicted & true).sum(-1) / union.clamp_min(1),
        torch.ones_like(union, dtype=torch.float32),
    )
