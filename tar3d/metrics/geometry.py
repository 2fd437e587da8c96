"""How close a mesh is to the true one: Chamfer distance, F-score and volume IoU, in numpy.

Chamfer numbers mean nothing without their convention, so `PROTOCOL` is printed beside every score. Both meshes are
compared where they stand, apart from one common scaling: nothing is aligned. Predicted and true surface are sampled
independently, so even a perfect prediction scores `fscore_floor`, not 0; print that beside the score as well. It is no
detail: with 16,000 points, a sphere that fills the cube cannot exceed F@0.02 = 0.80, a cube 0.57 (0.995 with 100,000).
Refused: empty point sets, NaN or infinite coordinates, thresholds that are not positive.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

from tar3d.contracts import Mesh
from tar3d.mesh.points import inside, sample_surface

PROTOCOL = """\
chamfer          = (mean_p d(p, T) + mean_t d(t, P)) / 2, d the Euclidean distance to the nearest point, not squared
chamfer_squared  = mean_p d(p, T)^2 + mean_t d(t, P)^2
precision@tau    = share of p with d(p, T) < tau;  recall@tau = share of t with d(t, P) < tau
fscore@tau       = 2 precision recall / (precision + recall), 0 where both are 0
points           = P and T drawn independently and uniformly by area from each surface, 16,000 each unless stated
unit             = both meshes scaled alike so that the longest side of the TRUE mesh's bounding box is 2, as in a cube from
                   -1 to 1; distances and tau are in that unit; no alignment
floor            = the true mesh against a second sampling of itself: no prediction can be expected to score better
volume IoU       = |inside both| / |inside either|, counted on uniform points in the box that holds both meshes;
                   inside means |generalised winding number| > 0.5"""


@dataclass(frozen=True)
class GeometryScores:
    """Distances in the unit of the points given; precision, recall and F-score in [0, 1], by threshold."""

    chamfer: float
    chamfer_squared: float
    precision: dict[float, float]
    recall: dict[float, float]
    fscore: dict[float, float]


def surface_points(mesh: Mesh, count: int, seed: int | Sequence[int]) -> np.ndarray:
    """(count, 3) points, uniform by area, in the mesh's own frame."""
    return sample_surface(mesh, count, np.random.default_rng(seed))[:, :3]


def chamfer_and_fscore(
    pred_points: np.ndarray, true_points: np.ndarray, thresholds: Sequence[float] = (0.02,)
) -> GeometryScores:
    """Scores of (N, 3) predicted against (M, 3) true points as they are, after `PROTOCOL` but without its scaling."""
    pred, true = _points(pred_points, "predicted"), _points(true_points, "true")
    if any(not tau > 0 for tau in thresholds):
        raise ValueError(f"F-score thresholds must be positive, got {tuple(thresholds)}")
    to_true = cKDTree(true).query(pred)[0]  # (N,)
    to_pred = cKDTree(pred).query(true)[0]  # (M,)
    precision = {float(tau): float((to_true < tau).mean()) for tau in thresholds}
    recall = {float(tau): float((to_pred < tau).mean()) for tau in thresholds}
    return GeometryScores(
        chamfer=float(to_true.mean() + to_pred.mean()) / 2,
        chamfer_squared=float((to_true**2).mean() + (to_pred**2).mean()),
        precision=precision,
        recall=recall,
        fscore={tau: _harmonic_mean(precision[tau], recall[tau]) for tau in precision},
    )


def compare_meshes(
    pred: Mesh, truth: Mesh, *, points: int = 16_000, thresholds: Sequence[float] = (0.02,), seed: int = 0
) -> GeometryScores:
    """Scores of two meshes given in the same frame, after `PROTOCOL`; repeats for the same seed."""
    used = truth.vertices[np.unique(truth.faces)].astype(np.float64)  # a stray vertex is no surface
    extent = float((used.max(axis=0) - used.min(axis=0)).max())
    if not extent > 0:
        raise ValueError("the true mesh has no extent: all its vertices coincide")
    pred_points, true_points = (
        surface_points(mesh, points, (seed, stream)) * (2 / extent) for stream, mesh in enumerate((pred, truth))
    )
    return chamfer_and_fscore(pred_points, true_points, thresholds)


def fscore_floor(
    truth: Mesh, *, points: int = 16_000, thresholds: Sequence[float] = (0.02,), seed: int = 0
) -> GeometryScores:
    """The score of a perfect prediction: `truth` against a second sampling of itself."""
    return compare_meshes(truth, truth, points=points, thresholds=thresholds, seed=seed)


def volume_iou(inside_pred: np.ndarray, inside_true: np.ndarray) -> float:
    """Intersection over union of two (M,) bool labels of the same points, in [0, 1]. Raises ValueError if no point is
    inside either shape: then the ratio says nothing."""
    pred, true = np.asarray(inside_pred), np.asarray(inside_true)
    if pred.shape != true.shape or pred.ndim != 1 or pred.dtype != bool or true.dtype != bool:
        raise ValueError(f"volume_iou needs two (M,) bool arrays, got {pred.shape} {pred.dtype} and {true.shape} {true.dtype}")
    union = int((pred | true).sum())
    if union == 0:
        raise ValueError(f"none of the {len(pred)} points is inside either shape, so their IoU is undefined; "
                         "use more points or a mesh that encloses a volume")
    return int((pred & true).sum()) / union


def mesh_volume_iou(pred: Mesh, truth: Mesh, count: int = 30_000, seed: int = 0) -> float:
    """Volume IoU of two meshes given in the same frame, estimated on `count` uniform points in the box that holds both.

    The standard error is at most 0.5 / sqrt(points inside either).
    """
    corners = np.concatenate([mesh.vertices[np.unique(mesh.faces)] for mesh in (pred, truth)]).astype(np.float64)
    points = np.random.default_rng(seed).uniform(corners.min(axis=0), corners.max(axis=0), size=(count, 3))
    return volume_iou(inside(pred, points), inside(truth, points))


def _points(points: np.ndarray, name: str) -> np.ndarray:
    points = np.asarray(points, dtype=np.float64)
    if points.ndim != 2 or points.shape[1] != 3 or len(points) == 0:
        raise ValueError(f"{name} points must be (N, 3) with N > 0, got {points.shape}")
    if not np.isfinite(points).all():
        raise ValueError(f"{int((~np.isfinite(points)).any(axis=1).sum())} of {len(points)} {name} points are NaN or infinite")
    return points


def _harmonic_mean(a: float, b: float) -> float:
    return 2 * a * b / (a + b) if a + b > 0 else 0.0
