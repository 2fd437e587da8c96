"""Optimizers and the learning-rate schedule."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tar3d.config.checks import at_least, one_of, require, share


@dataclass(kw_only=True)
class OptimConfig:
    """Muon for hidden matrices, AdamW for the rest.

    The two learning rates are independent; both follow one schedule.
    """

    # "muon", or for comparison "adamw": AdamW for everything, at adamw_lr.
    optimizer: str = "muon"
    muon_lr: float = 1e-3
    adamw_lr: float = 1e-3
    # Only matrices are decayed, not vectors, norms and embeddings.
    weight_decay: float = 0.05
    beta1: float = 0.9
    beta2: float = 0.95
    muon_momentum: float = 0.95
    warmup_steps: int = 100
    # After the warm-up: "cosine", or "wsd": a plateau, then a decay.
    schedule: str = "cosine"
    # Share of all steps that the decay of wsd takes.
    decay_fraction: float = 0.2
    # Share of the peak rate that is left at the last step.
    final_lr_fraction: float = 0.05
    # Largest global norm of the gradient; 0 switches clipping off.
    grad_clip: float = 1.0

    def __post_init__(self) -> None:
        for name in ("muon_lr", "adamw_lr"):
            rate = getattr(self, name)
            require(0 < rate < math.inf, f"optim.{name} must be positive and finite, got {rate}")
        one_of("optim.optimizer", self.optimizer, ("muon", "adamw"))
        one_of("optim.schedule", self.schedule, ("cosine", "wsd"))
        require(
            0 < self.decay_fraction <= 1,
            f"optim.decay_fraction must be in (0, 1], got {self.decay_fraction}",
        )
        at_least(0, self, "optim.", "weight_decay", "warmup_steps")
        require(
            self.grad_clip >= 0,
            f"optim.grad_clip must be positive, or 0 for no clipping, got {self.grad_clip}",
        )
        share(self, "optim.", "beta1", "beta2", "muon_momentum", below_one=True)
        share(self, "optim.", "final_lr_fraction")
        largest = max(self.muon_lr, self.adamw_lr)
        require(
            largest * self.weight_decay < 1,
            "a step multiplies matrices by 1 - rate * optim.weight_decay, which must be positive, "
            f"got a rate of {largest} and a decay of {self.weight_decay}",
        )

    def warmup_note(self, steps: int) -> str:
        """A line where a run of `steps` ends before its rate has reached the peak; else ""."""
        if self.warmup_steps <= steps:
            return ""
        return (
            f"optim.warmup_steps {self.warmup_steps} is more than the {steps} steps of this run: "
            f"its rate never reaches the peak (write optim.warmup_steps={steps // 10}, or train "
            "longer)"
        )
