"""One learning-rate schedule for all optimizers: linear warm-up, then a cosine, or a plateau and a
decay ("wsd"). Each group keeps its own base rate."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch.optim import Optimizer

    from tar3d.config import OptimConfig


def learning_rate_factor(step: int, total: int, config: OptimConfig) -> float:
    """Multiple of the base rate at `step` (0-based) of `total`.

    Rises linearly to 1 at step `warmup_steps - 1` (the first step already moves), and ends at
    `final_lr_fraction` at step `total - 1`, where it stays: by half a cosine, or (`schedule: wsd`,
    arXiv 2404.06395) after a plateau at 1, by 1 minus a square root over the last `decay_fraction`
    of all steps (arXiv 2405.18392). A plateau can be prolonged: resume with more steps. A run
    shorter than its warm-up never leaves it.
    """
    warmup = config.warmup_steps
    if total <= 0 or warmup < 0 or step < 0:
        raise ValueError(
            f"a schedule needs total > 0, warmup >= 0 and step >= 0, got {total}, {warmup} and {step}"
        )
    if step < warmup:
        return (step + 1) / warmup
    start = max(warmup - 1, 0)  # the step at which the factor is 1
    if config.schedule == "wsd":
        start = max(start, total - 1 - round(config.decay_fraction * total))
    progress = min(1.0, max(0.0, step - start) / max(1, total - 1 - start))
    left = (
        1.0 - math.sqrt(progress)
        if config.schedule == "wsd"
        else 0.5 * (1.0 + math.cos(math.pi * progress))
    )
    return config.final_lr_fraction + (1.0 - config.final_lr_fraction) * left


def set_learning_rates(optimizers: Iterable[Optimizer], factor: float) -> None:
    """Sets each group's rate to its base rate (group["initial_lr"], put there by
    `build_optimizers`) times `factor`."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
