"""Labels and surface samples against shapes whose inside, area and normals are known in closed
form."""

from dataclasses import replace

import numpy as np
import pytest
import trimesh

from tar3d.config import PointSamplingConfig
from tar3d.contracts import Mesh
from tar3d.mesh.load import MeshError
from tar3d.mesh.points import (
    crossings,
    inside,
    outer_surface,
    sample_shape,
    sample_surface,
    signed_volume,
)
from tar3d.mesh.winding import WindingNumber

CONFIG = PointSamplingConfig(
    surface_points=2000, volume_points=4000, near_points=3000, near_sigmas=[0.05, 0.02, 0.005]
)


def as_mesh(shape: trimesh.Trimesh) -> Mesh:
    return Mesh(shape.vertices, shape.faces)


def box(extents=(1.0, 0.8, 1.2), center=(0.1, 0.0, -0.1)) -> trimesh.Trimesh:
    return trimesh.creation.box(extents, trimesh.transformations.translation_matrix(center))


def in_box(points: np.ndarray, extents=(1.0, 0.8, 1.2), center=(0.1, 0.0, -0.1)) -> np.ndarray:
    return (np.abs(points - center) < np.divide(extents, 2)).all(axis=1)


@pytest.fixture(scope="module")
def points() -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (20_000, 3)).astype(np.float32)


def test_box_labels_are_exact(points):
    assert (inside(as_mesh(box()), points) == in_box(points)).all()


def test_sphere_labels(points):
    radius = np.linalg.norm(points, axis=1)
    clear = np.abs(radius - 0.7) > 0.002  # wider than the gap between the sphere and its triangles
    labels = inside(as_mesh(trimesh.creation.icosphere(4, 0.7)), points)
    assert (labels == (radius < 0.7))[clear].all()


def test_torus_labels(points):
    torus = trimesh.creation.torus(0.6, 0.25, major_sections=128, minor_sections=64)
    distance = np.hypot(np.hypot(points[:, 0], points[:, 1]) - 0.6, points[:, 2])
    clear = np.abs(distance - 0.25) > 0.002
    assert (inside(as_mesh(torus), points) == (distance < 0.25))[clear].all()


def test_overlapping_boxes_are_their_union(points):
    other = {"extents": (0.5, 1.6, 0.6), "center": (-0.2, 0.1, 0.2)}
    both = trimesh.util.concatenate([box(), box(**other)])
    assert (inside(as_mesh(both), points) == (in_box(points) | in_box(points, **other))).all()


def test_a_mesh_that_is_inside_out_has_the_same_inside(points):
    shape = box()
    shape.invert()
    assert (inside(as_mesh(shape), points) == in_box(points)).all()
    assert WindingNumber(as_mesh(shape))(np.array([[0.1, 0.0, -0.1]]))[0] == -1


def test_an_open_sphere_keeps_its_inside(points):
    sphere = trimesh.creation.icosphere(4, 0.7)
    open_sphere = Mesh(
        sphere.vertices, sphere.faces[sphere.triangles_center[:, 1] < 0.6]
    )  # a hole in the top
    radius = np.linalg.norm(points, axis=1)
    assert (inside(open_sphere, points) == (radius < 0.7)).mean() > 0.99


def test_surface_points_lie_on_the_faces_with_outward_normals():
    sample = sample_surface(as_mesh(box()), 5000, np.random.default_rng(1))
    assert sample.shape == (5000, 6) and sample.dtype == np.float32
    relative = (sample[:, :3] - np.array([0.1, 0.0, -0.1])) / np.array([0.5, 0.4, 0.6])
    axis = np.abs(relative).argmax(axis=1)
    assert np.allclose(np.abs(relative).max(axis=1), 1, atol=1e-5)
    expected = np.zeros((5000, 3))
    expected[np.arange(5000), axis] = np.sign(relative[np.arange(5000), axis])
    assert np.allclose(sample[:, 3:], expected, atol=1e-6)


def test_surface_points_are_weighted_by_area_and_uniform_within_a_face():
    small, large = box((0.2, 0.2, 0.2), (-0.7, 0, 0)), box((0.8, 0.8, 0.8), (0.4, 0, 0))
    sample = sample_surface(
        as_mesh(trimesh.util.concatenate([small, large])), 40_000, np.random.default_rng(2)
    )
    assert (sample[:, 0] > -0.3).mean() == pytest.approx(16 / 17, abs=0.005)
    top = sample[(sample[:, 4] > 0.9) & (sample[:, 0] > -0.3)]
    counts = np.histogram2d(top[:, 0], top[:, 2], bins=4, range=[[0, 0.8], [-0.4, 0.4]])[0]
    assert np.abs(counts / counts.mean() - 1).max() < 0.2


def test_normals_of_an_inverted_mesh_are_turned_outward():
    shape = trimesh.creation.icosphere(3, 0.7)
    shape.invert()
    sample = sample_surface(as_mesh(shape), 1000, np.random.default_rng(3))
    assert signed_volume(as_mesh(shape)) < 0
    assert ((sample[:, :3] * sample[:, 3:]).sum(axis=1) > 0.69).all()


def test_near_points_have_the_asked_noise_in_equal_shares():
    big = Mesh(
        np.array([[-0.9, 0, -0.9], [0.9, 0, -0.9], [0.9, 0, 0.9], [-0.9, 0, 0.9], [0, -0.9, 0]])
        * 0.9,
        [[0, 2, 1], [0, 3, 2], [0, 1, 4], [1, 2, 4], [2, 3, 4], [3, 0, 4]],
    )
    config = PointSamplingConfig(
        surface_points=10, volume_points=10, near_points=6000, near_sigmas=[0.01, 0.0001]
    )
    samples, _ = sample_shape(big, config, 0)
    near = samples.points[samples.is_near]
    center = np.abs(near[:, [0, 2]]).max(axis=1) < 0.6
    for share, sigma in ((slice(0, 3000), 0.01), (slice(3000, None), 0.0001)):
        height = near[share][center[share] & (near[share, 1] > -0.05), 1]
        assert np.median(np.abs(height)) == pytest.approx(0.6745 * sigma, rel=0.15)


def test_sample_shape_is_complete_and_repeats_by_seed():
    mesh = Mesh(box().vertices, box().faces, np.diag([2.0, 2.0, 2.0, 1.0]))
    first, second, other = (sample_shape(mesh, CONFIG, seed)[0] for seed in (7, 7, 8))
    assert (
        first.surface.shape == (2000, 6)
        and first.points.shape == (7000, 3)
        and first.points.dtype == np.float32
    )
    assert first.is_near.sum() == 3000 and not first.is_near[:4000].any()
    assert (
        first.points == first.points.astype(np.float16)
    ).all()  # what is stored is what was labelled
    inner, outer = (
        in_box(first.points, np.array([1.0, 0.8, 1.2]) + change) for change in (-1e-5, 1e-5)
    )
    clear = inner == outer  # a rounded point can lie on a face, where either label is right
    assert clear.mean() > 0.99 and (first.inside == inner)[clear].all()
    assert first.inside[:4000].mean() == pytest.approx(0.96 / 8, abs=0.02)
    assert (first.to_source == mesh.to_source).all()
    for name in ("surface", "points", "inside"):
        assert (getattr(first, name) == getattr(second, name)).all()
    assert (first.points != other.points).any() and (first.surface != other.surface).any()


def test_near_points_stay_in_the_cube():
    config = PointSamplingConfig(
        surface_points=10, volume_points=10, near_points=2000, near_sigmas=[0.5]
    )
    assert (
        np.abs(sample_shape(as_mesh(box((1.9, 1.9, 1.9), (0, 0, 0))), config, 0)[0].points).max()
        == 1.0
    )


def test_a_flat_sheet_encloses_no_volume():
    sheet = Mesh(
        [[-0.9, 0, -0.9], [0.9, 0, -0.9], [0.9, 0, 0.9], [-0.9, 0, 0.9]], [[0, 2, 1], [0, 3, 2]]
    )
    bare = PointSamplingConfig(
        surface_points=2000, volume_points=4000, near_points=3000, min_thickness=0
    )
    with pytest.raises(MeshError, match="encloses no volume"):
        sample_shape(sheet, bare, 0)


@pytest.mark.parametrize("back", [[], [[0, 1, 2], [0, 2, 3]]], ids=["once", "both ways"])
def test_a_sheet_becomes_a_plate(back):
    """Of the wanted thickness to both sides, rounded where it ends; its normals look to both.

    Also where its faces are there twice, once in each direction.
    """
    sheet = Mesh(
        [[-0.9, 0, -0.9], [0.9, 0, -0.9], [0.9, 0, 0.9], [-0.9, 0, 0.9]],
        [[0, 2, 1], [0, 3, 2], *back],
    )
    config = PointSamplingConfig(
        surface_points=20_000,
        volume_points=4000,
        near_points=20_000,
        near_sigmas=[0.02],
        min_thickness=0.03,
    )
    samples, facts = sample_shape(sheet, config, 0)
    x, y, z = np.abs(samples.points).T
    beyond = np.hypot(np.maximum(x - 0.9, 0), np.maximum(z - 0.9, 0))
    expected = np.hypot(y, beyond) < 0.015
    clear = np.abs(np.hypot(y, beyond) - 0.015) > 1e-4
    assert (samples.inside == expected)[clear].all() and samples.inside[
        samples.is_near
    ].mean() > 0.5
    assert (
        0.45 < (samples.surface[:, 4] > 0).mean() < 0.55
        and facts["thin_share"] == 1
        and facts["watertight"] == bool(back)
    )


def test_a_thin_wall_is_padded_evenly_and_a_thick_one_is_not():
    wall, block = box((1.8, 0.01, 1.0), (0, 0.6, 0)), box((1.8, 0.5, 1.0), (0, -0.3, 0))
    config = PointSamplingConfig(
        surface_points=20_000,
        volume_points=4000,
        near_points=20_000,
        near_sigmas=[0.01],
        min_thickness=0.04,
    )
    samples, facts = sample_shape(as_mesh(trimesh.util.concatenate([wall, block])), config, 0)
    middle = (np.abs(samples.points[:, 0]) < 0.8) & (np.abs(samples.points[:, 2]) < 0.4)
    height = samples.points[:, 1]
    expected = (np.abs(height - 0.6) < 0.02) | (np.abs(height + 0.3) < 0.25)
    clear = (
        middle
        & (np.abs(np.abs(height - 0.6) - 0.02) > 1e-3)
        & (np.abs(np.abs(height + 0.3) - 0.25) > 1e-3)
    )
    assert (samples.inside == expected)[clear].mean() > 0.999
    assert 0.3 < facts["thin_share"] < 0.5
    assert (
        not sample_shape(
            as_mesh(wall),
            PointSamplingConfig(
                surface_points=900,
                volume_points=9,
                near_points=9000,
                near_sigmas=[0.01],
                min_thickness=0,
            ),
            0,
        )[0]
        .inside[9:]
        .mean()
        > 0.5
    )


def test_a_bowl_stays_open_and_a_box_without_a_floor_is_solid():
    ball = trimesh.creation.icosphere(4, 0.9)
    bowl = Mesh(ball.vertices, ball.faces[ball.triangles_center[:, 1] < -0.5])
    assert (
        WindingNumber(bowl)(np.array([[0, -0.7, 0]]))[0] > 0.5
    )  # which by itself counts as inside
    config = PointSamplingConfig(surface_points=4000, volume_points=20_000, near_points=100)
    samples, _ = sample_shape(bowl, config, 0)
    depth = np.linalg.norm(samples.points, axis=1)
    assert not samples.inside[depth < 0.85].any() and samples.inside.any()

    shape = box()
    no_floor = Mesh(shape.vertices, shape.faces[shape.face_normals[:, 1] > -0.5])
    samples, _ = sample_shape(no_floor, config, 0)
    deep = in_box(samples.points, (0.8, 0.5, 1.0))
    assert samples.inside[deep].all()


def test_walls_that_only_together_enclose_something_are_solid():
    shape = box()
    walls = trimesh.util.concatenate(
        [
            shape.submesh([np.flatnonzero(np.abs(shape.face_normals - n).sum(axis=1) < 1e-6)])[0]
            for n in np.concatenate([np.eye(3), -np.eye(3)])
        ]
    )
    samples, facts = sample_shape(as_mesh(walls), CONFIG, 0)
    assert (
        facts["components"] == 6 and samples.inside[in_box(samples.points, (0.9, 0.7, 1.1))].all()
    )


def test_what_is_buried_is_no_surface():
    other = {"extents": (0.5, 1.6, 0.6), "center": (-0.2, 0.1, 0.2)}
    for turned in (False, True):
        second = box(**other)
        if turned:  # a part that is inside out is a part all the same
            second.invert()
        both = as_mesh(trimesh.util.concatenate([box(), second]))
        surface = outer_surface(both, 4000, np.random.default_rng(0))
        outside = surface[:, :3] + 1e-3 * surface[:, 3:]
        within = surface[:, :3] - 1e-3 * surface[:, 3:]
        solid, free = (
            in_box(within) | in_box(within, **other),
            ~(in_box(outside) | in_box(outside, **other)),
        )
        assert surface.shape == (4000, 6) and solid.mean() > 0.995 and free.mean() > 0.995
        samples, facts = sample_shape(both, CONFIG, 0)
        expected = in_box(samples.points) | in_box(samples.points, **other)
        assert facts["buried_share"] > 0.15 and (samples.inside == expected).mean() > 0.999


def test_a_hollow_stays_hollow():
    outer, inner = trimesh.creation.icosphere(3, 0.9), trimesh.creation.icosphere(3, 0.5)
    inner.invert()
    samples, facts = sample_shape(as_mesh(trimesh.util.concatenate([outer, inner])), CONFIG, 0)
    assert (
        not samples.inside[np.linalg.norm(samples.points, axis=1) < 0.48].any()
        and facts["buried_share"] == 0
    )


def test_a_mesh_without_area_is_refused():
    with pytest.raises(MeshError, match="no surface area"):
        sample_surface(Mesh(np.zeros((3, 3)), [[0, 1, 2]]), 10, np.random.default_rng(0))


def test_large_meshes_are_worked_through_in_blocks(monkeypatch, points):
    """With blocks of a few faces: the same samples, volume and labels."""
    mesh = as_mesh(trimesh.creation.icosphere(2, 0.6))
    sampled, volume, labels = (
        sample_surface(mesh, 500, np.random.default_rng(1)),
        signed_volume(mesh),
        inside(mesh, points),
    )
    monkeypatch.setattr("tar3d.mesh.points.FACES_AT_ONCE", 7)
    assert (sample_surface(mesh, 500, np.random.default_rng(1)) == sampled).all()
    assert signed_volume(mesh) == pytest.approx(volume, rel=1e-12)
    clear = np.abs(np.linalg.norm(points, axis=1) - 0.6) > 0.02
    assert (inside(mesh, points) == labels)[clear].all()


def test_crossings_are_where_two_planes_mistake_one_leg_for_another():
    legs = np.array([[-0.5, -0.5], [0.5, -0.5], [-0.5, 0.5]])  # x, z of three of four corners
    rng = np.random.default_rng(0)
    floor = legs[rng.integers(3, size=3000)] + rng.uniform(-0.05, 0.05, (3000, 2))
    points = np.insert(floor, 1, rng.uniform(-1, 1, 3000), axis=1)
    crossed = crossings(points, np.random.default_rng(1))
    fourth = (np.abs(crossed[:, [0, 2]] - 0.5) < 0.06).all(axis=1)
    assert 0.02 < fourth.mean() < 0.2  # no point of the legs is there, and at random 0.4 % would be
    moved = (crossed != points).sum(axis=1)
    assert moved.max() == 1, "one coordinate of another point, the rest its own"
    assert np.array_equal(crossings(points, np.random.default_rng(1)), crossed)


def test_a_share_of_the_near_points_are_crossings_with_labels_of_their_own():
    legs = [box((0.1, 1.6, 0.1), (x, 0.0, z)) for x, z in ((-0.5, -0.5), (0.5, -0.5), (-0.5, 0.5))]
    mesh = as_mesh(trimesh.util.concatenate(legs))
    where = {}
    for share in (0.0, 0.5):
        samples, _ = sample_shape(mesh, replace(CONFIG, crossing_share=share), seed=0)
        near = samples.points[samples.is_near]
        where[share] = (np.abs(near[:, [0, 2]] - 0.5) < 0.1).all(axis=1)
        assert not samples.inside[samples.is_near][where[share]].any()
        truth = np.any(
            [
                in_box(near, (0.1, 1.6, 0.1), (x, 0.0, z))
                for x, z in ((-0.5, -0.5), (0.5, -0.5), (-0.5, 0.5))
            ],
            axis=0,
        )
        assert (samples.inside[samples.is_near] == truth).mean() > 0.99
        assert len(near) == CONFIG.near_points
    assert where[0.0].mean() < 0.002 < 0.01 < where[0.5].mean()
