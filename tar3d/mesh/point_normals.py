"""Normals of a point cloud: estimation, orientation, and checks of given normals and points.

A normal's line is the direction in which the nearest points spread least (Hoppe et al. 1992,
"Surface Reconstruction from Unorganized Points"). Its sign follows from visibility: the cloud is
viewed from all sides, and a point with nothing in front of it votes for the normal that faces the
viewer. The votes then spread between neighbours that lie in each other's tangent plane, so that the
inside of a vase takes its sign from its visible part, and the two sides of a plate do not mix.
Propagation along a spanning tree, the usual way, flips half of a shape wherever it once jumps from
one side of a thin part to the other: on 75 real meshes, 8,192 points on each, 75 % of its normals
are right, of these 92 %.

The wall of a hidden cavity looks like a solid of its own, and is oriented as one. The sides of a
plate thinner than the distance between points are not reliable.
"""

from __future__ import annotations

import numpy as np
from scipy.sparse import coo_array, csr_array, diags_array
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import cg
from scipy.spatial import cKDTree

from tar3d.mesh.load import blocks

NEIGHBOURS = 12  # nearest points that a normal is fitted to and linked with
VIEWS = 64  # directions of view
# side of a pixel of a view, in typical distances to the fifth nearest point: about one pixel in 500
# has a hole
_CELL = 2.0
_DEPTH = 0.05  # visible distance behind the foremost point's tangent plane, in pixels
_FACING = 0.3  # least |cosine| to the viewer of a point that votes; a grazing view says little
_LINK_SINE = 0.1  # sine of the angle to each other's tangent plane at which links grow weak
_MIN_LINK = 1e-3
_MAX_PIXELS = 2048  # along an axis of a view
_POINTS_CHECKED = 20_000  # points by which a cloud as a whole is checked
_POINTS_AT_ONCE = 1 << 16


def estimate_normals(points: np.ndarray) -> np.ndarray:
    """Unit normals (N, 3) float64 of `points` (N, 3), all different, N > 12.

    They point outward where that can be seen.
    """
    points = np.asarray(points, dtype=np.float64)
    distance, nearest = cKDTree(points).query(points, NEIGHBOURS + 1)
    nearest = nearest[:, 1:]
    normals = np.concatenate(
        [_least_spread(points[nearest[part]]) for part in blocks(len(points), _POINTS_AT_ONCE)]
    )
    links = _links(points, normals, nearest)
    votes = _votes_with_hidden(points, normals, links, _pixel(distance[:, 5]))
    total = np.asarray(abs(links).sum(axis=1)).ravel()
    system = diags_array(np.abs(votes) + 1e-6 + total) - links
    # an inexact solution is spread well enough, because only the sign is used
    sign, _ = cg(system, votes, rtol=1e-5, maxiter=1000, M=diags_array(1 / system.diagonal()))
    return np.where(sign < 0, -1.0, 1.0)[:, None] * normals


def outward_share(points: np.ndarray, normals: np.ndarray) -> float:
    """Share in [0, 1] of the visible points (N, 3) whose normal (N, 3) faces the viewer.

    It is about 1 for outward normals, and 0 for inward ones.
    """
    step = -(-len(points) // _POINTS_CHECKED)
    points, normals = (np.asarray(a[::step], dtype=np.float64) for a in (points, normals))
    distance = cKDTree(points).query(points, 6)[0][:, 5]
    votes = _votes(points, normals, _pixel(distance))
    return float(votes.clip(0).sum() / np.abs(votes).sum())


def unevenness(points: np.ndarray) -> float:
    """Standard deviation of the logarithm of the distance to the eighth nearest point.

    It is 0.2 for `points` (N, 3) uniform over a surface.
    """
    step = -(-len(points) // _POINTS_CHECKED)
    distance = cKDTree(points).query(points[::step], 9)[0][:, 8]
    return float(np.log(distance.clip(np.finfo(float).tiny)).std())


def _least_spread(around: np.ndarray) -> np.ndarray:
    """The unit directions (M, 3) in which M groups of points (M, K, 3) spread least."""
    around = around - around.mean(axis=1, keepdims=True)
    return np.linalg.eigh(np.einsum("mki,mkj->mij", around, around))[1][:, :, 0]


def _pixel(distance: np.ndarray) -> float:
    """The side of a pixel, from each point's distance (N,) to the fifth nearest."""
    return _CELL * float(np.median(distance))


def _links(points: np.ndarray, normals: np.ndarray, nearest: np.ndarray) -> csr_array:
    """Weights (N, N) of the links between neighbours, symmetric, in [-1, 1].

    A weight is negative where the normals are opposite. `nearest` (N, K) are indices of points.
    """
    count, k = nearest.shape
    start, end = np.repeat(np.arange(count), k), nearest.ravel()
    along = points[end] - points[start]
    along /= np.maximum(np.linalg.norm(along, axis=1, keepdims=True), np.finfo(float).tiny)
    cosine = np.einsum("ij,ij->i", normals[start], normals[end])
    out_of_plane = np.maximum(
        *(np.abs(np.einsum("ij,ij->i", along, normals[of])) for of in (start, end))
    )
    weight = np.sign(cosine) * cosine**4 * np.exp(-((out_of_plane / _LINK_SINE) ** 2))
    strong = np.abs(weight) > _MIN_LINK
    links = coo_array((weight[strong], (start[strong], end[strong])), shape=(count, count)).tocsr()
    return (links + links.T) / 2


def _votes_with_hidden(
    points: np.ndarray, normals: np.ndarray, links: csr_array, pixel: float
) -> np.ndarray:
    """`_votes`, where pieces that are hidden vote again without the pieces that hide them."""
    piece = connected_components(abs(links), directed=False)[1]
    size = np.bincount(piece)
    votes, hidden = np.zeros(len(points)), np.arange(len(points))
    while len(hidden) > 0:
        votes[hidden] = _votes(points[hidden], normals[hidden], pixel)
        unseen = np.bincount(piece, np.abs(votes)) < 1e-3 * size
        remaining = hidden[unseen[piece[hidden]]]
        if len(remaining) == len(hidden):
            break
        hidden = remaining
    return votes


def _votes(points: np.ndarray, normals: np.ndarray, pixel: float) -> np.ndarray:
    """Votes (N,): means over all views of a normal's cosine to the viewer, 0 where it is not seen.

    A vote is negative where the normal points away from the viewers that see it. `pixel` is the
    side of a pixel of a view.
    """
    votes = np.zeros(len(points))
    low, high = points.min(axis=0), points.max(axis=0)
    pixel = max(pixel, float(np.linalg.norm(high - low)) / _MAX_PIXELS)
    for view in _directions(VIEWS):
        right = np.cross(view, np.eye(3)[np.abs(view).argmin()])
        right /= np.linalg.norm(right)
        plane = points @ np.stack([right, np.cross(view, right)], axis=1)
        depth = points @ view  # larger is nearer
        cell = ((plane - plane.min(axis=0)) / pixel).astype(np.int64)
        cell = cell[:, 0] * (cell[:, 1].max() + 1) + cell[:, 1]
        order = depth.argsort()
        foremost = np.zeros(cell.max() + 1, dtype=np.int64)
        foremost[cell[order]] = order  # the last one written stays
        front = foremost[cell]
        cosine = normals @ view
        tangent = np.sqrt((1 - cosine**2).clip(0)) / np.maximum(np.abs(cosine), 1e-6)
        # the depth that its own tangent plane gains up to the foremost point of the pixel
        reach = tangent * np.linalg.norm(plane[front] - plane, axis=1)
        visible = (depth[front] - depth <= reach + _DEPTH * pixel) & (np.abs(cosine) > _FACING)
        votes += np.where(visible, cosine, 0)
    return votes / VIEWS


def _directions(count: int) -> np.ndarray:
    """Unit vectors (count, 3) spread evenly over the sphere, along a spiral."""
    step = np.arange(count) + 0.5
    height, angle = 1 - 2 * step / count, np.pi * (1 + 5**0.5) * step
    radius = np.sqrt(1 - height**2)
    return np.stack([radius * np.cos(angle), height, radius * np.sin(angle)], axis=1)
