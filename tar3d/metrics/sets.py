"""Scores of a set of generations against a reference set, without pairs.

Coverage and minimum matching distance (MMD) after Achlioptas et al. (arXiv 1707.02392), 1-NN
accuracy after PointFlow (arXiv 1906.12320), with the Chamfer distance that they use:
mean_p d(p, T)^2 + mean_t d(t, P)^2. All three depend on the sizes of both sets and on the number of
points, which belong beside the scores. A further score is a function of the distances and one line
in `SET_METRICS`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.spatial import cKDTree

from tar3d.metrics.metric import Metric
from tar3d.runtime import progress_bar

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


def _coverage(distance: np.ndarray, generated: int) -> float:
    between = distance[:generated, generated:]
    return len(set(between.argmin(1).tolist())) / between.shape[1]


def _mmd(distance: np.ndarray, generated: int) -> float:
    return float(distance[:generated, generated:].min(0).mean())


def _one_nn_accuracy(distance: np.ndarray, generated: int) -> float:
    others = distance + np.diag(np.full(len(distance), np.inf))
    is_generated = np.arange(len(distance)) < generated
    same = is_generated[others.argmin(1)] == is_generated
    return float(same.mean())


# A function of the distances (S, S) between all shapes and of the number of generated ones, which
# come first.
SET_METRICS = {
    "coverage": Metric(
        "share of reference shapes that are the nearest one of some generated shape",
        "higher",
        _coverage,
    ),
    "mmd": Metric(
        "mean over reference shapes of the Chamfer distance (squared, sum) to the nearest "
        "generated shape",
        "lower",
        _mmd,
    ),
    "one_nn_accuracy": Metric(
        "share of all shapes whose nearest other shape is of their own set", "0.5", _one_nn_accuracy
    ),
}


def set_scores(
    generated: Sequence[np.ndarray], reference: Sequence[np.ndarray]
) -> dict[str, float]:
    """SET_METRICS of two sets of point clouds (N, 3), with the sizes of the sets.

    Raises ValueError for an empty set.
    """
    if len(generated) == 0 or len(reference) == 0:
        raise ValueError(
            f"set scores need shapes in both sets, got {len(generated)} generated and "
            f"{len(reference)} of the reference"
        )
    distance = chamfer_matrix([*generated, *reference])
    scores = {name: m.measure(distance, len(generated)) for name, m in SET_METRICS.items()}
    return scores | {"generated_shapes": len(generated), "reference_shapes": len(reference)}


def chamfer_matrix(clouds: Sequence[np.ndarray]) -> np.ndarray:
    """Squared Chamfer distances, both directions summed, between all (N, 3) clouds.

    Returns (S, S) float64, symmetric, zero on the diagonal.
    """
    trees = [cKDTree(cloud) for cloud in clouds]
    result = np.zeros((len(clouds), len(clouds)))
    pairs: Iterable[tuple[int, int]] = ((i, j) for i in range(len(clouds)) for j in range(i))
    for i, j in progress_bar(
        pairs,
        total=len(clouds) * (len(clouds) - 1) // 2,
        unit="pair",
        desc="Chamfer between all shapes",
    ):
        forward, back = (a.query(b)[0] for a, b in ((trees[i], clouds[j]), (trees[j], clouds[i])))
        result[i, j] = result[j, i] = (forward**2).mean() + (back**2).mean()
    return result
