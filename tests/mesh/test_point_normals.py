"""Estimated normals: on the surface's line, the right way round; what tells inward normals and
unevenly spread points."""

import os
from pathlib import Path

import numpy as np
import pytest
import trimesh

from tar3d.contracts import Mesh
from tar3d.mesh.load import load_mesh, normalize
from tar3d.mesh.point_cloud import MAX_UNEVENNESS, MIN_OUTWARD
from tar3d.mesh.point_normals import estimate_normals, outward_share, unevenness
from tar3d.mesh.points import sample_surface

DATASETS = Path(
    os.environ.get("TAR3D_DATASETS") or Path(__file__).parents[3] / "shared" / "datasets"
)


def of(shape: trimesh.Trimesh) -> Mesh:
    return normalize(shape.vertices, shape.faces)


def bowl() -> trimesh.Trimesh:
    """A sheet without thickness: the lower part of a sphere, seen from within through its
    opening."""
    ball = trimesh.creation.icosphere(4)
    return trimesh.Trimesh(ball.vertices, ball.faces[ball.triangles_center[:, 1] < 0.2])


def cup() -> trimesh.Trimesh:
    """Thick walls, seen from within through the opening alone."""
    return trimesh.creation.revolve(
        np.array([[0, 0], [0.5, 0], [0.5, 1], [0.42, 1], [0.42, 0.08], [0, 0.08]]), sections=64
    )


def two_balls(inner: float = 1.0, shift: float = 3.0) -> trimesh.Trimesh:
    return trimesh.util.concatenate(
        [
            trimesh.creation.icosphere(4),
            trimesh.creation.icosphere(4, inner).apply_translation((shift, 0, 0)),
        ]
    )


SHAPES = {
    "sphere": trimesh.creation.icosphere(4),
    "torus": trimesh.creation.torus(0.7, 0.25),
    "cube": trimesh.creation.box(),
    "plate": trimesh.creation.box((1, 0.05, 1)),
    "cup": cup(),
    "bowl": bowl(),
    "two balls": two_balls(),
    "ball in a ball": two_balls(0.5, 0.0),
}


def right_share(estimated: np.ndarray, true: np.ndarray) -> float:
    return float((np.einsum("ij,ij->i", estimated, true) > 0).mean())


@pytest.mark.parametrize("name", SHAPES)
def test_estimated_normals_are_the_right_way_round(name):
    surface = sample_surface(of(SHAPES[name]), 6000, np.random.default_rng(0))
    estimated = estimate_normals(surface[:, :3])
    assert np.allclose(np.linalg.norm(estimated, axis=1), 1)
    assert right_share(estimated, surface[:, 3:]) >= 0.98


def test_estimated_normals_stand_on_the_surface():
    surface = sample_surface(of(SHAPES["torus"]), 6000, np.random.default_rng(0))
    assert np.einsum("ij,ij->i", estimate_normals(surface[:, :3]), surface[:, 3:]).mean() > 0.99


def test_estimated_normals_bear_noise():
    surface = sample_surface(of(SHAPES["torus"]), 6000, np.random.default_rng(0))
    moved = surface[:, :3] + np.random.default_rng(1).normal(scale=0.005, size=(6000, 3))
    assert right_share(estimate_normals(moved), surface[:, 3:]) >= 0.98


def test_estimated_normals_turn_with_the_points():
    points = sample_surface(of(SHAPES["cube"]), 2000, np.random.default_rng(0))[:, :3].astype(
        np.float64
    )
    turn = trimesh.transformations.rotation_matrix(1.0, (1, 2, 3))[:3, :3]
    both = estimate_normals(points @ turn.T), estimate_normals(points) @ turn.T
    assert (np.einsum("ij,ij->i", *both) > 0.99).mean() > 0.98


def test_estimated_normals_of_points_in_a_plane_or_on_a_line_are_finite():
    rng = np.random.default_rng(0)
    plane = np.concatenate([rng.uniform(-1, 1, (500, 2)), np.zeros((500, 1))], axis=1)
    assert np.allclose(np.abs(estimate_normals(plane)[:, 2]), 1)
    line = rng.uniform(-1, 1, (500, 1)) * np.array([1.0, 1.0, 0.0])
    assert np.isfinite(estimate_normals(line)).all()


@pytest.mark.parametrize("name", SHAPES)
def test_inward_normals_are_told_from_outward_ones(name):
    surface = sample_surface(of(SHAPES[name]), 3000, np.random.default_rng(0))
    share = outward_share(surface[:, :3], surface[:, 3:])
    assert share > 1 - MIN_OUTWARD and outward_share(
        surface[:, :3], -surface[:, 3:]
    ) == pytest.approx(1 - share)


def test_vertices_are_told_from_points_uniform_over_the_surface():
    globe = of(trimesh.creation.uv_sphere(count=(100, 100)))  # crowded at its poles
    assert unevenness(globe.vertices) > MAX_UNEVENNESS
    for shape in SHAPES.values():
        assert unevenness(sample_surface(of(shape), 1000, np.random.default_rng(0))[:, :3]) < 0.3


@pytest.mark.skipif(
    not (DATASETS / "dev" / "meshes").is_dir(),
    reason="the development meshes are absent; TAR3D_DATASETS",
)
def test_real_meshes():
    """Over 75 of them the mean is 0.92; among these are thin plates and sides that no view
    reaches."""
    paths = sorted((DATASETS / "dev" / "meshes").rglob("*.glb"))[9::150]
    shares, uniform, vertices = [], [], []
    for path in paths:
        mesh = load_mesh(path)
        surface = sample_surface(mesh, 8192, np.random.default_rng(0))
        shares.append(right_share(estimate_normals(surface[:, :3]), surface[:, 3:]))
        uniform.append(unevenness(surface[:, :3]))
        vertices.append(unevenness(mesh.vertices))
    assert np.mean(shares) > 0.88
    assert max(uniform) < MAX_UNEVENNESS and np.mean(np.array(vertices) > MAX_UNEVENNESS) >= 0.5
