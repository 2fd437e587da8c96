"""How tokens are drawn, and the command-line flags for it.

A new setting is one field of `SamplingConfig`: a described one becomes a flag of run.py and a
control of demo.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tar3d.config.checks import require
from tar3d.config.flags import add_config_flags, config_from_flags, described

if TYPE_CHECKING:
    import argparse

DECODING_BACKENDS = ("auto", "plain", "compiled", "triton")  # implementations of a step
# Logits divided or multiplied by these stay within float32.
LEAST_TEMPERATURE, LARGEST_SCALE = 1e-6, 1e6


@dataclass(kw_only=True)
class SamplingConfig:
    """How the next token is drawn.

    A filter is off at its default; temperature 0 is greedy and ignores the seed.
    """

    temperature: float = described(1.0, "higher gives more variety; 0 is greedy")
    top_k: int = described(0, "draw from the K likeliest tokens only; 0 is off")
    top_p: float = described(1.0, "draw from the likeliest tokens of total probability P; 1 is off")
    min_p: float = described(
        0.0, "drop tokens less likely than this share of the likeliest one; 0 is off"
    )
    # Weight of the condition: logits = null + cfg_scale (conditional - null).
    cfg_scale: float = described(
        1.0, "guidance: higher follows the image or text more closely; 1 is none"
    )
    # Adds code_predictor_scale cos(predicted code, code) to the logits.
    code_predictor_scale: float = described(
        0.0,
        "weight of the predicted codes in the logits: higher follows the image or text more "
        "closely; 0 is off",
    )

    def __post_init__(self) -> None:
        require(
            self.temperature == 0 or LEAST_TEMPERATURE <= self.temperature <= LARGEST_SCALE,
            f"temperature must be 0 (greedy) or in [{LEAST_TEMPERATURE:g}, {LARGEST_SCALE:g}], got "
            f"{self.temperature}",
        )
        require(self.top_k >= 0, f"top_k must be >= 0 (0 is off), got {self.top_k}")
        require(0 < self.top_p <= 1, f"top_p must be in (0, 1], got {self.top_p}")
        require(0 <= self.min_p < 1, f"min_p must be in [0, 1), got {self.min_p}")
        for name, meaning in (("cfg_scale", "1 is none"), ("code_predictor_scale", "0 is off")):
            value = getattr(self, name)
            require(
                0 <= value <= LARGEST_SCALE,
                f"{name} must be in [0, {LARGEST_SCALE:g}] ({meaning}), got {value}",
            )


def add_sampling_flags(parser: argparse._ActionsContainer) -> None:
    """Adds the flags of `SamplingConfig` to a parser, or a group of it."""
    add_config_flags(parser, SamplingConfig)


def sampling_from_flags(args: argparse.Namespace, base: SamplingConfig) -> SamplingConfig:
    """The settings `base`, usually those saved with a model, changed by the flags given."""
    return config_from_flags(args, base)
