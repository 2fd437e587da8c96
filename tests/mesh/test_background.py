"""Sky domes, ground planes and stray specks are told from objects."""

import numpy as np
import pytest
import trimesh

from tar3d.config import PointSamplingConfig
from tar3d.contracts import Mesh
from tar3d.mesh.background import middle_span, scene_note
from tar3d.mesh.load import normalize
from tar3d.mesh.points import sample_shape, sample_surface

CONFIG = PointSamplingConfig(surface_points=500, volume_points=500, near_points=500)
CHAIR = [
    trimesh.creation.box((1, 0.2, 1)),
    trimesh.creation.box((1, 1, 0.1)).apply_translation((0, 0.6, -0.4)),
]
FLOOR = trimesh.creation.box((40, 0, 40)).apply_translation((0, -0.1, 0))
DOME = trimesh.creation.icosphere(3, 30)
HALF_DOME = trimesh.Trimesh(DOME.vertices, DOME.faces[DOME.triangles_center[:, 1] > -1])
SKY_BOX = [trimesh.creation.box([40 * (a != k) for a in range(3)]) for k in range(3)]
SKY_BOX = [
    wall.copy().apply_translation(side * np.eye(3)[k])
    for k, wall in enumerate(SKY_BOX)
    for side in (-20, 20)
]
KNOB = trimesh.creation.icosphere(2, 0.02).apply_translation((0, 0.12, 0))
SPECK = trimesh.creation.box((0.01, 0.01, 0.01)).apply_translation((60, 5, 3))


def facts(parts) -> dict[str, float]:
    mesh = trimesh.util.concatenate(parts)
    return sample_shape(normalize(mesh.vertices, mesh.faces), CONFIG, 0)[1]


@pytest.mark.parametrize(
    "background",
    [[FLOOR], [DOME], [HALF_DOME], [HALF_DOME, FLOOR], SKY_BOX, [DOME, FLOOR]],
    ids=["floor", "dome", "half dome", "half dome and floor", "sky box", "dome and floor"],
)
def test_a_background_is_found_with_its_share(background):
    found = facts([*CHAIR, *background])
    assert found["background_share"] > 0.9 and found["object_span"] < 0.06


def test_a_stray_speck_makes_the_object_small():
    found = facts([*CHAIR, SPECK])
    assert found["background_share"] == 0 and found["object_span"] < 0.05


@pytest.mark.parametrize(
    "parts", [CHAIR, [*CHAIR, KNOB], [CHAIR[0], KNOB], SKY_BOX], ids=["chair", "knob", "box", "six"]
)
def test_an_object_is_no_background(parts):
    found = facts(parts)
    assert found["background_share"] == 0 and found["object_span"] > 0.6


def test_only_pieces_of_a_mesh_are_backgrounds():
    sphere = Mesh(DOME.vertices / 32, DOME.faces)
    assert sample_shape(sphere, CONFIG, 0)[1]["background_share"] == 0


@pytest.mark.parametrize("stray", [0.0, 0.01, 0.06])
def test_a_stray_part_is_found_by_the_span_of_the_middle(stray):
    points = np.random.default_rng(0).uniform(-0.95, 0.95, (4000, 3))
    if stray:
        points[int(stray * 4000) :] = 0.005 * points[int(stray * 4000) :] - 0.9
    span, share = middle_span(points)
    assert span < 0.01 if stray else span > 0.9
    assert share == pytest.approx(0.8 if stray else 0.96)


@pytest.mark.parametrize(
    ("parts", "note"),
    [([*CHAIR, FLOOR], "ground plane"), ([*CHAIR, SPECK], "stray pieces"), ([*CHAIR, KNOB], "")],
)
def test_what_makes_the_object_small_is_noted(parts, note):
    mesh = trimesh.util.concatenate(parts)
    mesh = normalize(mesh.vertices, mesh.faces)
    points = sample_surface(mesh, 500, np.random.default_rng(0))[:, :3]
    found = scene_note(mesh, points)
    assert note in found if note else not found


def test_a_stray_point_of_a_cloud_is_noted():
    points = np.random.default_rng(0).uniform(-0.9, 0.9, (500, 3))
    assert not scene_note(None, points)
    assert "stray points" in scene_note(None, np.concatenate([points / 500, [[0.9, 0.9, 0.9]]]))
