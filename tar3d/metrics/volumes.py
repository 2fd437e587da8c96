"""Metrics of two solids by points that are inside or outside: the volume IoU.

A solid is what training labels say of a mesh (`tar3d.mesh.points.solid_labels`), so a mesh that is
open, or has a part inside out, is not scored as another solid than the one that was learnt. A
metric of volumes is a function of two labels and weights, and one line in `VOLUME_METRICS`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from tar3d.config import EvalProtocol
from tar3d.contracts import CUBE_FILL, Mesh
from tar3d.mesh.points import sample_surface, solid_labels
from tar3d.metrics.metric import Metric

FAR_OUT = 2.0  # a joint box this many times as long as the truth's is sampled in two parts
LEAST_INSIDE = 100  # points inside either solid, below which MORE_POINTS times as many are drawn
MORE_POINTS = 32


def volume_scores(pred: Mesh, truth: Mesh, protocol: EvalProtocol) -> dict[str, float | bool]:
    """VOLUME_METRICS, over uniform points and near the surface, and whether the meshes are closed.

    Raises ValueError where no point is inside either solid.
    """
    near = sample_surface(
        truth, protocol.near_points, np.random.default_rng((protocol.seed, 3))
    ).astype(np.float64)[:, :3]
    near += np.random.default_rng((protocol.seed, 4)).normal(
        scale=protocol.near_sigma, size=near.shape
    )
    uniform, close = _labelled(pred, truth, protocol.iou_points, protocol.seed, near)
    scores = {
        f"{name}{suffix}": _measured(metric, labels)
        for name, metric in VOLUME_METRICS.items()
        for suffix, labels in (("", uniform), ("_near", close))
    }
    return scores | {
        "pred_closed": is_closed(pred),
        "truth_closed": is_closed(truth),
    }


def volume_iou(
    pred: Mesh, truth: Mesh, count: int = EvalProtocol.iou_points, seed: int = 0
) -> float:
    """Volume IoU of two meshes in one frame.

    It is estimated on `count` uniform points in the box that holds both, and on more if few of
    them are inside; the standard error is at most 0.5 / sqrt(points inside either). Raises
    ValueError where none is.
    """
    return _measured(
        VOLUME_METRICS["iou"], _labelled(pred, truth, count, seed, np.empty((0, 3)))[0]
    )


class _Labels(NamedTuple):
    """Labels (M,) bool of points by the predicted and the true solid, and the points' weights."""

    pred: np.ndarray
    truth: np.ndarray
    weight: np.ndarray | None = None


def _measured(metric: Metric, labels: _Labels) -> float:
    value = metric.measure(*labels)
    if value is None:
        raise ValueError(
            f"none of {len(labels.pred):,} points is inside the prediction or the truth, so there "
            "is no volume to compare"
        )
    return value


def _labelled(
    pred: Mesh, truth: Mesh, count: int, seed: int, near: np.ndarray
) -> tuple[_Labels, _Labels]:
    """Labels of points around both meshes, and of the points `near` (K, 3)."""
    # labels pad thin walls, and BESIDE of the winding number is a length, in the cube's unit
    low, high = bounding_box(truth)
    unit = 2 * CUBE_FILL / float((high - low).max())
    solids = [Mesh((mesh.vertices - (low + high) / 2) * unit, mesh.faces) for mesh in (pred, truth)]
    for factor in (1, MORE_POINTS):
        points, weight = _points_around(pred, truth, factor * count, seed)
        queries = (np.concatenate([points, near]) - (low + high) / 2) * unit
        labels = [solid_labels(mesh, queries, np.random.default_rng(seed)) for mesh in solids]
        if (labels[0] | labels[1])[: len(points)].sum() >= LEAST_INSIDE:
            break
    in_pred, in_truth = labels
    count = len(points)
    around = _Labels(in_pred[:count], in_truth[:count], weight)
    return around, _Labels(in_pred[count:], in_truth[count:])


def bounding_box(*meshes: Mesh) -> tuple[np.ndarray, np.ndarray]:
    """The lowest and the highest corner (3,) of the box that holds the meshes' faces."""
    corners = [mesh.vertices[np.unique(mesh.faces)].astype(np.float64) for mesh in meshes]
    return (
        np.min([c.min(axis=0) for c in corners], axis=0),
        np.max([c.max(axis=0) for c in corners], axis=0),
    )


def _points_around(
    pred: Mesh, truth: Mesh, count: int, seed: int
) -> tuple[np.ndarray, np.ndarray | None]:
    """Points, uniform in the box that holds both meshes, and their weights (None: all alike).

    Where the prediction reaches far out, the box of the truth has `count` points of its own, so
    that a stray speck leaves it points; weights are volumes for a point.
    """
    rng = np.random.default_rng(seed)
    (low, high), (true_low, true_high) = bounding_box(pred, truth), bounding_box(truth)
    points = rng.uniform(low, high, size=(count, 3))
    if (high - low).max() <= FAR_OUT * (true_high - true_low).max():
        return points, None
    outer = points[((points < true_low) | (points > true_high)).any(axis=1)]
    inner = rng.uniform(true_low, true_high, size=(count, 3))
    volumes = [np.prod(b - a) / count for a, b in ((true_low, true_high), (low, high))]
    return np.concatenate([inner, outer]), np.repeat(volumes, [len(inner), len(outer)])


def label_iou(
    inside_pred: np.ndarray, inside_true: np.ndarray, weight: np.ndarray | None = None
) -> float | None:
    """Intersection over union of two (M,) bool labels of the same points, in [0, 1].

    `weight` (M,) is the volume that a point stands for, None if it is the same for all. None if no
    point is inside either shape: the ratio says nothing then. Raises ValueError for other shapes or
    dtypes.
    """
    pred, true = np.asarray(inside_pred), np.asarray(inside_true)
    if pred.shape != true.shape or pred.ndim != 1 or pred.dtype != bool or true.dtype != bool:
        raise ValueError(
            f"an IoU needs two (M,) bool arrays, got {pred.shape} {pred.dtype} and "
            f"{true.shape} {true.dtype}"
        )
    counts = np.ones(len(pred), dtype=np.int64) if weight is None else weight
    union = counts[pred | true].sum()
    return float(counts[pred & true].sum() / union) if union > 0 else None


VOLUME_METRICS = {
    "iou": Metric(
        "|inside both| / |inside either| over uniform points in the box that holds both meshes; "
        "inside is what training labels call so: |generalised winding number| > 0.5, pieces that "
        "are inside out turned, open sheets and walls made 0.016 thick (open meshes are marked by "
        "pred_closed, truth_closed)",
        "higher",
        label_iou,
    ),
}


def is_closed(mesh: Mesh) -> bool:
    """True if every edge belongs to exactly two faces that traverse it in opposite directions."""
    corners = [mesh.faces[:, i] for i in (0, 1, 2)]
    start, end = np.concatenate(corners), np.concatenate([corners[1], corners[2], corners[0]])
    along, back = (np.sort(a * len(mesh.vertices) + b) for a, b in ((start, end), (end, start)))
    return bool(np.array_equal(along, back) and (np.diff(along) > 0).all())
