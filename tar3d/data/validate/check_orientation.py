"""Checks that normals point outward and labels say what is inside, by comparing the two.

A point well inside a solid lies behind the surface point nearest to it, and one outside in front of
it. Sheets have no side, and their normals point to either. The limits leave room to the values of
real meshes, 3,003 game assets and everyday objects.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy.spatial import cKDTree

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tar3d.contracts import ShapeSamples

COMPARED = 8192  # surface points, volume points and near points that are compared, each at most
CLEAR = 0.02  # least distance from the surface: a padded sheet is 0.0075 thick on either side
STEEP = 0.5  # least cosine between the normal and the direction to a point that is compared
LEAST_POINTS = 50
# share of points inside that lie behind the surface: 0.42 and more for real meshes, 0 if all
# normals are turned, a half if half of them are
INWARD, MIXED = 0.35, 0.65
INWARD_OUTSIDE = 0.3  # the same for points outside: 0.46 and more for real meshes, sheets included
LABELS_INVERTED = 0.5  # share of the points beyond the surface's bounding cube that are inside
POSITIVE = 0.9  # share of normals without a negative component: at most 0.62 for real meshes


class Found(NamedTuple):
    """What is wrong with an array of a shape's samples."""

    key: str
    found: str
    allowed: str
    warning: bool = False


def check_orientation(samples: ShapeSamples) -> Iterator[Found]:
    """Problems of normals and labels that are there, but turned."""
    positive = float((samples.surface[:, 3:] >= 0).all(axis=1).mean())
    if positive > POSITIVE:
        yield Found(
            "surface",
            f"{positive:.1%} of the normals have no negative component",
            "outward normals, which point to all sides: are these colours?",
        )
        return
    beyond = (np.abs(samples.points) > np.abs(samples.surface[:, :3]).max() + 0.01).any(axis=1)
    if beyond.any() and (share := float(samples.inside[beyond].mean())) > LABELS_INVERTED:
        yield Found(
            "inside",
            f"{share:.1%} of the points beyond the surface's bounding cube are inside",
            "none: are the labels inverted?",
        )
        return
    behind, in_front = _sides(samples)
    deep = len(behind) >= LEAST_POINTS
    right = float((behind if deep else in_front).mean()) if deep or len(in_front) else 1.0
    if right < (INWARD if deep else INWARD_OUTSIDE):
        where = "inside lie behind" if deep else "outside lie in front of"
        yield Found(
            "surface",
            f"{right:.1%} of the points {where} the surface point nearest to them",
            "nearly all: do the normals point inward, are the labels inverted, or are surface and "
            "points in two frames?",
        )
    elif deep and right < MIXED:
        yield Found(
            "surface",
            f"{right:.1%} of the points inside lie behind the surface point nearest to them",
            "nearly all: do some of the normals point inward?",
            warning=True,
        )


def _sides(samples: ShapeSamples) -> tuple[np.ndarray, np.ndarray]:
    """Whether points well inside lie behind the surface (K,), and those outside in front (L,)."""
    surface = _spread(samples.surface)
    near = samples.is_near
    points = np.concatenate([_spread(samples.points[~near]), _spread(samples.points[near])])
    inside = np.concatenate([_spread(samples.inside[~near]), _spread(samples.inside[near])])
    distance, nearest = cKDTree(surface[:, :3]).query(points)
    height = np.einsum("ni,ni->n", points - surface[nearest, :3], surface[nearest, 3:])
    is_clear = (distance > CLEAR) & (np.abs(height) > STEEP * distance)
    return height[is_clear & inside] < 0, height[is_clear & ~inside] > 0


def _spread(rows: np.ndarray) -> np.ndarray:
    """COMPARED of `rows`, spread evenly over them: near points are ordered by their noise."""
    return rows[:: max(1, -(-len(rows) // COMPARED))]
