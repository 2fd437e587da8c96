"""Scores of a set of generations against a reference set, without pairs: coverage, minimum matching
distance, 1-NN accuracy.

Coverage and MMD after Achlioptas et al. (arXiv 1707.02392), 1-NN accuracy after PointFlow (arXiv
1906.12320), with the Chamfer distance that they use: mean_p d(p, T)^2 + mean_t d(t, P)^2. They
depend on the sizes of both sets and on the number of points, so all three belong beside the scores.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.spatial import cKDTree
from tqdm import tqdm

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

SET_FORMULAS = {
    "coverage": "share of reference shapes that are the nearest one of some generated shape; higher is better",
    "mmd": "mean over reference shapes of the Chamfer distance (squared, sum) to the nearest generated shape; lower is better",
    "one_nn_accuracy": "share of all shapes whose nearest other shape is of their own set; 0.5 is best, 1 and 0 are worst",
}


def set_scores(
    generated: Sequence[np.ndarray], reference: Sequence[np.ndarray]
) -> dict[str, float]:
    """Scores of two sets of point clouds (N, 3), with the sizes of the sets."""
    if len(generated) == 0 or len(reference) == 0:
        raise ValueError(
            f"set scores need shapes in both sets, got {len(generated)} generated and {len(reference)} of the "
            "reference"
        )
    distance = chamfer_matrix([*generated, *reference])
    G = len(generated)
    between = distance[:G, G:]
    others = distance + np.diag(np.full(len(distance), np.inf))
    is_generated = np.arange(len(distance)) < G
    same = is_generated[others.argmin(1)] == is_generated
    return {
        "coverage": len(set(between.argmin(1).tolist())) / len(reference),
        "mmd": float(between.min(0).mean()),
        "one_nn_accuracy": float(same.mean()),
        "generated_shapes": G,
        "reference_shapes": len(reference),
    }


def chamfer_matrix(clouds: Sequence[np.ndarray]) -> np.ndarray:
    """Squared Chamfer distances, both directions summed, between all (N, 3) clouds -> (S, S)
    float64, zero on the diagonal."""
    trees = [cKDTree(cloud) for cloud in clouds]
    result = np.zeros((len(clouds), len(clouds)))
    pairs: Iterable[tuple[int, int]] = ((i, j) for i in range(len(clouds)) for j in range(i))
    for i, j in tqdm(
        pairs,
        total=len(clouds) * (len(clouds) - 1) // 2,
        unit="pair",
        desc="Chamfer between all shapes",
    ):
        forward, back = (a.query(b)[0] for a, b in ((trees[i], clouds[j]), (trees[j], clouds[i])))
        result[i, j] = result[j, i] = (forward**2).mean() + (back**2).mean()
    return result
