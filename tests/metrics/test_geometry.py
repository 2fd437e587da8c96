"""Geometry metrics against brute force, against other libraries, and against numbers worked out by
hand."""

import dataclasses

import numpy as np
import pytest
import trimesh

from tar3d.config import EvalProtocol
from tar3d.contracts import Mesh
from tar3d.mesh.load import normalize
from tar3d.metrics.geometry import (
    compare_meshes,
    compare_points,
    describe,
    floor_scores,
    geometry_formulas,
    in_frame,
    mesh_facts,
    point_scores,
    size_note,
    surface_cloud,
    surface_scores,
    transformed,
)
from tar3d.metrics.registry import find_metric
from tar3d.metrics.volumes import is_closed, label_iou, volume_iou

SMALL = EvalProtocol(points=2000, iou_points=4000, near_points=4000)
TAU = (0.02, 0.1)


def box(low=(-1.0, -1.0, -1.0), high=(1.0, 1.0, 1.0)) -> Mesh:
    corners = np.array([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)])
    quads = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    faces = [t for a, b, c, d in quads for t in ((a, b, c), (a, c, d))]
    return Mesh(np.array(low) + corners * (np.array(high) - low), np.array(faces))


def ball(radius: float = 1.0, subdivisions: int = 3) -> Mesh:
    sphere = trimesh.creation.icosphere(subdivisions, radius)
    return Mesh(sphere.vertices, sphere.faces)


def moved(mesh: Mesh, scale=1.0, shift=(0.0, 0.0, 0.0)) -> Mesh:
    return Mesh(mesh.vertices * scale + np.array(shift), mesh.faces)


def grid_plane(z: float, side: int = 30) -> np.ndarray:
    x, y = np.mgrid[:side, :side] / 10
    return np.stack([x.ravel(), y.ravel(), np.full(side * side, z)], axis=1)


def brute_force(pred: np.ndarray, truth: np.ndarray, tau: float) -> dict[str, float]:
    """Every sampled score from the full (N, M) matrix, in float64."""
    difference = pred[:, None, :3] - truth[None, :, :3]
    euclid, manhattan = np.sqrt((difference**2).sum(-1)), np.abs(difference).sum(-1)
    a, b = euclid.min(1), euclid.min(0)
    dots = np.abs(pred[:, None, 3:] @ truth[:, 3:].T)[:, 0]
    p, r = np.mean(a < tau), np.mean(b < tau)
    nearest = manhattan.min(1).mean() + manhattan.min(0).mean()
    return {
        "chamfer": (a.mean() + b.mean()) / 2,
        "chamfer_sum": a.mean() + b.mean(),
        "accuracy": a.mean(),
        "completeness": b.mean(),
        "chamfer_squared": ((a**2).mean() + (b**2).mean()) / 2,
        "chamfer_squared_sum": (a**2).mean() + (b**2).mean(),
        "chamfer_manhattan": nearest / 2,
        "chamfer_manhattan_sum": nearest,
        f"precision@{tau:g}": p,
        f"recall@{tau:g}": r,
        f"fscore@{tau:g}": 2 * p * r / (p + r),
        "hausdorff": max(a.max(), b.max()),
        "hausdorff95": max(np.percentile(a, 95), np.percentile(b, 95)),
        "normal_consistency": (
            dots[np.arange(len(a)), euclid.argmin(1)].mean()
            + dots[euclid.argmin(0), np.arange(len(b))].mean()
        )
        / 2,
    }


def test_every_sampled_score_equals_brute_force():
    pred, truth = surface_cloud(ball(1.1), 500, 1), surface_cloud(box(), 400, 2)
    found, expected = point_scores(pred, truth, (0.15,)), brute_force(pred, truth, 0.15)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-12), name


def test_surface_distances_equal_trimesh_s():
    pred, truth = ball(1.1), box()
    clouds = surface_cloud(pred, 300, 1), surface_cloud(truth, 300, 2)
    distances = [
        trimesh.proximity.closest_point_naive(
            trimesh.Trimesh(m.vertices, m.faces, process=False), c[:, :3]
        )[1]
        for m, c in ((truth, clouds[0]), (pred, clouds[1]))
    ]
    scores = surface_scores(pred, truth, *clouds, (0.1,))
    assert scores["surface_accuracy"] == pytest.approx(distances[0].mean(), abs=1e-6)
    assert scores["surface_completeness"] == pytest.approx(distances[1].mean(), abs=1e-6)
    assert scores["surface_precision@0.1"] == np.mean(distances[0] < 0.1)


def test_translated_plane_gives_each_variant_what_arithmetic_says():
    scores = point_scores(grid_plane(0.0), grid_plane(0.03), (0.02, 0.04))
    expected = {
        "chamfer": 0.03,
        "chamfer_sum": 0.06,
        "chamfer_squared": 0.03**2,
        "chamfer_squared_sum": 2 * 0.03**2,
        "chamfer_manhattan": 0.03,
        "chamfer_manhattan_sum": 0.06,
        "hausdorff": 0.03,
        "hausdorff95": 0.03,
    }
    assert {name: scores[name] for name in expected} == pytest.approx(expected, abs=1e-9)
    assert [scores[f"{name}@0.02"] for name in ("precision", "recall", "fscore")] == [0, 0, 0]
    assert [scores[f"{name}@0.04"] for name in ("precision", "recall", "fscore")] == [1, 1, 1]


def test_scaled_sphere_has_chamfer_equal_to_the_gap():
    pred, truth = ball(0.7, 5), ball(1.0, 5)
    scores = compare_meshes(pred, truth, SMALL)
    assert scores["surface_chamfer"] == pytest.approx(0.3, abs=1e-3)
    assert scores["iou"] == pytest.approx(0.7**3, abs=0.03)
    assert scores["normal_consistency"] > 0.99


def test_turned_normals_are_right_angles():
    cloud, turned = (surface_cloud(box((-1, -1, 0), (1, 1, 0.001)), 3000, seed) for seed in (0, 1))
    turned = np.concatenate([turned[:, :3], turned[:, [5, 3, 4]]], axis=1)
    assert point_scores(cloud, turned, TAU)["normal_consistency"] < 0.01


def test_directions_are_averaged_and_not_confused():
    true = grid_plane(0.0)
    scores = point_scores(
        true[:1], true, (0.05,)
    )  # one right point: all of it right, most of it missing
    assert scores["precision@0.05"] == 1.0 and scores["recall@0.05"] == pytest.approx(1 / 900)
    assert scores["fscore@0.05"] == pytest.approx(2 * (1 / 900) / (1 + 1 / 900))
    assert scores["accuracy"] == 0 and scores["completeness"] == pytest.approx(
        np.linalg.norm(true - true[0], axis=1).mean()
    )


def test_scale_law_of_points():
    rng = np.random.default_rng(2)
    p, t = rng.random((50, 3)), rng.random((60, 3))
    one, two = point_scores(p, t, (0.1,)), point_scores(2 * p, 2 * t, (0.2,))
    assert (
        two["chamfer"] == pytest.approx(2 * one["chamfer"])
        and two["fscore@0.2"] == one["fscore@0.1"]
    )
    assert two["chamfer_squared"] == pytest.approx(4 * one["chamfer_squared"])


def test_identical_points_are_perfect():
    scores = point_scores(grid_plane(0.5), grid_plane(0.5), TAU)
    assert scores["chamfer"] == 0 and scores["fscore@0.02"] == 1.0


def frames(scale: float, shift: tuple[float, ...]) -> tuple[Mesh, Mesh]:
    """A flattened box and the box, as loaded from files in some frame."""
    pred, truth = (moved(m, scale, shift) for m in (box((-1, -1, -1), (1, 1, 0.8)), box()))
    return normalize(pred.vertices, pred.faces), normalize(truth.vertices, truth.faces)


def test_the_truth_s_frame_makes_scores_independent_of_the_file_s_and_moves_both_alike():
    one, other = (
        compare_points(*in_frame(*frames(*f), "truth"), SMALL)
        for f in ((1.0, (0, 0, 0)), (8.0, (16.0, -8.0, 4.0)))
    )
    assert other == pytest.approx(one, rel=1e-4)
    pred, truth = in_frame(*frames(8.0, (16.0, -8.0, 4.0)), "truth")
    assert np.abs(truth.vertices).max() == pytest.approx(1)
    assert pred.vertices.max(0) == pytest.approx((1, 1, 0.8), abs=1e-5)
    assert pred.vertices.min(0) == pytest.approx((-1, -1, -1), abs=1e-5)


def test_the_source_frame_keeps_the_digits_of_meshes_far_from_the_origin():
    one, other = (
        compare_points(*in_frame(*frames(1.0, shift), "source"), SMALL)
        for shift in ((0, 0, 0), (5.4e5, 5.4e6, 120.0))
    )
    assert other == pytest.approx(one, rel=1e-4)


def test_the_other_frames():
    meshes = frames(8.0, (16.0, -8.0, 4.0))
    pred, truth = in_frame(*meshes, "each")
    assert pred.vertices[:, 2].max() == pytest.approx(0.9, abs=1e-5)  # centred by itself
    pred, truth = in_frame(*meshes, "source")
    assert truth.vertices.max(0) == pytest.approx((24, 0, 12), abs=1e-4)
    smaller = normalize(0.5 * box().vertices, box().faces)
    assert (
        compare_points(*in_frame(smaller, normalize(box().vertices, box().faces), "truth"), SMALL)[
            "chamfer"
        ]
        > 0.45
    )
    assert (
        compare_points(*in_frame(smaller, normalize(box().vertices, box().faces), "each"), SMALL)[
            "chamfer"
        ]
        < 0.06
    )


def test_floor_is_what_a_perfect_prediction_scores():
    scores = compare_points(box(), box(), SMALL)
    assert all(
        scores[f"floor_{name}"] == value
        for name, value in scores.items()
        if not name.startswith("floor_")
    )
    assert 0 < scores["chamfer"] < 0.06 and 0 < scores["fscore@0.02"] < 1
    denser = compare_points(box(), box(), dataclasses.replace(SMALL, points=8000))
    assert denser["chamfer"] == pytest.approx(
        scores["chamfer"] / 2, rel=0.1
    )  # spacing ~ 1 / sqrt(points)


def test_scores_repeat_for_a_seed():
    one, again, other = (
        compare_meshes(ball(), box(), dataclasses.replace(SMALL, seed=s)) for s in (3, 3, 4)
    )
    assert one == again and one != other


def test_a_common_rotation_changes_nothing_that_is_measured_exactly():
    turn = trimesh.transformations.rotation_matrix(0.7, (1, 2, 3))
    meshes = ball(1.05), ball()
    plain, turned = (
        compare_meshes(*pair, SMALL) for pair in (meshes, [transformed(m, turn) for m in meshes])
    )
    for name in ("surface_chamfer", "surface_hausdorff", "surface_chamfer_squared"):
        assert turned[name] == pytest.approx(plain[name], abs=2e-3)


def test_surface_points_lie_on_the_surface_in_the_mesh_frame():
    cloud = surface_cloud(moved(box(), 3), 1000, seed=0)
    assert cloud.shape == (1000, 6)
    np.testing.assert_allclose(np.abs(cloud[:, :3]).max(axis=1), 3, atol=1e-5)


def test_iou_of_known_boxes():
    pred, truth = box((0, 0, 0), (2, 1, 1)), box((1, 0, 0), (3, 1, 1))
    assert volume_iou(pred, truth, count=40_000, seed=0) == pytest.approx(1 / 3, abs=0.01)
    assert volume_iou(truth, truth, count=1000, seed=0) == 1.0
    assert volume_iou(box((0, 0, 0), (1, 1, 1)), truth, count=1000, seed=0) == 0.0
    assert label_iou(
        np.array([True, True, False, False]), np.array([False, True, True, False])
    ) == pytest.approx(1 / 3)
    assert label_iou(np.zeros(5, bool), np.zeros(5, bool)) is None


def test_open_meshes_have_an_iou_and_are_marked():
    lid_off = Mesh(box().vertices, box().faces[:-2])
    scores = compare_meshes(lid_off, box(), SMALL)
    assert not scores["pred_closed"] and scores["truth_closed"] and scores["iou"] > 0.8


def joined(*meshes: Mesh) -> Mesh:
    starts = np.cumsum([0, *(len(m.vertices) for m in meshes)])
    return Mesh(
        np.concatenate([m.vertices for m in meshes]),
        np.concatenate([m.faces + k for m, k in zip(meshes, starts, strict=False)]),
    )


def test_iou_is_that_of_the_solid_of_the_labels():
    """A part inside out in the truth, and an open sheet, which labels make a slab."""
    tower, base = box((-0.3, -0.5, -0.3), (0.3, 1, 0.3)), box((-1, -1, -1), (1, 0, 1))
    turned = Mesh(tower.vertices, tower.faces[:, ::-1])
    sheet = Mesh(box().vertices, box().faces[8:10])
    for truth in (joined(base, turned), sheet, joined(base, sheet)):
        scores = compare_meshes(truth, truth, SMALL)
        assert scores["iou"] == scores["iou_near"] == 1
    scores = compare_meshes(joined(base, tower), joined(base, turned), SMALL)
    assert scores["iou"] == 1 and scores["iou_near"] > 0.99


@pytest.mark.parametrize("distance", [3.0, 60.0, 1000.0])
def test_a_far_speck_leaves_the_volume_its_score(distance):
    truth = box((-1, -1, -1), (1, 0, 1))
    speck = moved(box((0, 0, 0), (0.01, 0.01, 0.01)), 1.0)
    speck = Mesh(speck.vertices + np.float32(distance), speck.faces)
    pred = joined(box((-1, -1, -1), (0, 0, 1)), speck)
    assert volume_iou(pred, truth, 4000) == pytest.approx(0.5, abs=0.03)
    assert "a part of the prediction lies far out" in size_note(pred, truth)


@pytest.mark.parametrize(
    "factor, said",
    [
        (1.0, ""),
        (1.9, ""),
        (1100.0, "1,100 times as long as the truth: millimetres and metres?"),
        (1 / 25.4, "0.03937 times as long as the truth: millimetres and inches?"),
        (6.0, "6 times as long as the truth"),
    ],
)
def test_another_unit_is_said(factor, said):
    truth = box((-1, -1, -1), (1, 0, 1))
    assert size_note(moved(truth, factor), truth) == (said and f"the prediction is {said}")


def test_boxes_apart_are_said():
    assert "do not overlap" in size_note(box((2, 0, 0), (4, 1, 1)), box((-1, 0, 0), (1, 1, 1)))


def test_closed_means_two_faces_on_every_edge_in_opposite_directions():
    shape = ball()
    turned = np.concatenate([shape.faces[:1, ::-1], shape.faces[1:]])  # one face looks inward
    doubled = np.concatenate([shape.faces, shape.faces])
    cases = {
        "a ball": (shape.faces, True),
        "inside out": (shape.faces[:, ::-1], True),
        "a hole": (shape.faces[1:], False),
        "one face turned": (turned, False),
        "every face twice": (doubled, False),
    }
    for name, (faces, expected) in cases.items():
        assert is_closed(Mesh(shape.vertices, faces)) is expected, name
        solid = trimesh.Trimesh(shape.vertices, faces, process=False)
        assert bool(solid.is_watertight and solid.is_winding_consistent) is expected, name


def test_facts_of_a_prediction():
    two = Mesh(
        np.concatenate([box().vertices, box().vertices + 5]),
        np.concatenate([box().faces, box().faces + 8]),
    )
    assert mesh_facts(two) == {"pred_vertices": 16, "pred_faces": 24, "pred_components": 2}


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_points_that_are_not_finite_are_refused(bad):
    broken = grid_plane(0.0)
    broken[3, 1] = bad
    for pair in ((broken, grid_plane(0.0)), (grid_plane(0.0), broken)):
        with pytest.raises(ValueError, match="1 of 900 .* NaN or infinite"):
            point_scores(*pair, TAU)


def test_what_has_no_score_is_refused():
    with pytest.raises(ValueError, match=r"predicted points must be \(N, 3\)"):
        point_scores(np.zeros((0, 3)), grid_plane(0.0), TAU)
    with pytest.raises(ValueError, match="thresholds must be positive"):
        point_scores(grid_plane(0.0), grid_plane(0.0), (0.0,))
    with pytest.raises(ValueError, match="bool"):
        label_iou(np.zeros(5), np.zeros(5, bool))
    with pytest.raises(ValueError, match="bool"):
        label_iou(np.zeros(5, bool), np.zeros(4, bool))


def test_the_protocol_states_frame_unit_count_seed_and_every_formula():
    text = describe(EvalProtocol(points=12_345, seed=7))
    for word in (
        "TRUE mesh",
        "longest side is 2",
        "12,345",
        "seed         7",
        "0.01, 0.02, 0.05",
        *geometry_formulas().values(),
    ):
        assert word in text


def test_every_score_is_described_and_has_a_direction():
    measured = compare_meshes(ball(), box(), SMALL) | floor_scores(box(), SMALL)
    for name in measured.keys() - {"pred_closed", "truth_closed"}:
        assert find_metric(name).describe() in geometry_formulas().values(), name
        assert find_metric(f"aligned_{name.removeprefix('floor_')}") is find_metric(name)
