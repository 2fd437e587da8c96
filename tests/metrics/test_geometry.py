"""Geometry metrics against numbers worked out by hand."""

import numpy as np
import pytest

from tar3d.contracts import Mesh
from tar3d.metrics.geometry import (
    PROTOCOL,
    chamfer_and_fscore,
    compare_meshes,
    fscore_floor,
    mesh_volume_iou,
    surface_points,
    volume_iou,
)


def box(low=(-1.0, -1.0, -1.0), high=(1.0, 1.0, 1.0)) -> Mesh:
    corners = np.array([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)])
    quads = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    faces = [t for a, b, c, d in quads for t in ((a, b, c), (a, c, d))]
    return Mesh(np.array(low) + corners * (np.array(high) - low), np.array(faces))


def moved(mesh: Mesh, scale=1.0, shift=(0.0, 0.0, 0.0)) -> Mesh:
    return Mesh(mesh.vertices * scale + np.array(shift), mesh.faces)


def grid_plane(z: float, side: int = 30) -> np.ndarray:
    x, y = np.mgrid[:side, :side] / 10
    return np.stack([x.ravel(), y.ravel(), np.full(side * side, z)], axis=1)


def test_translated_plane_has_chamfer_equal_to_the_distance():
    scores = chamfer_and_fscore(grid_plane(0.0), grid_plane(0.03), thresholds=(0.02, 0.04))
    assert scores.chamfer == pytest.approx(0.03, abs=1e-9)
    assert scores.chamfer_squared == pytest.approx(2 * 0.03**2, abs=1e-9)
    assert scores.fscore == scores.precision == scores.recall == {0.02: 0.0, 0.04: 1.0}


def test_sphere_in_a_larger_one_has_chamfer_equal_to_the_gap():
    directions = np.random.default_rng(0).standard_normal((3000, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    assert chamfer_and_fscore(0.7 * directions, directions).chamfer == pytest.approx(0.3, abs=1e-3)


def test_directions_are_averaged_and_not_confused():
    true = grid_plane(0.0)
    scores = chamfer_and_fscore(true[:1], true, thresholds=(0.05,))  # one right point: all of it right, most of it missing
    assert scores.precision[0.05] == 1.0 and scores.recall[0.05] == pytest.approx(1 / 900)
    assert scores.fscore[0.05] == pytest.approx(2 * (1 / 900) / (1 + 1 / 900))
    assert scores.chamfer == pytest.approx(np.linalg.norm(true - true[0], axis=1).mean() / 2)


def test_chamfer_equals_brute_force_and_is_symmetric():
    rng = np.random.default_rng(1)
    p, t = rng.random((70, 3)), rng.random((90, 3))
    distances = np.linalg.norm(p[:, None] - t[None], axis=2)
    scores, swapped = chamfer_and_fscore(p, t, (0.1,)), chamfer_and_fscore(t, p, (0.1,))
    assert scores.chamfer == pytest.approx((distances.min(1).mean() + distances.min(0).mean()) / 2)
    assert swapped.chamfer == pytest.approx(scores.chamfer) and swapped.fscore == pytest.approx(scores.fscore)
    assert swapped.precision == scores.recall


def test_scale_law_of_points():
    rng = np.random.default_rng(2)
    p, t = rng.random((50, 3)), rng.random((60, 3))
    one, two = chamfer_and_fscore(p, t, (0.1,)), chamfer_and_fscore(2 * p, 2 * t, (0.2,))
    assert two.chamfer == pytest.approx(2 * one.chamfer) and two.chamfer_squared == pytest.approx(4 * one.chamfer_squared)
    assert two.fscore[0.2] == one.fscore[0.1]


def test_identical_points_are_perfect():
    points = grid_plane(0.5)
    scores = chamfer_and_fscore(points, points)
    assert scores.chamfer == 0 and scores.fscore == {0.02: 1.0}


def test_mesh_scores_do_not_depend_on_the_common_frame():
    pred, truth = box((-1, -1, -1), (1, 1, 0.8)), box()
    one = compare_meshes(pred, truth, points=2000)
    other = compare_meshes(moved(pred, 8, (16, -8, 4)), moved(truth, 8, (16, -8, 4)), points=2000)
    assert other.chamfer == pytest.approx(one.chamfer, rel=1e-4)


def test_one_transform_from_the_truth_serves_both():
    """A prediction at half the size must not be blown up to fit: its far faces stay half a unit away."""
    scores = compare_meshes(moved(box(), 0.5), box(), points=4000)
    assert scores.fscore[0.02] == 0.0
    assert scores.chamfer > 0.45


def test_floor_is_positive_and_no_mesh_scores_below_it():
    floor = fscore_floor(box(), points=4000)
    same = compare_meshes(box(), box(), points=4000, seed=5)
    assert 0 < floor.chamfer < 0.05 and 0 < floor.fscore[0.02] < 1
    assert same.chamfer == pytest.approx(floor.chamfer, rel=0.05)
    assert fscore_floor(box(), points=16_000).chamfer == pytest.approx(floor.chamfer / 2, rel=0.1)  # spacing ~ 1 / sqrt(points)


def test_scores_repeat_for_a_seed():
    assert compare_meshes(box(), box(), points=500, seed=3) == compare_meshes(box(), box(), points=500, seed=3)
    assert compare_meshes(box(), box(), points=500, seed=3) != compare_meshes(box(), box(), points=500, seed=4)


def test_far_prediction_has_no_fscore():
    scores = compare_meshes(moved(box(), shift=(100, 0, 0)), box(), points=1000)
    assert scores.fscore[0.02] == 0.0 and scores.chamfer == pytest.approx(99, abs=1)


def test_stray_vertices_do_not_change_the_unit():
    stray = Mesh(np.concatenate([box().vertices, [[50.0, 0, 0]]]), box().faces)
    assert compare_meshes(box(), stray, points=500) == compare_meshes(box(), box(), points=500)


def test_surface_points_lie_on_the_surface_in_the_mesh_frame():
    points = surface_points(moved(box(), 3), 1000, seed=0)
    assert points.shape == (1000, 3)
    np.testing.assert_allclose(np.abs(points).max(axis=1), 3, atol=1e-5)


def test_iou_of_known_boxes():
    pred, truth = box((0, 0, 0), (2, 1, 1)), box((1, 0, 0), (3, 1, 1))
    assert mesh_volume_iou(pred, truth, count=40_000, seed=0) == pytest.approx(1 / 3, abs=0.01)
    assert mesh_volume_iou(truth, truth, count=1000, seed=0) == 1.0
    assert mesh_volume_iou(box((0, 0, 0), (1, 1, 1)), truth, count=1000, seed=0) == 0.0
    assert volume_iou(np.array([True, True, False, False]), np.array([False, True, True, False])) == pytest.approx(1 / 3)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_points_that_are_not_finite_are_refused(bad):
    broken = grid_plane(0.0)
    broken[3, 1] = bad
    for pair in ((broken, grid_plane(0.0)), (grid_plane(0.0), broken)):
        with pytest.raises(ValueError, match="1 of 900 .* NaN or infinite"):
            chamfer_and_fscore(*pair)


def test_what_has_no_score_is_refused():
    with pytest.raises(ValueError, match=r"predicted points must be \(N, 3\)"):
        chamfer_and_fscore(np.zeros((0, 3)), grid_plane(0.0))
    with pytest.raises(ValueError, match="thresholds must be positive"):
        chamfer_and_fscore(grid_plane(0.0), grid_plane(0.0), thresholds=(0.0,))
    with pytest.raises(ValueError, match="undefined"):
        volume_iou(np.zeros(5, bool), np.zeros(5, bool))
    with pytest.raises(ValueError, match="bool"):
        volume_iou(np.zeros(5), np.zeros(5, bool))
    with pytest.raises(ValueError, match="bool"):
        volume_iou(np.zeros(5, bool), np.zeros(4, bool))
    with pytest.raises(ValueError, match="no extent"):
        compare_meshes(box(), Mesh(np.zeros((3, 3)), np.array([[0, 1, 2]])))


def test_protocol_states_formula_norm_unit_and_count():
    for word in ("not squared", "/ 2", "-1 to 1", "16,000", "TRUE mesh", "winding number"):
        assert word in PROTOCOL
