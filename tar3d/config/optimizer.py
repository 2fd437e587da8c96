"""Optimizers and the learning-rate schedule."""

from __future__ import annotations

from dataclasses import dataclass

from tar3d.config.checks import at_least, one_of, require


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
            require(rate > 0, f"optim.{name} must be positive, got {rate}")
        one_of("optim.optimizer", self.optimizer, ("muon", "adamw"))
        one_of("optim.schedule", self.schedule, ("cosine", "wsd"))
        require(
            0 < self.decay_fraction <= 1,
            f"optim.decay_fraction must be in (0, 1], got {self.decay_fraction}",
        )
        at_least(0, self, "optim.", "weight_decay", "warmup_steps", "grad_clip")
