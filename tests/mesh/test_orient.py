"""Faces that disagree with their neighbours are turned; all other meshes stay as they are."""

import numpy as np
import pytest
import trimesh

from tar3d.config import PointSamplingConfig
from tar3d.mesh.load import normalize
from tar3d.mesh.orient import oriented
from tar3d.mesh.points import sample_shape
from tar3d.mesh.winding import unbalanced_edges

SPHERE = trimesh.creation.icosphere(subdivisions=3)
SAMPLING = PointSamplingConfig(surface_points=512, volume_points=4096, near_points=512)


def turned(mesh, which):
    return np.where(np.asarray(which)[:, None], mesh.faces[:, ::-1], mesh.faces)


MIDDLE = SPHERE.triangles_center
PARTS = {
    "some": np.random.default_rng(0).random(len(MIDDLE)) < 0.05,
    "every other": np.random.default_rng(0).random(len(MIDDLE)) < 0.5,
    "half": MIDDLE[:, 1] > 0,
    "stripes": (5 * MIDDLE[:, 0]).astype(int) % 2 == 0,
}


@pytest.mark.parametrize("which", PARTS.values(), ids=PARTS)
def test_a_solid_whose_faces_are_partly_turned_is_the_same_solid(which):
    mesh = normalize(SPHERE.vertices, turned(SPHERE, which))
    assert len(unbalanced_edges(mesh.faces)[0]) == 0
    facts = sample_shape(mesh, SAMPLING, 0)[1]
    assert facts["inside_share"] == pytest.approx(np.pi / 6 * 0.95**3, abs=0.03)


def test_the_larger_part_keeps_its_winding_and_the_faces_their_order():
    box = trimesh.creation.box()
    which = np.arange(12) < 3
    assert (oriented(box.vertices, turned(box, which)) == box.faces).all()
    assert (oriented(box.vertices, turned(box, ~which)) == box.faces[:, ::-1]).all()


def test_agreeing_faces_one_sided_strips_and_crossing_walls_stay_as_they_are():
    i = 2 * np.arange(20)
    end = np.where(i == 38, [[1], [0]], [i + 2, i + 3])  # the last rung meets the first crosswise
    strip = np.concatenate([np.stack([i, i + 1, end[0]], 1), np.stack([i + 1, end[1], end[0]], 1)])
    fan = np.array([[0, 1, 2], [0, 1, 3], [1, 0, 4]])  # three faces at one edge
    vertices = np.random.default_rng(0).random((40, 3))
    for faces in (strip, fan, SPHERE.faces[:, ::-1]):
        assert (oriented(vertices if len(faces) < 50 else SPHERE.vertices, faces) == faces).all()


@pytest.mark.parametrize(("turned_faces", "mended"), [(1, True), (4, False)])
def test_a_patch_between_others_is_turned_by_a_clear_majority_alone(turned_faces, mended):
    box = trimesh.creation.box()
    wall = np.array([box.faces[0][:2].tolist() + [8]])  # a third face at one of the box's edges
    vertices = np.concatenate([box.vertices, [[2, 2, 2]]])
    given = np.concatenate([turned(box, np.arange(12) < turned_faces), wall])
    wanted = np.concatenate([box.faces, wall]) if mended else given
    assert (oriented(vertices, given) == wanted).all()
