"""Metrics of two surfaces by points drawn from them: Chamfer, F-score, Hausdorff, normals.

P are N points of the predicted surface, T are M points of the true one, d(p, T) is the Euclidean
distance from p to the nearest point of T. To add a metric, write a function of what a table hands
over and add one line to that table:

    DISTANCE_METRICS  `Distances`; a metric whose name ends in @tau also takes a threshold
    CLOUD_METRICS     the two clouds (`Clouds`)
    NORMAL_METRICS    (N, 3) normals of P, (N, 3) normals at the points of T nearest to them, then
                      the same for T and P, (M, 3) each

Metrics of distances and of normals are measured twice: to the nearest sampled point, and
(surface_*) to the nearest point of the other mesh's triangles.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy.spatial import cKDTree

from tar3d.metrics.metric import Metric

if TYPE_CHECKING:
    from collections.abc import Sequence


class Distances(NamedTuple):
    """Distances d(p, T) of the predicted points (N,) and d(t, P) of the true ones (M,)."""

    to_truth: np.ndarray
    to_pred: np.ndarray


@dataclass(frozen=True)
class Clouds:
    """Predicted points (N, 3) and true points (M, 3), with a search tree of each."""

    pred: np.ndarray
    truth: np.ndarray

    @cached_property
    def pred_tree(self) -> cKDTree:
        return cKDTree(self.pred)

    @cached_property
    def truth_tree(self) -> cKDTree:
        return cKDTree(self.truth)

    @cached_property
    def manhattan(self) -> float:
        """Sum of both mean distances, with the nearest point and the distance in the L1 norm."""
        forward = self.truth_tree.query(self.pred, p=1)[0].mean()
        return float(forward + self.pred_tree.query(self.truth, p=1)[0].mean())


def _accuracy(d: Distances) -> float:
    return float(d.to_truth.mean())


def _completeness(d: Distances) -> float:
    return float(d.to_pred.mean())


def _chamfer_sum(d: Distances) -> float:
    return float(d.to_truth.mean()) + float(d.to_pred.mean())


def _chamfer(d: Distances) -> float:
    return _chamfer_sum(d) / 2


def _chamfer_squared_sum(d: Distances) -> float:
    return float((d.to_truth**2).mean() + (d.to_pred**2).mean())


def _chamfer_squared(d: Distances) -> float:
    return _chamfer_squared_sum(d) / 2


def _precision(d: Distances, tau: float) -> float:
    return float((d.to_truth < tau).mean())


def _recall(d: Distances, tau: float) -> float:
    return float((d.to_pred < tau).mean())


def _fscore(d: Distances, tau: float) -> float:
    precision, recall = _precision(d, tau), _recall(d, tau)
    both = precision + recall
    return 2 * precision * recall / both if both > 0 else 0.0


def _hausdorff(d: Distances) -> float:
    return float(max(d.to_truth.max(), d.to_pred.max()))


def _hausdorff95(d: Distances) -> float:
    return float(max(np.quantile(d.to_truth, 0.95), np.quantile(d.to_pred, 0.95)))


def _manhattan(clouds: Clouds) -> float:
    return clouds.manhattan / 2


def _manhattan_sum(clouds: Clouds) -> float:
    return clouds.manhattan


def _normal_consistency(
    pred: np.ndarray, at_truth: np.ndarray, truth: np.ndarray, at_pred: np.ndarray
) -> float:
    forward, back = (
        np.abs(np.einsum("ij,ij->i", a, b)).mean() for a, b in ((pred, at_truth), (truth, at_pred))
    )
    return float(forward + back) / 2


DISTANCE_METRICS = {
    "chamfer": Metric(
        "(mean_p d(p, T) + mean_t d(t, P)) / 2, d the Euclidean distance to the nearest point, not "
        "squared",
        "lower",
        _chamfer,
    ),
    "chamfer_sum": Metric("mean_p d(p, T) + mean_t d(t, P)", "lower", _chamfer_sum),
    "chamfer_squared": Metric(
        "(mean_p d(p, T)^2 + mean_t d(t, P)^2) / 2", "lower", _chamfer_squared
    ),
    "chamfer_squared_sum": Metric(
        "mean_p d(p, T)^2 + mean_t d(t, P)^2", "lower", _chamfer_squared_sum
    ),
    "accuracy": Metric("mean_p d(p, T)", "lower", _accuracy),
    "completeness": Metric("mean_t d(t, P)", "lower", _completeness),
    "precision@tau": Metric("share of p with d(p, T) < tau", "higher", _precision),
    "recall@tau": Metric("share of t with d(t, P) < tau", "higher", _recall),
    "fscore@tau": Metric(
        "2 precision recall / (precision + recall), 0 where both are 0", "higher", _fscore
    ),
    "hausdorff": Metric("max(max_p d(p, T), max_t d(t, P))", "lower", _hausdorff),
    "hausdorff95": Metric(
        "the larger of the 95th percentiles of d(p, T) and of d(t, P)", "lower", _hausdorff95
    ),
}
CLOUD_METRICS = {
    "chamfer_manhattan": Metric(
        "chamfer with |dx| + |dy| + |dz| to the point that is nearest in it", "lower", _manhattan
    ),
    "chamfer_manhattan_sum": Metric(
        "chamfer_sum with |dx| + |dy| + |dz| to the point that is nearest in it",
        "lower",
        _manhattan_sum,
    ),
}
NORMAL_METRICS = {
    "normal_consistency": Metric(
        "(mean_p |n_p . n_t| + mean_t |n_t . n_p|) / 2, unit normals of each point and the one "
        "nearest to it",
        "higher",
        _normal_consistency,
    ),
}


def distance_scores(distances: Distances, thresholds: Sequence[float]) -> dict[str, float]:
    """DISTANCE_METRICS of two surfaces, those with a threshold at each of `thresholds`.

    Raises ValueError for a threshold that is not positive.
    """
    if any(not tau > 0 for tau in thresholds):
        raise ValueError(f"F-score thresholds must be positive, got {tuple(thresholds)}")
    scores: dict[str, float] = {}
    by_kind = itertools.groupby(DISTANCE_METRICS.items(), lambda item: item[0].endswith("@tau"))
    for needs_threshold, items in by_kind:
        group = list(items)
        for tau in thresholds if needs_threshold else [None]:
            for name, metric in group:
                if tau is None:
                    scores[name] = metric.measure(distances)
                else:
                    name = f"{name.removesuffix('tau')}{tau:g}"
                    scores[name] = metric.measure(distances, tau)
    return scores


def cloud_scores(clouds: Clouds) -> dict[str, float]:
    """CLOUD_METRICS of two clouds."""
    return {name: metric.measure(clouds) for name, metric in CLOUD_METRICS.items()}


def normal_scores(
    pred: np.ndarray, at_truth: np.ndarray, truth: np.ndarray, at_pred: np.ndarray
) -> dict[str, float]:
    """NORMAL_METRICS of two surfaces.

    `pred` (N, 3) are the unit normals of P, `at_truth` (N, 3) those at the nearest points of T;
    `truth` and `at_pred` (M, 3) the same for T and P.
    """
    normals = (pred, at_truth, truth, at_pred)
    return {name: metric.measure(*normals) for name, metric in NORMAL_METRICS.items()}
