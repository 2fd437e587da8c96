"""Alignments: the matrix that moves a prediction onto the truth before it is scored.

none        the prediction stays where it is (the default everywhere)
bbox        translation and one scale factor: bounding boxes share centre and longest side
icp         rotation and translation: iterative closest point (Besl and McKay 1992)
rot24+icp   bbox after each of the 24 rotations that map a cube onto itself; from the one with
            the least Chamfer distance, icp that may also scale, because the box of a shape that
            is turned a little is no measure of its size
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np
import trimesh
from scipy.spatial import cKDTree

from tar3d.config import ALIGNMENTS
from tar3d.metrics.geometry import surface_cloud, transformed
from tar3d.metrics.volumes import bounding_box

if TYPE_CHECKING:
    from tar3d.contracts import Mesh

ICP_POINTS = 4096
COARSE_POINTS = 1024  # enough to tell rotations by 90 degrees apart


def alignment(pred: Mesh, truth: Mesh, method: str, seed: int = 0) -> np.ndarray:
    """The matrix (4, 4) that moves `pred` onto `truth`; the same seed gives the same matrix.

    Raises ValueError for a `method` that is not in ALIGNMENTS.
    """
    if method not in ALIGNMENTS:
        raise ValueError(f"alignment {method!r} is not known, allowed are {', '.join(ALIGNMENTS)}")
    if method == "none":
        return np.eye(4)
    if method == "bbox":
        return _box_onto_box(pred, truth)
    if method == "icp":
        return _icp(pred, truth, seed, scale=False)
    start = _best_rotation(pred, truth, seed)
    return _icp(transformed(pred, start), truth, seed, scale=True) @ start


def cube_rotations() -> list[np.ndarray]:
    """The 24 rotations (3, 3) that map a cube onto itself, the identity first."""
    signed = [
        np.eye(3)[list(order)] * np.array(signs)[:, None]
        for order in itertools.permutations(range(3))
        for signs in itertools.product((1, -1), repeat=3)
    ]
    return [matrix for matrix in signed if np.linalg.det(matrix) > 0]


def _box_onto_box(pred: Mesh, truth: Mesh) -> np.ndarray:
    (low_p, high_p), (low_t, high_t) = bounding_box(pred), bounding_box(truth)
    matrix = np.eye(4)
    matrix[:3, :3] *= (high_t - low_t).max() / (high_p - low_p).max()
    matrix[:3, 3] = (low_t + high_t) / 2 - matrix[:3, :3] @ (low_p + high_p) / 2
    return matrix


def _best_rotation(pred: Mesh, truth: Mesh, seed: int) -> np.ndarray:
    cloud_p, cloud_t = (
        surface_cloud(m, COARSE_POINTS, (seed, k))[:, :3] for k, m in enumerate((pred, truth))
    )
    tree_t, best, least = cKDTree(cloud_t), np.eye(4), np.inf
    for rotation in cube_rotations():
        rotated = np.eye(4)
        rotated[:3, :3] = rotation
        matrix = _box_onto_box(transformed(pred, rotated), truth) @ rotated
        moved = cloud_p @ matrix[:3, :3].T + matrix[:3, 3]
        distance = tree_t.query(moved)[0].mean() + cKDTree(moved).query(cloud_t)[0].mean()
        # on ties within rounding the first one counts
        if distance < least - 1e-12:
            best, least = matrix, distance
    return best


def _icp(pred: Mesh, truth: Mesh, seed: int, scale: bool) -> np.ndarray:
    cloud_p, cloud_t = (
        surface_cloud(m, ICP_POINTS, (seed, k))[:, :3] for k, m in enumerate((pred, truth))
    )
    return trimesh.registration.icp(
        cloud_p, cloud_t, threshold=1e-7, max_iterations=100, reflection=False, scale=scale
    )[0]
