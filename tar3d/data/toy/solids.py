"""Solids that the procedural shapes are made of, by manifold3d (loaded when used).

Every function returns a closed, outward `manifold3d.Manifold`; union and difference keep that. Y is
up. A `Span` is a (low, high) pair along an axis; a `Ring` is (S, 2), the (x, z) corners of a convex
polygon in the ground plane.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from manifold3d import Manifold

Span = tuple[float, float]
Ring = np.ndarray

SEGMENTS = 36  # corners of a circle
_CORNER = 3  # subdivisions of a rounded corner


def rectangle(width: float, depth: float, x: float = 0.0, z: float = 0.0) -> Ring:
    """A ring of four corners around (x, z)."""
    return np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * [width / 2, depth / 2] + [x, z]


def ellipse(
    radius_x: float, radius_z: float, x: float = 0.0, z: float = 0.0, segments: int = SEGMENTS
) -> Ring:
    """A ring of `segments` corners around (x, z)."""
    return _circle(segments) * [radius_x, radius_z] + [x, z]


def disk(radius: float, x: float = 0.0, z: float = 0.0, segments: int = SEGMENTS) -> Ring:
    """A ring of `segments` corners on a circle around (x, z)."""
    return ellipse(radius, radius, x, z, segments)


def hull(points: np.ndarray) -> Manifold:
    """Convex hull of `points` (K, 3)."""
    from manifold3d import Manifold

    return Manifold.hull_points(np.asarray(points, dtype=np.float64))


def loft(y: Span, bottom: Ring, top: Ring | None = None) -> Manifold:
    """Hull of a ring at y[0] and one at y[1]: a prism, or with `top` a cone or a splayed leg."""
    return hull(
        np.concatenate([_at_height(bottom, y[0]), _at_height(bottom if top is None else top, y[1])])
    )


def cylinder(radius: float, y: Span, x: float = 0.0, z: float = 0.0) -> Manifold:
    """An upright cylinder."""
    return loft(y, disk(radius, x, z))


def box(x: Span, y: Span, z: Span, rounding: float = 0.0) -> Manifold:
    """An axis-aligned box; `rounding` is the radius of its edges and corners.

    The radius is limited to half the shortest side.
    """
    low, high = np.array([x, y, z], dtype=np.float64).T
    # not quite half a side: the hull of an exact half sphere degenerates
    rounding = min(rounding, (high - low).min() / 2 - 1e-4)
    signs = np.stack(np.meshgrid([-1, 1], [-1, 1], [-1, 1], indexing="ij"), axis=-1).reshape(
        -1, 1, 3
    )
    octant = np.zeros((1, 3)) if rounding <= 0 else _octant(_CORNER) * rounding
    half = (high - low) / 2 - max(rounding, 0)
    return hull(((half + octant) * signs).reshape(-1, 3) + (low + high) / 2)


def ellipsoid(radii: Sequence[float], center: Sequence[float]) -> Manifold:
    """An ellipsoid with axes along x, y and z."""
    from manifold3d import Manifold

    return Manifold.sphere(1.0, 24).scale(tuple(radii)).translate(tuple(center))


def lathe(profile: Sequence[Span] | np.ndarray) -> Manifold:
    """Turns the closed outline `profile` of (radius, y) corners about the y axis."""
    from manifold3d import CrossSection, FillRule

    outline = CrossSection([np.asarray(profile, dtype=np.float64)], FillRule.EvenOdd)
    return outline.revolve(SEGMENTS).rotate((-90, 0, 0))


def torus(radius: float, thickness: float, y: float) -> Manifold:
    """A horizontal ring about the y axis; `radius` is that of its centre line."""
    return lathe(_circle(12) * (thickness / 2) + [radius, y])


def extrude(outline: Sequence[Span] | np.ndarray, axis: str, span: Span) -> Manifold:
    """Extrudes a polygon along `axis`.

    Its corners are (z, y) for axis "x", (x, z) for "y" and (x, y) for "z".
    """
    from manifold3d import CrossSection, FillRule

    first, second, along = {"x": (2, 1, 0), "y": (0, 2, 1), "z": (0, 1, 2)}[axis]
    transform = np.zeros((3, 4))
    transform[first, 0] = transform[second, 1] = transform[along, 2] = 1
    transform[along, 3] = span[0]
    flat = CrossSection([np.asarray(outline, dtype=np.float64)], FillRule.EvenOdd)
    return flat.extrude(span[1] - span[0]).transform(transform)


def tube(path: np.ndarray, thickness: float) -> Manifold:
    """A round bar along `path` (K, 3), which lies in a plane of constant z and never turns back."""
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
    """The union of all parts."""
    from manifold3d import Manifold, OpType

    return Manifold.batch_boolean(list(parts), OpType.Add)


def both_sides(part: Manifold) -> list[Manifold]:
    """`part` and its mirror image at the plane x = 0."""
    return [part, part.mirror((1, 0, 0))]


def lean(part: Manifold, slope: float, y: float) -> Manifold:
    """Shears a part backwards: z falls by `slope` for each unit above height `y`, which stays."""
    shear = np.eye(3, 4)
    shear[2, 1], shear[2, 3] = -slope, slope * y
    return part.transform(shear)


def _leg_positions(count: int, half_x: float, half_z: float) -> list[tuple[float, float]]:
    """The (x, z) of four legs at the corners of a box, or of three with one in front."""
    if count == 3:
        return [(0.0, half_z), (-half_x, -half_z), (half_x, -half_z)]
    return [(sx * half_x, sz * half_z) for sx in (-1, 1) for sz in (-1, 1)]


def legs(
    count: int,
    round_legs: bool,
    thickness: float,
    splay: float,
    half_x: float,
    half_z: float,
    floor: float,
    top: float,
) -> list[Manifold]:
    """Legs from `top` down to `floor`; their feet stand `splay` times as far out as their tops."""
    ring = disk(thickness / 2, segments=20) if round_legs else rectangle(thickness, thickness)
    result = []
    for x, z in _leg_positions(count, half_x - thickness / 2, half_z - thickness / 2):
        result.append(loft((floor, top), ring + [x * splay, z * splay], ring + [x, z]))
    return result


def slab(shape: str, half_x: float, half_z: float, y: Span) -> Manifold:
    """A plate, "round" or square."""
    return loft(
        y, ellipse(half_x, half_z) if shape == "round" else rectangle(2 * half_x, 2 * half_z)
    )


def arc(center: Span, radii: Span, degrees: Span, count: int = 16) -> np.ndarray:
    """Points (count, 2) of an ellipse between two angles in degrees."""
    angle = np.radians(np.linspace(*degrees, count))
    return np.asarray(center) + np.stack([np.cos(angle), np.sin(angle)], axis=1) * radii


def _circle(segments: int) -> np.ndarray:
    angle = (np.arange(segments) + 0.5) * 2 * np.pi / segments
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


def _at_height(ring: Ring, y: float) -> np.ndarray:
    return np.stack([ring[:, 0], np.full(len(ring), y), ring[:, 1]], axis=1)


def _octant(n: int) -> np.ndarray:
    """Unit vectors (K, 3) with non-negative coordinates, on a regular subdivision."""
    corners = np.array(
        [(i, j, n - i - j) for i in range(n + 1) for j in range(n + 1 - i)], dtype=np.float64
    )
    return corners / np.linalg.norm(corners, axis=1, keepdims=True)
