"""Polygons of a mesh file -> triangles, with the checks that every format shares.

A polygon with few corners may be concave, repeat corners, or have three of them on a line. Convex
ones become a fan. Concave ones are cut in the plane that fits them best (Newell's normal) by
manifold3d's ear clipping, which also takes holes joined to the outline by a bridge. A polygon of n
corners always gives n - 2 triangles that use all of them, so that neighbours stay connected.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

_FLAT = 1e-6  # least sine of the angle at a reflex corner
_CORNERS_AT_ONCE = 1 << 20


def check_polygons(
    vertices: np.ndarray,
    corners: np.ndarray,
    counts: np.ndarray,
    polygon_name: Callable[[int], str],
    vertex_name: Callable[[int], str],
) -> None:
    """Raises ValueError for corners that are no vertex, or whose vertex is not finite.

    The names of a polygon and a vertex in the file ("line 7") begin the messages.
    """
    wrong = (corners < 0) | (corners >= len(vertices))
    if wrong.any():
        at = int(wrong.argmax())
        polygon = int(np.searchsorted(np.cumsum(counts), at, side="right"))
        raise ValueError(
            f"{polygon_name(polygon)}: a face refers to vertex {corners[at]}, but the vertices are "
            f"0 to {len(vertices) - 1}"
        )
    wrong = ~np.isfinite(vertices).all(axis=1)
    if wrong.any() and (used := wrong[corners]).any():
        vertex = int(corners[used.argmax()])
        position = " ".join(f"{v:g}" for v in vertices[vertex])
        raise ValueError(
            f"{vertex_name(vertex)}: a vertex has NaN or infinite coordinates ({position})"
        )


def triangles(
    vertices: np.ndarray, corners: np.ndarray, counts: np.ndarray, *, in_order: bool = False
) -> np.ndarray:
    """Triangles (F, 3) of polygons over finite vertices (V, 3).

    `corners` holds the vertices of all polygons one after another, `counts` (P,) how many each has;
    those with fewer than 3 have no area and are left out. The triangles stand in the order of the
    polygons with `in_order`. Otherwise triangles come first, then the first half of each
    quadrangle, then the second half of each, then the rest: samples drawn from a mesh depend on
    its order, and this one has been kept from the start.
    """
    starts = np.cumsum(counts) - counts
    starts, counts = starts[counts >= 3], counts[counts >= 3]
    extra = counts - 2
    polygon = np.repeat(np.arange(len(counts)), extra)
    first_face = np.cumsum(extra) - extra
    step = np.arange(len(polygon)) - np.repeat(first_face, extra)
    faces = np.stack([np.zeros_like(step), step + 1, step + 2], axis=1)
    faces[(counts[polygon] == 4) & (step == 1)] = (2, 3, 0)
    for count in np.unique(counts[counts > 3]):
        for polygons, local in _concave(vertices, corners, starts, counts, int(count)):
            faces[first_face[polygons] + np.arange(count - 2)] = local
    faces = corners[faces + starts[polygon][:, None]]
    if in_order:
        return faces
    place = np.where(counts[polygon] == 4, 1 + step, np.where(counts[polygon] == 3, 0, 3))
    return faces[np.argsort(place, kind="stable")]


def _concave(
    vertices: np.ndarray, corners: np.ndarray, starts: np.ndarray, counts: np.ndarray, count: int
) -> list[tuple[int, np.ndarray]]:
    """The polygons of `count` corners that are no fan, each with its triangles (count - 2, 3)."""
    from manifold3d import triangulate

    found = []
    chosen = np.flatnonzero(counts == count)
    size = max(1, _CORNERS_AT_ONCE // count)
    for polygons in (chosen[i : i + size] for i in range(0, len(chosen), size)):
        points = vertices[corners[starts[polygons][:, None] + np.arange(count)]]
        points, normal, reflex = _reflex_corners(points)
        if count == 4:
            # the diagonal through a single reflex corner; the fan has the one from corner 0 to 2
            other = (reflex.sum(axis=1) == 1) & (reflex[:, 1] | reflex[:, 3])
            found += [(int(p), np.array([[0, 1, 3], [1, 2, 3]])) for p in polygons[other]]
            continue
        for i in np.flatnonzero(reflex.any(axis=1)):
            across = np.cross(normal[i], np.eye(3)[np.abs(normal[i]).argmin()])
            plane = np.stack([across, np.cross(normal[i], across)], axis=1)
            local = triangulate([points[i] @ plane])
            if len(local) == count - 2:
                found.append((int(polygons[i]), local))
    return found


def _reflex_corners(points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Polygons (M, n, 3) -> their points scaled to 1, unit normals (M, 3), reflex corners (M, n).

    All corners of a polygon count as reflex where it winds more than once, and, above 4 corners,
    where a corner is repeated, which hides its angle. A polygon without area has none.
    """
    points = points - points.mean(axis=1, keepdims=True)
    largest = np.abs(points).max(axis=(1, 2), keepdims=True)
    points = points / np.where(largest > 0, largest, 1.0)
    following = np.roll(points, -1, axis=1)
    normal = np.cross(points, following).sum(axis=1)
    length = np.linalg.norm(normal, axis=1)
    normal = normal / np.where(length > 0, length, 1.0)[:, None]
    leaving = following - points
    arriving = np.roll(leaving, 1, axis=1)
    sine = np.einsum("mni,mi->mn", np.cross(arriving, leaving), normal)
    lengths = np.linalg.norm(leaving, axis=2)
    reflex = sine < -_FLAT * lengths * np.roll(lengths, 1, axis=1)
    if points.shape[1] > 4:
        turn = np.arctan2(sine, np.einsum("mni,mni->mn", arriving, leaving)).sum(axis=1)
        irregular = (turn > 3 * np.pi) | (lengths == 0).any(axis=1)
        reflex |= (irregular & (length > 0))[:, None]
    return points, normal, reflex
