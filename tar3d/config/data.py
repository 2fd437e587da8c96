"""Options of data preparation: points drawn from meshes, and rendered views."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from tar3d.config.checks import at_least, one_of, require, share


@dataclass(kw_only=True)
class PointSamplingConfig:
    """Points drawn from one mesh; lengths are in units of the cube [-1, 1]^3."""

    surface_points: int = 81_920
    volume_points: int = 80_000
    # Half of these points are drawn at each noise scale.
    near_points: int = 80_000
    # Standard deviations of the noise that moves points off the surface.
    near_sigmas: list[float] = field(default_factory=lambda: [0.02, 0.005])
    # Share of the near points that lie where planes mistake one part for another
    # (tar3d/mesh/points.py).
    crossing_share: float = 0.0
    # Thinner walls and sheets are made this thick, so that the grid can resolve them; 0 leaves
    # them as they are.
    min_thickness: float = 0.015

    def __post_init__(self) -> None:
        at_least(1, self, "", "surface_points", "volume_points", "near_points")
        require(
            0 <= self.crossing_share <= 1,
            f"crossing_share is a share of the near points, got {self.crossing_share}",
        )
        require(
            0 <= self.min_thickness <= 0.5,
            f"min_thickness must be in [0, 0.5], got {self.min_thickness}",
        )
        require(
            len(self.near_sigmas) > 0 and min(self.near_sigmas) > 0,
            f"near_sigmas must be positive, got {self.near_sigmas}",
        )


@dataclass(kw_only=True)
class ViewConfig:
    """Rendered condition views: cameras on a sphere that look at the origin. Angles in degrees."""

    count: int = 4
    size: int = 128
    # "transparent" or "white".
    background: str = "transparent"
    # Range; 0 looks from +Z, positive angles turn towards +X.
    azimuth: list[float] = field(default_factory=lambda: [-60.0, 60.0])
    elevation: list[float] = field(default_factory=lambda: [5.0, 35.0])
    # The whole cube is in the image if distance sin(field_of_view / 2) >= 0.95 sqrt 3.
    distance: float = 5.5
    field_of_view: float = 35.0
    # 0: matt grey under one light. Up to 1: colours, patterns, lights, gloss, line drawings and
    # focal lengths drawn for each view, the further from that the larger the number.
    variety: float = 0.0

    def __post_init__(self) -> None:
        one_of("views.background", self.background, ("transparent", "white"))
        require(
            self.count >= 0 and self.size >= 16,
            f"views need count >= 0 and size >= 16, got {self.count} and {self.size}",
        )
        for name in ("azimuth", "elevation"):
            low_high = getattr(self, name)
            require(
                len(low_high) == 2 and low_high[0] <= low_high[1],
                f"{name} must be [low, high], got {low_high}",
            )
        require(
            self.distance > 2.0,
            "camera distance must exceed 2 (the cube's half diagonal is 1.73), got "
            f"{self.distance}",
        )
        require(
            0 < self.field_of_view < 180,
            f"field_of_view must be between 0 and 180 degrees, got {self.field_of_view}",
        )
        share(self, "views.", "variety")


@dataclass(kw_only=True)
class ToyConfig:
    """Settings of the procedural data set (`tar3d.data.toy`)."""

    views: ViewConfig = field(default_factory=ViewConfig)


@dataclass(kw_only=True)
class PrepareConfig(PointSamplingConfig):
    """Samples of each mesh, and views of meshes that have no images (`tar3d.data.make_samples`)."""

    views: ViewConfig = field(default_factory=ViewConfig)

    @property
    def samples(self) -> PointSamplingConfig:
        """The settings of the samples alone."""
        return PointSamplingConfig(
            **{f.name: getattr(self, f.name) for f in dataclasses.fields(PointSamplingConfig)}
        )
