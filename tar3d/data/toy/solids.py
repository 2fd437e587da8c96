"""The vocabulary of solids that the procedural shapes are made of, on top of manifold3d (which is
loaded when used).

Every function returns a closed, outward `manifold3d.Manifold`; union and difference keep that. Y is
up. A `Span` is a (low, high) pair along an axis, a `Ring` the corners (S, 2) of a convex polygon in
the ground plane, as (x, z).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from manifold3d import Manifold

Span = tuple[float, float]
Ring = np.ndarray

SEGMENTS = 36  # of a circle
_CORNER = 3  # subdivisions of a rounded corner


def rectangle(width: float, depth: float, x: float = 0.0, z: float = 0.0) -> Ring:
    return np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * [width / 2, depth / 2] + [x, z]


def ellipse(
    radius_x: float, radius_z: float, x: float = 0.0, z: float = 0.0, segments: int = SEGMENTS
) -> Ring:
    return _circle(segments) * [radius_x, radius_z] + [x, z]


def disk(radius: float, x: float = 0.0, z: float = 0.0, segments: int = SEGMENTS) -> Ring:
    return ellipse(radius, radius, x, z, segments)


def hull(points: np.ndarray) -> Manifold:
    """Convex hull of `points` (K, 3)."""
    from manifold3d import Manifold

    return Manifold.hull_points(np.asarray(points, dtype=np.float64))


def loft(y: Span, bottom: Ring, top: Ring | None = None) -> Manifold:
    """Hull of a ring at y[0] and one at y[1]: a prism when `top` is left out, else a cone, a
    leaning leg, a cabin ..."""
    return hull(
        np.concatenate([_at_height(bottom, y[0]), _at_height(bottom if top is None else top, y[1])])
    )


def cylinder(radius: float, y: Span, x: float = 0.0, z: float = 0.0) -> Manifold:
    return loft(y, disk(radius, x, z))


def box(x: Span, y: Span, z: Span, rounding: float = 0.0) -> Manifold:
    """An axis-aligned box; `rounding` is the radius of its edges and corners, at most half the
    shortest side."""
    low, high = np.array([x, y, z], dtype=np.float64).T
    rounding = min(
        rounding, (high - low).min() / 2 - 1e-4
    )  # the hull of an exact half sphere degenerates
    signs = np.stack(np.meshgrid([-1, 1], [-1, 1], [-1, 1], indexing="ij"), axis=-1).reshape(
        -1, 1, 3
    )
    octant = np.zeros((1, 3)) if rounding <= 0 else _octant(_CORNER) * rounding
    half = (high - low) / 2 - max(rounding, 0)
    return hull(((half + octant) * signs).reshape(-1, 3) + (low + high) / 2)


def ellipsoid(radii: Sequence[float], center: Sequence[float]) -> Manifold:
    from manifold3d import Manifold

    return Manifold.sphere(1.0, 24).scale(tuple(radii)).translate(tuple(center))


def lathe(profile: Sequence[Span]) -> Manifold:
    """Turns the closed outline `profile` of (radius, y) corners about the y axis."""
    from manifold3d import CrossSection, FillRule

    outline = CrossSection([np.asarray(profile, dtype=np.float64)], FillRule.EvenOdd)
    return outline.revolve(SEGMENTS).rotate((-90, 0, 0))


def torus(radius: float, thickness: float, y: float) -> Manifold:
    """A horizontal ring about the y axis; `radius` is that of its centre line."""
    return lathe(_circle(12) * (thickness / 2) + [radius, y])


def extrude(outline: Sequence[Span], axis: str, span: Span) -> Manifold:
    """Pulls a polygon along `axis`; its corners are (z, y) for "x", (x, z) for "y" and (x, y) for
    "z"."""
    from manifold3d import CrossSection, FillRule

    first, second, along = {"x": (2, 1, 0), "y": (0, 2, 1), "z": (0, 1, 2)}[axis]
    place = np.zeros((3, 4))
    place[first, 0] = place[second, 1] = place[along, 2] = 1
    place[along, 3] = span[0]
    flat = CrossSection([np.asarray(outline, dtype=np.float64)], FillRule.EvenOdd)
    return flat.extrude(span[1] - span[0]).transform(place)


def tube(path: np.ndarray, thickness: float) -> Manifold:
    """A round bar along `path` (K, 3), which lies in a plane of constant z and never runs back on
    itself."""
    from manifold3d import Manifold, Mesh

    path, circle = np.asarray(path, dtype=np.float64), _circle(12) * (thickness / 2)
    along = np.gradient(path, axis=0)
    side = np.cross((0, 0, 1), along)
    side /= np.linalg.norm(side, axis=1, keepdims=True)
    rings = (
        path[:, None] + circle[:, :1] * side[:, None] + circle[:, 1:] * np.array([0, 0, 1])
    )  # (K, S, 3)
    rings_n, s = rings.shape[:2]
    here = np.arange((rings_n - 1) * s).reshape(-1, s)
    a, b, c, d = (
        q.ravel()
        for q in (here, np.roll(here, -1, axis=1), here + s, np.roll(here, -1, axis=1) + s)
    )
    start, end = rings_n * s, rings_n * s + 1
    rim, last = here[0], here[-1] + s
    faces = [
        np.stack(t, axis=1)
        for t in (
            (a, b, d),
            (a, d, c),
            (np.full(s, start), np.roll(rim, -1), rim),
            (np.full(s, end), last, np.roll(last, -1)),
        )
    ]
    vertices = np.concatenate([rings.reshape(-1, 3), path[:1], path[-1:]])
    return Manifold(Mesh(vertices.astype(np.float32), np.concatenate(faces).astype(np.uint32)))


def union(parts: Iterable[Manifold]) -> Manifold:
    from manifold3d import Manifold, OpType

    return Manifold.batch_boolean(list(parts), OpType.Add)


def both_sides(part: Manifold) -> list[Manifold]:
    """`part` and its mirror image at the plane x = 0."""
    return [part, part.mirror((1, 0, 0))]


def lean(part: Manifold, slope: float, y: float) -> Manifold:
    """Shears backwards: what is at height `y` stays, z falls by `slope` for each unit above it."""
    shear = np.eye(3, 4)
    shear[2, 1], shear[2, 3] = -slope, slope * y
    return part.transform(shear)


def arc(center: Span, radii: Span, degrees: Span, count: int = 16) -> np.ndarray:
    """`count` points (count, 2) of an ellipse, from and to the given angles."""
    angle = np.radians(np.linspace(*degrees, count))
    return np.asarray(center) + np.stack([np.cos(angle), np.sin(angle)], axis=1) * radii


def _circle(segments: int) -> np.ndarray:
    angle = (np.arange(segments) + 0.5) * 2 * np.pi / segments
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


def _at_height(ring: Ring, y: float) -> np.ndarray:
    return np.stack([ring[:, 0], np.full(len(ring), y), ring[:, 1]], axis=1)


def _octant(n: int) -> np.ndarray:
    """Unit vectors with non-negative coordinates, on a regular subdivision."""
    corners = np.array(
        [(i, j, n - i - j) for i in range(n + 1) for j in range(n + 1 - i)], dtype=np.float64
    )
    return corners / np.linalg.norm(corners, axis=1, keepdims=True)
