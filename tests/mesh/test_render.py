"""Pictures against projective geometry: silhouette area, depth, which side is right, and the two
ways to see a face."""

import json

import numpy as np
import pytest
import trimesh

from tar3d.config import ViewConfig
from tar3d.contracts import Mesh
from tar3d.mesh.cameras import Camera, orbit, orbit_cameras
from tar3d.mesh.render import (
    Renderer,
    contact_sheet,
    render,
    render_preview,
    render_previews,
    rgba,
    save_turntable,
)


def ball(center=(0.0, 0.0, 0.0), radius=0.5, detail=4) -> Mesh:
    shape = trimesh.creation.icosphere(detail, radius)
    return Mesh(shape.vertices + center, shape.faces)


def centroid(mask: np.ndarray) -> tuple[float, float]:
    """(column, row) relative to the middle of the picture, both in [-1, 1], row downwards."""
    axis = (np.arange(len(mask)) + 0.5) / len(mask) * 2 - 1
    return float((mask.sum(axis=0) * axis).sum() / mask.sum()), float(
        (mask.sum(axis=1) * axis).sum() / mask.sum()
    )


def test_sphere_has_its_analytic_silhouette_and_depth():
    picture = render(ball(radius=0.8), orbit(35, 20, 4.0, 35.0), 129)
    radius = (
        0.8 / np.sqrt(16 - 0.64) / np.tan(np.radians(17.5)) * 129 / 2
    )  # tangent cone, in pixels
    assert picture.mask.sum() == pytest.approx(np.pi * radius**2, rel=0.005)
    assert picture.depth[64, 64] == pytest.approx(3.2, abs=0.003)
    assert centroid(picture.mask) == pytest.approx((0, 0), abs=0.002)


def test_depth_is_along_the_view_direction():
    wall = Mesh([[-9, -9, 0], [9, -9, 0], [9, 9, 0], [-9, 9, 0]], [[0, 1, 2], [0, 2, 3]])
    picture = render(wall, orbit(0, 0, 3.0, 60.0), 32)
    assert np.allclose(picture.depth, 3.0, atol=1e-5) and (picture.mask == 1).all()
    assert np.allclose(picture.normal, [0, 0, 1], atol=1e-6)


def test_nothing_hit_is_infinitely_far_and_fully_transparent():
    picture = render(ball(radius=0.2), orbit(0, 0, 4.0, 35.0), 64)
    empty = picture.mask == 0
    assert (
        empty.any() and np.isinf(picture.depth[empty]).all() and (picture.normal[empty] == 0).all()
    )
    assert np.isfinite(picture.depth[~empty]).all()
    assert np.allclose(np.linalg.norm(picture.normal[~empty], axis=-1), 1, atol=1e-5)


@pytest.mark.parametrize(
    ("azimuth", "elevation", "center", "expected"),
    [
        (0, 0, (0.6, 0, 0), (1, 0)),  # from +Z: +X is right
        (0, 0, (0, 0.6, 0), (0, -1)),  # and +Y is up
        (90, 0, (0, 0, 0.6), (-1, 0)),  # from +X: +Z is left
        (180, 0, (0.6, 0, 0), (-1, 0)),
        (0, 90, (0.6, 0, 0), (1, 0)),  # straight from above: +X stays right, +Z is at the bottom
        (0, 90, (0, 0, 0.6), (0, 1)),
        (0, -90, (0, 0, 0.6), (0, -1)),
    ],
)
def test_right_is_right_and_up_is_up(azimuth, elevation, center, expected):
    place = centroid(render(ball(center, 0.2, 3), orbit(azimuth, elevation, 4.0, 35.0), 64).mask)
    assert np.allclose(np.array(place) / np.abs(place).max(), expected, atol=0.02)


def test_an_orbit_camera_is_where_its_angles_say():
    assert orbit(0, 0, 4, 35).position == pytest.approx((0, 0, 4))
    assert orbit(90, 0, 4, 35).position == pytest.approx((4, 0, 0))
    assert orbit(30, 40, 4, 35).position[1] == pytest.approx(4 * np.sin(np.radians(40)))
    axes = orbit(30, 40, 4, 35).axes()
    assert np.allclose(axes @ axes.T, np.eye(3)) and np.linalg.det(axes) == pytest.approx(
        -1
    )  # right, up, forward


def test_winding_does_not_change_the_picture():
    mesh = ball()
    inverted = Mesh(mesh.vertices, mesh.faces[:, ::-1])
    first, second = (render(m, orbit(20, 30, 4, 35), 64) for m in (mesh, inverted))
    assert np.abs(first.color.astype(int) - second.color.astype(int)).max() <= 1
    assert np.allclose(first.normal, second.normal, atol=1e-3)


def test_normals_are_smooth_on_a_ball_and_sharp_on_a_box():
    picture = render(ball(radius=0.8, detail=2), orbit(0, 0, 40.0, 3.0), 65)
    axis = ((np.arange(65) + 0.5) / 65 * 2 - 1) * np.tan(np.radians(1.5)) * 40
    x, y = np.meshgrid(axis, -axis)
    core = np.hypot(x, y) < 0.6
    assert np.abs(picture.normal[core, :2] - np.stack([x, y], axis=-1)[core] / 0.8).max() < 0.03
    box = trimesh.creation.box((1, 1, 1))
    normal = render(Mesh(box.vertices, box.faces), orbit(30, 30, 4, 35), 64, supersample=1).normal
    assert set(map(tuple, np.round(normal.reshape(-1, 3), 3) + 0.0)) == {
        (0, 0, 0),
        (1, 0, 0),
        (0, 1, 0),
        (0, 0, 1),
    }


def test_coverage_is_antialiased_and_background_is_mixed_by_it():
    renderer, camera = Renderer(ball()), orbit(0, 0, 4, 35)
    plain, red = renderer.render(camera, 48), renderer.render(camera, 48, background=(255, 0, 0))
    assert set(np.unique(plain.mask)) == {0, 0.25, 0.5, 0.75, 1}
    mixed = plain.color * plain.mask[..., None] + np.array([255, 0, 0]) * (
        1 - plain.mask[..., None]
    )
    assert np.abs(red.color - mixed).max() <= 1
    assert set(np.unique(renderer.render(camera, 48, supersample=1).mask)) == {0, 1}


def test_rgba_is_straight_and_refuses_a_mixed_background():
    picture = render(ball(), orbit(0, 0, 4, 35), 48)
    image = rgba(picture)
    assert image.shape == (48, 48, 4) and image.dtype == np.uint8
    edge = (picture.mask > 0) & (picture.mask < 1)
    assert (
        image[edge, :3].min() > 30
    )  # the object's own colour, not darkened by the emptiness beside it
    with pytest.raises(ValueError, match="background"):
        rgba(render(ball(), orbit(0, 0, 4, 35), 48, background=(0, 0, 0)))


def test_shading_tells_top_from_bottom_and_never_clips():
    color = render(ball(radius=0.8), orbit(0, 0, 4, 35), 64).color
    assert color[20, 32].mean() > color[44, 32].mean() + 40
    assert color[32, 32].mean() > 30 and color.max() < 255


def test_bands_change_nothing(monkeypatch):
    whole = render(ball(), orbit(10, 10, 4, 35), 50)
    monkeypatch.setattr("tar3d.mesh.render._RAYS_AT_ONCE", 1500)
    banded = render(ball(), orbit(10, 10, 4, 35), 50)
    for name in ("color", "mask", "depth", "normal"):
        assert (getattr(whole, name) == getattr(banded, name)).all()


def test_cameras_repeat_by_seed_and_keep_their_ranges():
    config = ViewConfig(count=200, azimuth=[-30, 50], elevation=[10, 20], distance=3.0)
    first, second = (orbit_cameras(config, np.random.default_rng(5)) for _ in range(2))
    assert first == second and len(first) == 200
    positions = np.array([camera.position for camera in first])
    azimuth = np.degrees(np.arctan2(positions[:, 0], positions[:, 2]))
    elevation = np.degrees(np.arcsin(positions[:, 1] / 3.0))
    assert -30 <= azimuth.min() < -25 and 45 < azimuth.max() <= 50
    assert 10 <= elevation.min() < 11 and 19 < elevation.max() <= 20


def test_a_camera_survives_json():
    camera = orbit(12.5, 33.0, 2.5, 40.0)
    assert Camera.from_json(json.loads(json.dumps(camera.to_json()))) == camera


def test_impossible_cameras_and_sizes_are_refused():
    with pytest.raises(ValueError, match="cannot have up"):
        Camera((0, 3, 0))
    with pytest.raises(ValueError, match="field_of_view"):
        Camera((0, 0, 3), field_of_view=180)
    with pytest.raises(ValueError, match="supersample"):
        render(ball(), orbit(0, 0, 4, 35), 16, supersample=0)


def test_contact_sheet_places_rows_and_columns():
    red, blue = np.zeros((20, 20, 3), np.uint8), np.zeros((20, 20, 3), np.uint8)
    red[..., 0], blue[..., 2] = 255, 255
    sheet = np.asarray(contact_sheet([[red, blue], [blue]], ["input", "output"]))
    plain = np.asarray(contact_sheet([[red, blue], [blue]]))
    assert (plain[14, 14] == [255, 0, 0]).all() and (plain[14, 38] == [0, 0, 255]).all()
    assert (plain[38, 14] == [0, 0, 255]).all() and (plain[38, 38] == 255).all()
    assert sheet.shape[0] > plain.shape[0] and sheet[: sheet.shape[0] - plain.shape[0]].min() < 128
    with pytest.raises(ValueError, match="share one shape"):
        contact_sheet([[red, blue[:10]]])


def test_a_very_fine_mesh_looks_the_same_in_a_preview(monkeypatch):
    mesh = ball(detail=6)
    fine = render_preview(mesh, 64)
    monkeypatch.setattr("tar3d.mesh.render._PREVIEW_FACES", 1000)
    monkeypatch.setattr("tar3d.mesh.render._PREVIEW_CELL", 1 / 32)
    coarse = render_preview(mesh, 64)
    assert 0 < np.abs(fine.astype(int) - coarse).mean() < 2


def test_previews_and_turntables_build_the_ray_structure_once(monkeypatch, tmp_path):
    mesh, built = ball(), []
    single = [render_preview(mesh, 32, azimuth) for azimuth in (0.0, 120.0)]
    monkeypatch.setattr(
        "tar3d.mesh.render.Renderer", lambda mesh: built.append(mesh) or Renderer(mesh)
    )
    assert np.array_equal([*render_previews(mesh, 32, (0.0, 120.0))], single)
    assert [image.min() for image in render_previews(None, 8, (0.0,))] == [255]
    save_turntable(mesh, tmp_path / "turn.gif", size=32, frames=3)
    assert len(built) == 2


@pytest.mark.parametrize(
    "camera",
    [
        orbit(30, 20, 5.5, 35.0),
        Camera((0.0, 0.0, 6.0), (1.5, 0.2, 0.0), field_of_view=10.0),  # the mesh leaves the frame
        Camera((0.0, 0.0, 6.0), (9.0, 0.2, 0.0), field_of_view=10.0),  # and is out of it
        Camera((0.1, 0.2, 0.3), (0.0, 0.2, 5.0), field_of_view=70.0),  # the camera is in its box
    ],
)
def test_rays_that_cannot_hit_are_left_out_without_a_difference(camera, monkeypatch):
    renderer = Renderer(ball((0.2, -0.1, 0.0), radius=0.6, detail=2))
    cropped = renderer.render(camera, 33)
    monkeypatch.setattr(Renderer, "_extent", lambda _, __, size: (0, 0, size, size))
    whole = renderer.render(camera, 33)
    for name in ("color", "mask", "normal", "depth"):
        assert np.array_equal(getattr(cropped, name), getattr(whole, name)), name
