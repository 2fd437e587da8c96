"""One learning-rate schedule for all optimizers: linear warm-up, then a cosine. Each group keeps its own base rate."""

from __future__ import annotations

import math
from collections.abc import Iterable

from torch.optim import Optimizer


def learning_rate_factor(step: int, total: int, warmup: int, final_fraction: float) -> float:
    """Multiple of the base rate at `step` (0-based) of `total`.

    Rises linearly to 1 at step `warmup - 1` (the first step already moves), falls by half a cosine to
    `final_fraction` at step `total - 1`, and stays there. A run shorter than its warm-up never leaves it.
    """
    if total <= 0 or warmup < 0 or step < 0:
        raise ValueError(f"a schedule needs total > 0, warmup >= 0 and step >= 0, got {total}, {warmup} and {step}")
    if step < warmup:
        return (step + 1) / warmup
    start = max(warmup - 1, 0)  # the step at which the factor is 1
    progress = min(1.0, (step - start) / max(1, total - 1 - start))
    return final_fraction + (1.0 - final_fraction) * 0.5 * (1.0 + math.cos(math.pi * progress))


def set_learning_rates(optimizers: Iterable[Optimizer], factor: float) -> None:
    """Sets each group's rate to its base rate (group["initial_lr"], put there by `build_optimizers`) times `factor`."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
