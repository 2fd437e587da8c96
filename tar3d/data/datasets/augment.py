"""Augmentation of a shape's samples: scale along the axes, turn about y, mirror, normalise again.

Labels stay exact, because a point moves together with its label. Parts of the cube that the moved
old cube does not cover are outside, because the shape lies within the old cube; so the volume
points are uniform in the cube again. Normals are transformed by the inverse transpose.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tar3d.contracts import CUBE_FILL

if TYPE_CHECKING:
    from tar3d.config import AugmentConfig


def random_matrix(config: AugmentConfig, rng: np.random.Generator) -> np.ndarray:
    """A matrix (3, 3) that mirrors at x = 0, scales each axis, then turns about y (Y is up)."""
    mirror = -1.0 if rng.random() < config.mirror else 1.0
    low, high = config.scale
    scale = rng.uniform(low, high, size=3)
    angle = (
        rng.uniform(0, 2 * np.pi) if rng.random() < config.rotate else rng.integers(4) * np.pi / 2
    )
    if config.rotate == 0:
        angle = 0.0
    turn = np.array(
        [[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]]
    )
    return turn @ np.diag(scale * [mirror, 1.0, 1.0])


def augment(
    arrays: dict[str, np.ndarray], matrix: np.ndarray, volume_points: int, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Transforms samples by `matrix` (3, 3) and normalises them to the cube.

    `arrays` are surface (N, 6), points (M, 3), inside and is_near (M,), as are those returned.
    `volume_points` new volume points come first; near points that leave the cube are dropped.
    """
    surface = arrays["surface"].astype(np.float32)
    moved = surface[:, :3] @ matrix.T.astype(np.float32)
    low, high = moved.min(axis=0), moved.max(axis=0)
    scale = CUBE_FILL / ((high - low).max() / 2)
    linear = (matrix * scale).astype(np.float32)
    shift = (-(low + high) / 2 * scale).astype(np.float32)
    # rows times the inverse are columns times its transpose
    normals = surface[:, 3:] @ np.linalg.inv(matrix).astype(np.float32)
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)

    points = arrays["points"].astype(np.float32) @ linear.T + shift
    within = (np.abs(points) <= 1).all(axis=1)
    near = np.flatnonzero(arrays["is_near"] & within)
    stored = np.flatnonzero(~arrays["is_near"] & within)
    fresh = rng.uniform(-1, 1, size=(volume_points, 3)).astype(np.float32)
    before = (fresh - shift) @ np.linalg.inv(linear).T.astype(np.float32)
    known = (np.abs(before) <= 1).all(axis=1)
    replaced = stored[rng.choice(len(stored), int(known.sum()), replace=known.sum() > len(stored))]
    labels = np.zeros(volume_points, dtype=bool)
    fresh[known], labels[known] = points[replaced], arrays["inside"][replaced]
    is_near = np.arange(volume_points + len(near)) >= volume_points
    return {
        "surface": np.concatenate([(moved * scale + shift).clip(-1, 1), normals], axis=1).astype(
            np.float16
        ),
        "points": np.concatenate([fresh, points[near]]),
        "inside": np.concatenate([labels, arrays["inside"][near]]),
        "is_near": is_near,
        "transform": arrays["transform"],
    }
