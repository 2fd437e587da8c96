"""Fewer faces, the same shape: closed, of the same pieces and holes."""

import numpy as np
import pytest
import trimesh

from tar3d.contracts import Mesh
from tar3d.mesh.simplify import simplify
from tar3d.metrics.geometry import surface_cloud, surface_scores


def as_trimesh(mesh: Mesh) -> trimesh.Trimesh:
    return trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)


def sphere(*centre: float) -> trimesh.Trimesh:
    ball = trimesh.creation.icosphere(4, radius=0.5)
    ball.apply_translation(centre)
    return ball


@pytest.mark.parametrize(
    "shape",
    [
        sphere(0, 0, 0),
        trimesh.creation.torus(0.6, 0.2, 96, 48),
        trimesh.util.concatenate([sphere(-0.5, 0, 0), sphere(0.6, 0, 0)]),
    ],
    ids=["sphere", "torus", "two pieces"],
)
def test_the_surface_stays_where_it_is_and_closed(shape):
    before = Mesh(shape.vertices, shape.faces, np.diag([2.0, 2.0, 2.0, 1.0]))
    after = simplify(before, 600)
    found = as_trimesh(after)
    assert len(after.faces) == 600 and found.is_watertight and found.is_winding_consistent
    assert found.euler_number == shape.euler_number and found.body_count == shape.body_count
    assert (
        found.volume == pytest.approx(shape.volume, rel=0.02)
        and (after.to_source == before.to_source).all()
    )
    clouds = [surface_cloud(mesh, 2000, seed) for seed, mesh in enumerate((after, before))]
    assert surface_scores(after, before, *clouds, thresholds=[0.01])["surface_hausdorff"] < 0.02


def test_flat_parts_lose_their_faces_first():
    box = trimesh.creation.box((1.0, 1.0, 1.0)).subdivide().subdivide().subdivide()
    after = as_trimesh(simplify(Mesh(box.vertices, box.faces), 12))
    assert len(after.faces) == 12 and after.volume == pytest.approx(1.0, abs=1e-4)


def test_a_hole_is_never_closed_and_a_mesh_of_few_faces_is_left_alone():
    ring = trimesh.creation.torus(0.6, 0.2, 24, 12)
    mesh = Mesh(ring.vertices, ring.faces)
    least = simplify(mesh, 4)
    assert (
        14 <= len(least.faces) < 40 and as_trimesh(least).euler_number == 0
    )  # no torus has fewer than 14
    assert simplify(mesh, len(mesh.faces)) is mesh


def test_refusals():
    three_at_an_edge = Mesh(np.eye(5, 3), [[0, 1, 2], [0, 1, 3], [1, 0, 4], [0, 2, 3], [1, 2, 3]])
    with pytest.raises(ValueError, match="an edge has more than two faces cannot be simplified"):
        simplify(three_at_an_edge, 4)
    with pytest.raises(ValueError, match="cannot have 3 faces: ask for 4"):
        simplify(three_at_an_edge, 3)
