"""Faces of triangle meshes turned so that neighbours agree which side is outside.

A patch is a set of faces connected across edges that exactly two of them share. Two neighbours
agree if they traverse the shared edge in opposite directions. Labels and normals are computed from
the winding of the faces, so a closed surface with some faces turned would read as a torn one.
"""

from __future__ import annotations

import igl
import numpy as np

# Largest share of a patch's area that is turned where the patch meets others at edges of three or
# more faces: which of its sides is outside depends on those others, so only a clear majority counts
CLEAR_MINORITY = 0.2


def oriented(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Faces (F, 3) int64 in which the neighbours of each orientable patch agree, in the same order.

    Turns the faces of a patch that hold the smaller part of its area. Patches stay as they are if
    their neighbours agree, if they have no two sides (a Möbius strip), and if more than
    CLEAR_MINORITY of one that meets others would turn. `vertices` is (V, 3) float64.
    """
    disputed, crossing = _odd_edges(faces)
    if len(disputed) == 0:
        return faces
    coherent, patch = igl.bfs_orient(np.ascontiguousarray(faces))
    turned = (coherent != faces).any(axis=1)
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    area = np.linalg.norm(np.cross(b - a, c - a), axis=1)
    size = patch.max() + 1
    total, share = (np.bincount(patch, weight, minlength=size) for weight in (area, area * turned))
    turned ^= (2 * share > total)[patch]
    share = np.minimum(share, total - share)
    result = np.where(turned[:, None], faces[:, ::-1], faces)
    kept = np.zeros(size, dtype=bool)
    kept[patch[crossing]] = True
    kept &= share > CLEAR_MINORITY * total
    kept[patch[_odd_edges(result)[0]]] = True
    return np.where(kept[patch][:, None], faces, result)


def _odd_edges(faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices of faces at odd edges, some of them repeated.

    The first (K,) have one face of each two that traverse their edge in the same direction, the
    second (L,) all faces at edges of three or more.
    """
    ends = np.stack([faces, np.roll(faces, -1, axis=1)], axis=-1).reshape(-1, 2)
    low, high = ends.min(axis=1), ends.max(axis=1)
    edge = low * (int(faces.max(initial=0)) + 1) + high
    order = np.argsort(edge)
    starts = np.flatnonzero(np.diff(edge[order], prepend=-1))
    count = np.diff(starts, append=len(order))
    upward = (ends[:, 0] == low)[order]
    pair = starts[count == 2]
    disputed = order[pair[upward[pair] == upward[pair + 1]]]
    return disputed // 3, order[np.repeat(count > 2, count)] // 3
