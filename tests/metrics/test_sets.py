"""Set scores against definitions written as plain loops, and in cases where the answer is known."""

import numpy as np
import pytest

from tar3d.metrics.sets import chamfer_matrix, set_scores


def clouds(count: int, centre: float, seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [centre + rng.random((40, 3)) * rng.uniform(0.2, 1.0, 3) for _ in range(count)]


def chamfer(a: np.ndarray, b: np.ndarray) -> float:
    squared = ((a[:, None] - b[None]) ** 2).sum(-1)
    return squared.min(1).mean() + squared.min(0).mean()


def test_scores_equal_plain_loops():
    generated, reference = clouds(5, 0.0, 0), clouds(7, 0.1, 1)
    between = np.array([[chamfer(g, r) for r in reference] for g in generated])
    everything, right = [*generated, *reference], 0
    for i, cloud in enumerate(everything):
        _, nearest = min((chamfer(cloud, other), j) for j, other in enumerate(everything) if j != i)
        right += (nearest < 5) == (i < 5)
    scores = set_scores(generated, reference)
    assert scores["coverage"] == len({int(row.argmin()) for row in between}) / 7
    assert scores["mmd"] == pytest.approx(between.min(0).mean(), abs=1e-12)
    assert scores["one_nn_accuracy"] == right / 12
    assert (scores["generated_shapes"], scores["reference_shapes"]) == (5, 7)


def test_a_set_against_itself_and_against_one_far_away():
    near = clouds(6, 0.0, 0)
    assert set_scores(near, near)["coverage"] == 1 and set_scores(near, near)["mmd"] == 0
    far = set_scores(near, clouds(4, 50.0, 1))
    assert far["one_nn_accuracy"] == 1.0 and far["mmd"] > 100


def test_one_shape_copied_covers_little():
    reference = clouds(8, 0.0, 0)
    assert set_scores([reference[0]] * 8, reference)["coverage"] == 1 / 8


def test_the_matrix_is_symmetric_with_a_zero_diagonal():
    matrix = chamfer_matrix(clouds(4, 0.0, 0))
    assert (
        np.array_equal(matrix, matrix.T)
        and not matrix.diagonal().any()
        and (matrix + np.eye(4) > 0).all()
    )


def test_empty_sets_are_refused():
    with pytest.raises(ValueError, match="got 0 generated and 2 of the reference"):
        set_scores([], clouds(2, 0.0, 0))
