"""Faces of triangle meshes turned so that neighbours agree which side is outside.

A patch is a set of faces connected across edges that exactly two of them share. Two neighbours
agree if they traverse the shared edge in opposite directions. Labels and normals are computed from
the winding of the faces, so a closed surface with some faces turned would read as a torn one.
"""

from __future__ import annotations

import igl
import numpy as np


def oriented(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Faces (F, 3) int64 in which the neighbours of each orientable patch agree, in the same order.

    Turns the faces of a patch that hold the smaller part of its area. Patches whose neighbours
    agree, and those that have no two sides (a Möbius strip), stay as they are. `vertices` is
    (V, 3) float64.
    """
    if len(_disputed(faces)) == 0:
        return faces
    coherent, patch = igl.bfs_orient(np.ascontiguousarray(faces))
    turned = (coherent != faces).any(axis=1)
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    area = np.linalg.norm(np.cross(b - a, c - a), axis=1)
    size = patch.max() + 1
    # the larger part of the area keeps its winding
    mostly = np.bincount(patch, area * turned, minlength=size) > np.bincount(
        patch, area * ~turned, minlength=size
    )
    turned ^= mostly[patch]
    result = np.where(turned[:, None], faces[:, ::-1], faces)
    one_sided = np.zeros(size, dtype=bool)
    one_sided[patch[_disputed(result)]] = True
    return np.where(one_sided[patch][:, None], faces, result)


def _disputed(faces: np.ndarray) -> np.ndarray:
    """Indices (K,) of a face at each edge that its two faces traverse in the same direction."""
    ends = np.stack([faces, np.roll(faces, -1, axis=1)], axis=-1).reshape(-1, 2)
    low, high = ends.min(axis=1), ends.max(axis=1)
    edge = low * (int(faces.max(initial=0)) + 1) + high
    order = np.argsort(edge)
    edge, upward = edge[order], (ends[:, 0] == low)[order]
    same = np.concatenate([[False], edge[1:] == edge[:-1], [False]])  # as the edge before
    pair = same[1:-1] & ~same[:-2] & ~same[2:]  # shared by two faces, no more
    return order[:-1][pair & (upward[1:] == upward[:-1])] // 3
