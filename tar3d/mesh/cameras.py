"""Pinhole cameras, on a sphere around the origin or anywhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tar3d.config import ViewConfig

Vector = tuple[float, float, float]
# At full variety the field of view is multiplied by a factor between this and its inverse, and the
# camera rolls by up to so many degrees.
LENS, ROLL = 2.0, 6.0
# Wider fields of view would bring the camera into the cube.
MAX_FIELD = 60.0


@dataclass(frozen=True)
class Camera:
    """A pinhole camera with a square image.

    Raises ValueError for a field of view outside (0, 180) and for `up` along the view direction.
    """

    position: Vector
    target: Vector = (0.0, 0.0, 0.0)
    up: Vector = (0.0, 1.0, 0.0)
    field_of_view: float = 35.0  # degrees

    def __post_init__(self) -> None:
        if not 0.0 < self.field_of_view < 180.0:
            raise ValueError(f"field_of_view must be in (0, 180) degrees, got {self.field_of_view}")
        forward = np.subtract(self.target, self.position)
        if not np.linalg.norm(np.cross(forward, self.up)) > 1e-9 * np.linalg.norm(forward):
            raise ValueError(
                f"a camera at {self.position} that looks at {self.target} cannot have "
                f"up = {self.up}"
            )

    def axes(self) -> np.ndarray:
        """Unit rows right, up, forward in world coordinates, (3, 3)."""
        forward = np.subtract(self.target, self.position).astype(np.float64)
        forward /= np.linalg.norm(forward)
        right = np.cross(forward, self.up)
        right /= np.linalg.norm(right)
        return np.stack([right, np.cross(right, forward), forward])

    def to_json(self) -> dict:
        """The camera as plain values, for a JSON file."""
        vectors = {name: list(getattr(self, name)) for name in ("position", "target", "up")}
        return {**vectors, "field_of_view": self.field_of_view}

    @classmethod
    def from_json(cls, values: dict) -> Camera:
        """The camera of such values; KeyError, TypeError or ValueError where they make none."""
        position, target, up = (_vector(values[name]) for name in ("position", "target", "up"))
        return cls(position, target, up, float(values["field_of_view"]))


def orbit(azimuth: float, elevation: float, distance: float, fov: float) -> Camera:
    """A camera that looks at the origin from `distance`; all angles in degrees.

    Azimuth 0 is on +Z, positive towards +X; elevation is positive towards +Y.
    """
    a, e = np.radians(azimuth), np.radians(elevation)
    outward = np.array([np.cos(e) * np.sin(a), np.sin(e), np.cos(e) * np.cos(a)])
    # also defined straight above the origin
    up = np.array([-np.sin(e) * np.sin(a), np.cos(e), -np.sin(e) * np.cos(a)])
    return Camera(_vector(distance * outward), (0.0, 0.0, 0.0), _vector(up), fov)


def _vector(values: Iterable[float]) -> Vector:
    x, y, z = map(float, values)
    return x, y, z


def orbit_cameras(config: ViewConfig, rng: np.random.Generator) -> list[Camera]:
    """`config.count` cameras with angles uniform in the ranges of `config`.

    With `config.variety` their focal lengths differ, at distances at which the object keeps its
    size, and they roll a little.
    """
    (left, right), (low, high) = config.azimuth, config.elevation
    angles = [(rng.uniform(left, right), rng.uniform(low, high)) for _ in range(config.count)]
    cameras = [
        orbit(azimuth, elevation, config.distance, config.field_of_view)
        for azimuth, elevation in angles
    ]
    if not config.variety:
        return cameras
    return [_varied(camera, rng, config.variety) for camera in cameras]


def _varied(camera: Camera, rng: np.random.Generator, strength: float) -> Camera:
    """A camera of another focal length that rolls about its view direction."""
    field = camera.field_of_view * LENS ** (strength * rng.uniform(-1, 1))
    field = min(field, max(MAX_FIELD, camera.field_of_view))
    nearer = np.sin(np.radians(camera.field_of_view) / 2) / np.sin(np.radians(field) / 2)
    right, up, _ = camera.axes()
    roll = np.radians(strength * rng.uniform(-ROLL, ROLL))
    return Camera(
        _vector(nearer * np.asarray(camera.position)),
        camera.target,
        _vector(np.cos(roll) * up + np.sin(roll) * right),
        float(field),
    )
