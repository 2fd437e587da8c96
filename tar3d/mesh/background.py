"""Finds what takes the place of the object in a mesh: a sky dome, a ground plane, a stray speck.

A file that holds a scene is centred and scaled like an object, so a background that is much larger
than the object takes the surface samples, and the object becomes a dot; a stray speck far away
makes it one too. Pieces are faces that share vertices. A piece is a background if it is at least
half as long as the mesh and either

    flat       thinner than FLAT times its span, as a ground plane or the wall of a sky box is
    enclosing  met far off by LEAST_SEEN of the rays from the middle of the rest

and what is left without the backgrounds spans less than SMALL_SPAN of the mesh. In seven of
3,003 game assets and everyday objects one is found, among them a fish in a bowl and a mouse on its
pad.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tar3d.contracts import CUBE_FILL
from tar3d.mesh.load import face_components

if TYPE_CHECKING:
    from tar3d.contracts import Mesh

FLAT = 0.01
LEAST_SEEN = 0.4
SMALL_SPAN = 0.35
STRAY = 0.02  # share of the samples at either end of an axis that may be a stray speck
LARGE_STRAY = 0.1  # the same of a stray part that makes the object a dot
DOT = 0.2  # share of the frame below which an object is one
LEAST_MIDDLE = 0.5  # `middle_span` of an object without stray parts
_SPANNING = 0.5  # share of the rest's span from which on a piece may be a background
_MOST_PIECES = 8  # backgrounds that are looked for: the six walls of a sky box, and two more
_RAYS = 512
_FAR = 1.5  # radii of the rest from which on a hit is far off


def scene_facts(mesh: Mesh, face: np.ndarray, points: np.ndarray) -> dict[str, float]:
    """How much of the samples a background takes, and how much of the frame the object spans.

    `points` (N, 3) are surface samples on the faces `face` (N,). `background_share` is that of the
    samples, `object_span` the length of the rest as a share of the mesh's.
    """
    marks, span = background_faces(mesh)
    return {
        "background_share": float(marks[face].mean()),
        "object_span": min(span, middle_span(points)[0]),
    }


def scene_note(mesh: Mesh | None, points: np.ndarray) -> str:
    """A clause on what makes the object small in the frame, "" where nothing does.

    `points` (N, 3) are surface samples of `mesh`, or a cloud's own where there is no mesh.
    """
    marks, span = background_faces(mesh) if mesh is not None else (np.zeros(0, bool), 1.0)
    if marks.any():
        return (
            "a flat or enclosing part, as a ground plane or a sky dome is, takes most of the frame "
            f"and the rest spans {span:.1%} of it: take that part out of the mesh"
        )
    span, _ = middle_span(points)
    if span >= LEAST_MIDDLE:
        return ""
    stray = "points" if mesh is None else "pieces"
    return (
        f"nearly all of the surface spans {span:.1%} of the frame, as stray {stray} lie far away: "
        "take them out of the file"
    )


def middle_span(points: np.ndarray) -> tuple[float, float]:
    """Length of the box of the middle points (N, 3) along each axis, and the share that they are.

    The length is a share of that of the frame. The middle leaves out STRAY of the points at either
    end, or LARGE_STRAY where the length then is below DOT; the two lengths are above 0.5 and 0.37
    for real meshes, and small where a few points, or parts too small for a point, lie far away.
    """
    for stray, most in ((LARGE_STRAY, DOT), (STRAY, 1.0)):
        middle = np.ptp(np.quantile(points, [stray, 1 - stray], axis=0), axis=0).max()
        span = min(1.0, float(middle) / (2 * CUBE_FILL))
        if span < most:
            break
    return span, 1 - 2 * stray


def background_faces(mesh: Mesh) -> tuple[np.ndarray, float]:
    """Marks (F,) of the faces of backgrounds, and the share of the mesh's span that the rest has.

    The span is the longest side of the bounding box. Without a background no face is marked, and
    the share is 1.
    """
    none = np.zeros(len(mesh.faces), dtype=bool), 1.0
    # Vertices without faces are pieces as well, and have numbers of their own.
    piece = np.unique(face_components(mesh.faces, len(mesh.vertices)), return_inverse=True)[1]
    if piece.max() == 0:
        return none
    low, high = _boxes(mesh, piece)  # (P, 3)
    rest = np.ones(len(low), dtype=bool)
    span = whole = float((high.max(axis=0) - low.min(axis=0)).max())
    for _ in range(_MOST_PIECES):
        spanning = np.flatnonzero(rest & ((high - low).max(axis=1) >= _SPANNING * span))
        found = next(
            (int(k) for k in spanning if _is_background(mesh, piece, int(k), rest, low, high)), None
        )
        if found is None:
            return none
        rest[found] = False
        if not rest.any():
            return none
        span = float((high[rest].max(axis=0) - low[rest].min(axis=0)).max())
        if span < SMALL_SPAN * whole:
            return ~rest[piece], span / whole
    return none


def _boxes(mesh: Mesh, piece: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The lowest and the highest corner (P, 3) of each piece's bounding box."""
    corners = mesh.vertices[mesh.faces]  # (F, 3, 3)
    order = np.argsort(piece, kind="stable")
    starts = np.flatnonzero(np.diff(piece[order], prepend=-1))
    low = np.minimum.reduceat(corners.min(axis=1)[order], starts)
    return low, np.maximum.reduceat(corners.max(axis=1)[order], starts)


def _is_background(
    mesh: Mesh, piece: np.ndarray, index: int, rest: np.ndarray, low: np.ndarray, high: np.ndarray
) -> bool:
    """Whether the piece `index` is flat, or encloses the others of `rest` (P,) bool."""
    faces = mesh.faces[piece == index]
    vertices = mesh.vertices[np.unique(faces)].astype(np.float64)
    vertices -= vertices.mean(axis=0)
    normal = np.linalg.svd(vertices.T @ vertices)[0][:, 2]
    if np.ptp(vertices @ normal) < FLAT * (high[index] - low[index]).max():
        return True
    others = rest.copy()
    others[index] = False
    if not others.any():
        return False
    low, high = low[others].min(axis=0), high[others].max(axis=0)
    return _seen_far_off(mesh, faces, (low + high) / 2, float(np.linalg.norm(high - low)) / 2)


def _seen_far_off(mesh: Mesh, faces: np.ndarray, middle: np.ndarray, radius: float) -> bool:
    """Whether LEAST_SEEN of the rays from `middle` (3,) meet `faces` beyond _FAR radii."""
    from embreex.mesh_construction import TriangleMesh
    from embreex.rtcore_scene import EmbreeScene

    scene = EmbreeScene()
    TriangleMesh(scene, mesh.vertices, faces.astype(np.int32))
    # directions spread evenly over the sphere (Fibonacci lattice)
    k = np.arange(_RAYS) + 0.5
    angle, height = k * np.pi * (3 - np.sqrt(5)), 1 - 2 * k / _RAYS
    across = np.sqrt(1 - height**2)
    rays = np.stack([across * np.cos(angle), across * np.sin(angle), height], axis=1)
    start = np.broadcast_to(middle.astype(np.float32), rays.shape)
    hits = scene.run(
        np.ascontiguousarray(start), rays.astype(np.float32), query="INTERSECT", output=True
    )
    distance = np.where(hits["primID"] >= 0, hits["tfar"], 0.0)
    return bool((distance > _FAR * radius).mean() >= LEAST_SEEN)
