"""Extraction against analytic shapes: place, size, closedness, winding, handedness, and independence of the chunk size."""

import numpy as np
import pytest
import trimesh

from tar3d.contracts import Mesh
from tar3d.mesh.extract import EmptyFieldError, drop_small_components, extract
from tar3d.mesh.points import signed_volume

CENTER = np.array([0.13, -0.21, 0.07])


def sphere(points: np.ndarray, center=CENTER, radius=0.55) -> np.ndarray:
    return radius - np.linalg.norm(points - center, axis=1)


def assert_closed_and_outward(mesh: Mesh) -> None:
    shape = trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)
    assert shape.is_watertight and shape.is_winding_consistent
    assert shape.volume > 0


@pytest.mark.parametrize("resolution", [16, 33, 64])
def test_sphere_is_where_it_was(resolution):
    mesh = extract(sphere, resolution)
    cell = 2 / resolution
    shape = trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)
    assert np.linalg.norm(shape.center_mass - CENTER) < 0.1 * cell
    assert np.abs(np.linalg.norm(mesh.vertices - CENTER, axis=1) - 0.55).max() < 0.5 * cell
    assert_closed_and_outward(mesh)


def test_a_plane_is_recovered_exactly_at_any_place():
    for place in (-0.83, 0.0101, 0.77):
        mesh = extract(lambda p, place=place: np.minimum(p[:, 0] - place, 0.9 - np.abs(p).max(axis=1)), 20)
        assert mesh.vertices[:, 0].min() == pytest.approx(place, abs=1e-5)


def test_chunk_size_changes_nothing():
    whole = extract(sphere, 24)
    for chunk in (1000, 7777, 25**3 - 1):
        part = extract(sphere, 24, chunk=chunk)
        assert (part.vertices == whole.vertices).all() and (part.faces == whole.faces).all()


def test_the_field_is_asked_in_chunks_of_float32_points_on_the_lattice():
    asked = []

    def record(points: np.ndarray) -> np.ndarray:
        asked.append(points)
        return sphere(points)

    extract(record, 8, chunk=100)
    assert all(p.dtype == np.float32 and len(p) <= 100 for p in asked)
    lattice = np.stack(np.meshgrid(*[np.linspace(-1, 1, 9)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    assert np.allclose(np.concatenate(asked), lattice)


def test_handedness_and_axes_survive():
    """One arm along each axis, of different lengths and sides."""
    arms = np.array([[0.8, 0, 0], [0, -0.6, 0], [0, 0, 0.4]])

    def field(points: np.ndarray) -> np.ndarray:
        capsules = []
        for tip in arms:
            along = np.clip(points @ tip / (tip @ tip), 0, 1)
            capsules.append(0.12 - np.linalg.norm(points - along[:, None] * tip, axis=1))
        return np.max(capsules, axis=0)

    mesh = extract(field, 50)
    assert np.allclose(mesh.vertices.max(axis=0), [0.92, 0.12, 0.52], atol=0.01)
    assert np.allclose(mesh.vertices.min(axis=0), [-0.12, -0.72, -0.12], atol=0.01)


def test_level_moves_the_surface():
    assert np.linalg.norm(extract(sphere, 32, level=0.2).vertices - CENTER, axis=1).max() == pytest.approx(0.35, abs=0.02)


@pytest.mark.parametrize("radius", [1.05, 1.4, 1.7])
def test_an_object_that_touches_the_cube_is_closed_at_its_border(radius):
    mesh = extract(lambda p: sphere(p, 0, radius), 24)
    assert_closed_and_outward(mesh)
    assert np.abs(mesh.vertices).max() == 1.0


def test_a_full_field_is_the_cube():
    mesh = extract(lambda p: np.full(len(p), 3.0), 8)
    assert_closed_and_outward(mesh)
    assert signed_volume(mesh) == pytest.approx(8.0, rel=1e-6)


@pytest.mark.parametrize("values", [[-1.0, 1.0], [-1.0, 0.0, 1.0], None])
def test_any_field_is_closed_even_with_ties(values):
    rng = np.random.default_rng(0)
    draw = (lambda p: rng.standard_normal(len(p))) if values is None else (lambda p: rng.choice(values, len(p)))
    shape = extract(draw, 16)
    assert trimesh.Trimesh(shape.vertices, shape.faces, process=False).is_watertight


@pytest.mark.parametrize("scale", [1e-20, 1e30])
def test_the_scale_of_the_field_does_not_matter(scale):
    assert np.allclose(extract(lambda p: sphere(p) * scale, 16).vertices, extract(sphere, 16).vertices, atol=1e-5)


def test_an_empty_field_is_named():
    with pytest.raises(EmptyFieldError, match=r"largest value on the 9\^3 lattice is -0\.5, not above the level 0"):
        extract(lambda p: np.full(len(p), -0.5), 8)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_field_that_is_not_finite_is_refused(bad):
    with pytest.raises(ValueError, match="NaN or infinite"):
        extract(lambda p: np.where(p[:, 0] > 0.9, bad, 1.0), 8)


def test_a_field_of_the_wrong_shape_is_refused():
    with pytest.raises(ValueError, match="must map"):
        extract(lambda p: sphere(p)[:, None], 8)


def test_small_components_are_dropped_by_volume():
    def three(points: np.ndarray) -> np.ndarray:
        parts = [sphere(points, (-0.4, 0, 0), 0.4), sphere(points, (0.5, 0, 0), 0.2), sphere(points, (0.2, 0.8, 0), 0.08)]
        return np.max(parts, axis=0)

    mesh = extract(three, 48)
    assert len(trimesh.Trimesh(mesh.vertices, mesh.faces, process=False).split()) == 3
    for share, left in ((0.0, 3), (0.05, 2), (0.5, 1), (1.0, 1)):
        kept = drop_small_components(mesh, share)
        assert_closed_and_outward(kept)
        assert len(trimesh.Trimesh(kept.vertices, kept.faces, process=False).split()) == left
    assert kept.vertices[:, 0].max() == pytest.approx(0.0, abs=0.01)
