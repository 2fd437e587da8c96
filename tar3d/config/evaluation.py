"""How predicted meshes are compared with true ones."""

from __future__ import annotations

from dataclasses import dataclass, field

from tar3d.config.checks import at_least, check_seed, one_of, require

# Of a prediction onto its own truth (`tar3d/metrics/align.py`).
ALIGNMENTS = ("none", "bbox", "icp", "rot24+icp")
DEFAULT_CLIP = "openai/clip-vit-base-patch32"


@dataclass(kw_only=True)
class EvalProtocol:
    """How a predicted mesh is compared with the true one (`tar3d/metrics`).

    The defaults are those of configs/eval/tar3d.yaml. In the frames "truth" and "each" the unit is
    half the longest side of a bounding box: the shape spans -1 to 1.
    """

    # The publication that the convention comes from.
    source: str = "TAR3D, arXiv 2412.16919"
    # "truth": both meshes are moved and scaled by the box of the true one; "each": by its own box;
    # "source": not at all.
    frame: str = "truth"
    # Drawn from each surface.
    points: int = 16_000
    # Distances at which precision, recall and F-score are taken.
    thresholds: list[float] = field(default_factory=lambda: [0.01, 0.02, 0.05])
    # Uniform in the box that holds both meshes.
    iou_points: int = 30_000
    # On the true surface, moved by Gaussian noise.
    near_points: int = 30_000
    # Standard deviation of that noise per axis.
    near_sigma: float = 0.02
    # The scores that tables show first.
    headline: list[str] = field(default_factory=lambda: ["chamfer", "fscore@0.02"])
    seed: int = 0

    def __post_init__(self) -> None:
        one_of("frame", self.frame, ("truth", "each", "source"))
        at_least(1, self, "", "points", "iou_points", "near_points")
        check_seed("seed", self.seed)
        require(self.near_sigma > 0, f"near_sigma must be positive, got {self.near_sigma}")
        require(
            len(self.thresholds) > 0 and all(tau > 0 for tau in self.thresholds),
            f"thresholds must be one or more positive numbers, got {self.thresholds}",
        )
