"""The gradients of a step: their norm, clipping, and which of them are not finite."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from tar3d.optim.muon import is_sharded

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def clip_gradients(module: nn.Module, largest_norm: float) -> Tensor:
    """Clips the gradients to a global norm; returns their norm before that.

    A norm that is not finite changes none of them, so that a gradient that is not finite does not
    spread to the others.
    """
    parameters = [p for p in module.parameters() if p.grad is not None]
    norm = nn.utils.get_total_norm(cast("Tensor", p.grad) for p in parameters)
    norm = norm.full_tensor() if is_sharded(norm) else norm
    nn.utils.clip_grads_with_norm_(parameters, largest_norm, norm.where(norm.isfinite(), 0.0))
    return norm


def without_finite_gradient(module: nn.Module, fabric: Fabric) -> list[str]:
    """Names of the parameters whose gradient is not finite, the same on every process."""
    gradients = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    held = (g.to_local() if is_sharded(g) else g for g in gradients.values())
    wrong = torch.stack([~g.isfinite().all() for g in held]).float()
    counts = cast("Tensor", fabric.all_reduce(wrong, reduce_op="sum")).tolist()
    return [name for name, count in zip(gradients, counts, strict=True) if count]
