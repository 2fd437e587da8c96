"""Generalized winding numbers of triangle meshes (Jacobson et al. 2013), counted along rays.

Every mesh becomes closed when its holes are covered: each loop of boundary edges gets a lid, a cone
from the loop to its middle. The winding number of a closed mesh is a whole number, the signed count
of the faces that a ray to infinity passes. So

    w(x) = crossings of the ray from x with mesh and lids - winding number of the lids at x

for holes, soups and inverted parts alike. The lids have few faces, if any; their winding number is
a sum over them, approximated with a tree (Barill et al. 2018, "Fast Winding Numbers for Soups and
Clouds"). A mesh that is mostly boundary is summed whole.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import igl
import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from tar3d.mesh.load import blocks

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tar3d.contracts import Mesh

FACES_OF_A_TREE = 1 << 22  # bounds the memory of a search tree to 1 GB
LARGEST_BOUNDARY = 1.0  # boundary edges per face, above which the lids outnumber the mesh's faces
PAIRS_AT_ONCE = 1 << 16  # points x faces that stay in the cache
# A ray along a coordinate axis would run inside walls and through vertices of typical models, so
# rays run along the third column of an arbitrary rotation.
_ROTATION = np.linalg.qr(np.array([[0.61, -0.34, 0.72], [0.27, 0.93, 0.21], [-0.74, 0.08, 0.66]]))[
    0
]
RAY = _ROTATION[:, 2]
BESIDE = 1e-4  # distance from the surface at which its two sides are evaluated, in the cube's unit


class WindingNumber:
    """The winding number of one mesh, or of its faces `chosen` (F,) bool, as a function of points.

    It is 1 inside a closed outward surface, 0 outside, -1 inside an inverted one, 2 where two
    overlap, a fraction near holes. The parts that do not depend on the points are prepared once.
    """

    def __init__(self, mesh: Mesh, chosen: np.ndarray | None = None) -> None:
        vertices = mesh.vertices.astype(np.float64)
        faces = mesh.faces if chosen is None else mesh.faces[chosen]
        edges, excess = unbalanced_edges(faces)
        self.closed = len(edges) == 0
        self._summed = len(faces) == 0 or excess.sum() > LARGEST_BOUNDARY * len(faces)
        if self._summed:
            self._vertices, self._lids = vertices, faces
        else:
            self._vertices, self._lids = (
                _lids(vertices, edges, excess) if len(edges) else (vertices, faces[:0])
            )
            self._rays = Rays(self._vertices, np.concatenate([faces, self._lids]))

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """Winding numbers (M,) float64 at `points` (M, 3)."""
        points = np.ascontiguousarray(points, dtype=np.float64)
        if self._summed:
            return self._lid_winding(points)
        return self._rays.crossings(points)[0] - self._lid_winding(points)

    def sides(self, points: np.ndarray, normals: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Winding numbers (M,) right above and right below the surface.

        `points` (M, 3) are on the surface, and `normals` (M, 3) point above it.
        """
        points = np.ascontiguousarray(points, dtype=np.float64)
        if self._summed:
            above = self._lid_winding(points + BESIDE * normals)
            return above, self._lid_winding(points - BESIDE * normals)
        after, before = self._rays.crossings(points, BESIDE)
        up = normals @ RAY >= 0
        lids = self._lid_winding(points)
        return np.where(up, after, before) - lids, np.where(up, before, after) - lids

    def _lid_winding(self, points: np.ndarray) -> np.ndarray:
        if len(self._lids) == 0:
            return np.zeros(len(points))
        return tree_sum(self._vertices, self._lids, points)


def _lids(
    vertices: np.ndarray, edges: np.ndarray, excess: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The faces that close the boundary `edges` (K, 2), and the vertices with those they need.

    Each loop of edges gets a vertex in its middle, and for each edge as many faces from there as
    its `excess` (K,).
    """
    ends, index = np.unique(edges, return_inverse=True)
    index = index.reshape(-1, 2)
    graph = coo_array(
        (np.ones(len(edges), dtype=bool), (index[:, 0], index[:, 1])), shape=(len(ends), len(ends))
    )
    loops, loop = connected_components(graph, directed=False)
    middle: np.ndarray = np.stack(
        [np.bincount(loop, vertices[ends, k], minlength=loops) for k in range(3)], axis=1
    )
    middle = middle / np.bincount(loop, minlength=loops)[:, None]
    apex = len(vertices) + loop[index[:, :1]]
    lids = np.repeat(np.concatenate([edges[:, ::-1], apex], axis=1), excess, axis=0)
    return np.concatenate([vertices, middle]), lids


def unbalanced_edges(faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Edges (K, 2) that faces (F, 3) traverse more often in one direction, and the excess (K,) > 0.

    With K = 0 the mesh has no boundary, and its winding number is a whole number everywhere off the
    surface.
    """
    ends = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    low, high = ends.min(axis=1), ends.max(axis=1)
    size = int(faces.max(initial=0)) + 1
    keys, inverse = np.unique(low * size + high, return_inverse=True)
    excess = np.bincount(inverse, np.where(ends[:, 0] == low, 1, -1)).astype(np.int64)
    keys, excess = keys[excess != 0], excess[excess != 0]
    edges = np.stack([keys // size, keys % size], axis=1)
    return np.where(excess[:, None] > 0, edges, edges[:, ::-1]), np.abs(excess)


def tree_sum(vertices: np.ndarray, faces: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Winding numbers (M,) as a sum over the faces, far ones grouped.

    They are right to about 0.01 off the surface.
    """
    total = np.zeros(len(points))
    for part in blocks(len(faces), FACES_OF_A_TREE):
        total += igl.fast_winding_number(vertices, faces[part], points)
    return total


class Rays:
    """Parallel rays through `faces` (F, 3) of `vertices` (V, 3).

    Faces and points are projected along the rays onto a plane that is cut into squares; a point is
    compared with the faces of its square. The side of an edge that a point lies on is computed
    from the edge alone, the same for both of its faces, so a ray neither slips between two faces
    nor counts both.
    """

    def __init__(self, vertices: np.ndarray, faces: np.ndarray) -> None:
        rotated = vertices @ _ROTATION
        flat, height = rotated[:, :2], rotated[:, 2]
        self._low = flat.min(axis=0)
        self._side = int(np.clip(2 * np.sqrt(len(faces)), 128, 1024))
        self._scale = self._side / (flat.max(axis=0) - self._low).max()
        self._top = height.max()
        self._begin, self._listed = _faces_of_squares(
            (flat - self._low) * self._scale, faces, self._side
        )
        self._edges, self._reversed = _edge_lines(flat, faces)
        self._planes = _planes(np.concatenate([flat, height[:, None]], axis=1)[faces])

    def crossings(self, points: np.ndarray, beside: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
        """Signed numbers of faces that the rays from `points` (M, 3) pass.

        A face passed outward counts 1, inward -1. Returns (M,) int64 for rays that start `beside`
        after the point, and for rays that start as much before it.
        """
        rotated = points @ _ROTATION
        square = np.floor((rotated[:, :2] - self._low) * self._scale).astype(np.int64)
        in_plane = ((square >= 0) & (square < self._side)).all(axis=1)
        rows = np.flatnonzero(in_plane & (rotated[:, 2] - beside < self._top))
        square = square[rows, 0] * self._side + square[rows, 1]
        by_square = np.argsort(square, kind="stable")
        rows, square = rows[by_square], square[by_square]
        x, y, z = rotated[rows].T
        num_faces = self._begin[square + 1] - self._begin[square]
        pairs = np.concatenate([[0], np.cumsum(num_faces)])
        after, before = np.zeros(len(points), dtype=np.int64), np.zeros(len(points), dtype=np.int64)
        for start, stop in _groups(pairs):
            point = np.repeat(np.arange(start, stop), num_faces[start:stop])
            face = self._listed[
                np.arange(pairs[start], pairs[stop]) - pairs[point] + self._begin[square[point]]
            ]
            # a ray meets a face if it is on one side of all its edges; most fail at the second edge
            left = self._is_left(0, face, x[point], y[point])
            for k in (1, 2):
                same = np.flatnonzero(left == self._is_left(k, face, x[point], y[point]))
                point, face, left = point[same], face[same], left[same]
            a, b, c = self._planes[:, face]
            height = a * x[point] + b * y[point] + c - z[point]
            sign = np.where(left, 1.0, -1.0)
            for count, passed in ((after, height > beside), (before, height > -beside)):
                found = np.bincount(point[passed] - start, sign[passed], minlength=stop - start)
                count[rows[start:stop]] = found.astype(np.int64)
        return after, before

    def _is_left(self, k: int, face: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Marks (n,) of the points that lie to the left of edge `k` of their `face` (n,)."""
        a, b, c = self._edges[k]
        return (a[face] * y - b[face] * x + c[face] >= 0) ^ self._reversed[k][face]


def _groups(ends: np.ndarray) -> Iterator[tuple[int, int]]:
    """Runs start..stop of items with about PAIRS_AT_ONCE pairs each.

    Item i has the pairs ends[i] up to ends[i + 1] - 1.
    """
    start, last = 0, len(ends) - 1
    while start < last:
        stop = max(
            start + 1, int(np.searchsorted(ends, ends[start] + PAIRS_AT_ONCE, side="right")) - 1
        )
        yield start, stop
        start = stop


def _edge_lines(flat: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The lines (3, 3, F) of each face's edges, from lower to higher vertex.

    Also marks (3, F) of the edges that the face traverses the other way.
    """
    first, last = faces.T, np.roll(faces.T, -1, axis=0)  # (3, F)
    a, b = flat[np.minimum(first, last)], flat[np.maximum(first, last)]  # (3, F, 2)
    d = b - a
    return np.stack(
        [d[..., 0], d[..., 1], d[..., 1] * a[..., 0] - d[..., 0] * a[..., 1]], axis=1
    ), first > last


def _planes(corners: np.ndarray) -> np.ndarray:
    """Corners (F, 3, 3) -> a, b, c (3, F): the height of each face is a x + b y + c."""
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    steep = normal[:, 2] == 0  # parallel to the rays: none passes it
    a, b = -normal[:, :2].T / np.where(steep, 1.0, normal[:, 2])
    return np.stack([a, b, corners[:, 0, 2] - a * corners[:, 0, 0] - b * corners[:, 0, 1]])


def _faces_of_squares(
    flat: np.ndarray, faces: np.ndarray, side: int
) -> tuple[np.ndarray, np.ndarray]:
    """The faces of all squares in one list, and where those of each square begin (side^2 + 1,).

    `flat` (V, 2) is in units of a square. A face is listed in all squares that it may touch.
    """
    corner = flat[faces]  # (F, 3, 2)
    first = np.clip(np.floor(corner.min(axis=1)).astype(np.int64), 0, side - 1)
    size = np.clip(np.floor(corner.max(axis=1)).astype(np.int64), 0, side - 1) - first + 1
    ends = np.concatenate([[0], np.cumsum(size[:, 0] * size[:, 1])])
    edge = np.roll(corner, -1, axis=1) - corner  # (F, 3, 2), from each corner to the next
    across = np.roll(corner, 1, axis=1) - corner  # vector to the corner opposite the edge
    edge *= np.sign(edge[..., 0] * across[..., 1] - edge[..., 1] * across[..., 0])[..., None]
    # distance, in units of the edge test, from a square's centre to its outermost corner
    reach = np.abs(edge).sum(axis=2) / 2 + 1e-6
    squares, owners = [], []
    for start, stop in _groups(ends):
        face = np.repeat(np.arange(start, stop), (ends[1:] - ends[:-1])[start:stop])
        index = np.arange(ends[start], ends[stop]) - ends[face]
        column = first[face, 0] + index // size[face, 1]
        row = first[face, 1] + index % size[face, 1]
        touched = np.ones(len(face), dtype=bool)
        for k in range(3):
            d, a = edge[face, k], corner[face, k]
            side_of_edge = d[:, 0] * (row + 0.5 - a[:, 1]) - d[:, 1] * (column + 0.5 - a[:, 0])
            touched &= side_of_edge >= -reach[face, k]
        squares.append((column * side + row)[touched])
        owners.append(face[touched])
    square, owner = np.concatenate(squares), np.concatenate(owners)
    begin = np.concatenate([[0], np.cumsum(np.bincount(square, minlength=side * side))])
    return begin, owner[np.argsort(square, kind="stable")]
