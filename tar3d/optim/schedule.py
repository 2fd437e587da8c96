"""One learning-rate schedule for all optimizers; each parameter group has its own base rate.

A linear warm-up, then what `optim.schedule` names in `DECAYS`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from torch.optim import Optimizer

    from tar3d.config import OptimConfig


def _cosine(step: int, start: int, total: int, _config: OptimConfig) -> float:
    """Half a cosine from 1 at `start` to 0 at the last step."""
    return 0.5 * (1.0 + math.cos(math.pi * _progress(step, start, total)))


def _warmup_stable_decay(step: int, start: int, total: int, config: OptimConfig) -> float:
    """A plateau at 1 (arXiv 2404.06395), then 1 minus a square root (arXiv 2405.18392).

    The decay takes the last `decay_fraction` of all steps. A plateau can be prolonged: resume with
    more steps.
    """
    start = max(start, total - 1 - round(config.decay_fraction * total))
    return 1.0 - math.sqrt(_progress(step, start, total))


def _progress(step: int, start: int, total: int) -> float:
    return min(1.0, max(0.0, step - start) / max(1, total - 1 - start))


# Schedules after the warm-up, by the value of `optim.schedule`: (step, step of the peak, number of
# steps, config) -> from 1 down to 0 at the last step.
DECAYS: dict[str, Callable[[int, int, int, OptimConfig], float]] = {
    "cosine": _cosine,
    "wsd": _warmup_stable_decay,
}


def learning_rate_factor(step: int, total: int, config: OptimConfig) -> float:
    """Multiple of the base rate at `step` (0-based) of `total`.

    Rises linearly to 1 at step `warmup_steps - 1` (the first step already moves), and falls to
    `final_lr_fraction` at step `total - 1`, where it stays. A run shorter than its warm-up never
    leaves it. Raises ValueError for a negative step or warm-up, and for no steps.
    """
    warmup = config.warmup_steps
    if total <= 0 or warmup < 0 or step < 0:
        raise ValueError(
            "a schedule needs total > 0, warmup >= 0 and step >= 0, got "
            f"{total}, {warmup} and {step}"
        )
    if step < warmup:
        return (step + 1) / warmup
    left = DECAYS[config.schedule](step, max(warmup - 1, 0), total, config)
    return config.final_lr_fraction + (1.0 - config.final_lr_fraction) * left


def set_learning_rates(optimizers: Iterable[Optimizer], factor: float) -> None:
    """Sets the rate of each group to `factor` times its base rate.

    That is group["initial_lr"], put there by `build_optimizers`.
    """
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
