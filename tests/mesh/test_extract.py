"""Extraction against analytic shapes (place, size, closedness, winding, handedness), against
scikit-image's marching cubes, and coarse to fine against the dense lattice."""

import functools
from collections.abc import Callable

import numpy as np
import pytest
import torch
import trimesh
from skimage.measure import marching_cubes
from torch import Tensor

from tar3d.contracts import Mesh
from tar3d.mesh import lattice
from tar3d.mesh.extract import EmptyFieldError, drop_small_components, extract
from tar3d.mesh.load import face_components
from tar3d.mesh.points import signed_volume

CENTER = (0.13, -0.21, 0.07)


def sphere(points: Tensor, center=CENTER, radius=0.55) -> Tensor:
    return radius - (points - torch.tensor(center, device=points.device)).norm(dim=1)


def union(*fields: Tensor) -> Tensor:
    return functools.reduce(torch.maximum, fields)


class Counted:
    """A field that knows how many points it was asked for."""

    def __init__(self, field: Callable[[Tensor], Tensor]) -> None:
        self.field, self.asked = field, 0

    def __call__(self, points: Tensor) -> Tensor:
        self.asked += len(points)
        return self.field(points)


def assert_equal(mesh: Mesh, other: Mesh) -> None:
    assert (mesh.faces == other.faces).all() and (mesh.vertices == other.vertices).all()


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
        mesh = extract(
            lambda p, place=place: torch.minimum(p[:, 0] - place, 0.9 - p.abs().amax(dim=1)), 20
        )
        assert mesh.vertices[:, 0].min() == pytest.approx(place, abs=1e-5)


def test_chunk_size_changes_nothing():
    whole = extract(sphere, 24)
    for chunk in (1000, 7777, 25**3 - 1):
        assert_equal(extract(sphere, 24, chunk=chunk), whole)


def test_the_field_is_asked_in_chunks_of_float32_points_on_the_lattice():
    asked = []

    def record(points: Tensor) -> Tensor:
        asked.append(points)
        return sphere(points)

    extract(record, 8, chunk=100)
    assert all(p.dtype == torch.float32 and len(p) <= 100 for p in asked)
    points = np.stack(np.meshgrid(*[np.linspace(-1, 1, 9)] * 3, indexing="ij"), axis=-1).reshape(
        -1, 3
    )
    assert np.allclose(torch.cat(asked), points)


def test_handedness_and_axes_survive():
    """One arm along each axis, of different lengths and sides."""
    arms = torch.tensor([[0.8, 0, 0], [0, -0.6, 0], [0, 0, 0.4]])

    def field(points: Tensor) -> Tensor:
        along = [(points @ tip / (tip @ tip)).clamp(0, 1)[:, None] * tip for tip in arms]
        return union(*(0.12 - (points - nearest).norm(dim=1) for nearest in along))

    mesh = extract(field, 50)
    assert np.allclose(mesh.vertices.max(axis=0), [0.92, 0.12, 0.52], atol=0.01)
    assert np.allclose(mesh.vertices.min(axis=0), [-0.12, -0.72, -0.12], atol=0.01)


def test_level_moves_the_surface():
    assert np.linalg.norm(
        extract(sphere, 32, level=0.2).vertices - CENTER, axis=1
    ).max() == pytest.approx(0.35, abs=0.02)


@pytest.mark.parametrize("radius", [1.05, 1.4, 1.7])
def test_an_object_that_touches_the_cube_is_closed_at_its_border(radius):
    mesh = extract(lambda p: sphere(p, (0, 0, 0), radius), 24)
    assert_closed_and_outward(mesh)
    assert np.abs(mesh.vertices).max() == 1.0


def test_a_full_field_is_the_cube():
    mesh = extract(lambda p: torch.full((len(p),), 3.0), 8)
    assert_closed_and_outward(mesh)
    assert signed_volume(mesh) == pytest.approx(8.0, rel=1e-6)


def noise(values: list[float] | None) -> Callable[[Tensor], Tensor]:
    rng = np.random.default_rng(0)
    return lambda p: torch.from_numpy(
        rng.standard_normal(len(p)) if values is None else rng.choice(values, len(p))
    )


@pytest.mark.parametrize("values", [[-1.0, 1.0], [-1.0, 0.0, 1.0], None])
def test_any_field_is_closed_even_with_ties(values):
    assert_closed_and_outward(extract(noise(values), 16))


@pytest.mark.parametrize("scale", [1e-20, 1e30])
def test_the_scale_of_the_field_does_not_matter(scale):
    assert np.allclose(
        extract(lambda p: sphere(p) * scale, 16).vertices, extract(sphere, 16).vertices, atol=1e-5
    )


def test_an_empty_field_is_named():
    with pytest.raises(
        EmptyFieldError, match=r"largest value on the 9\^3 lattice is -0\.5, not above the level 0"
    ):
        extract(lambda p: torch.full((len(p),), -0.5), 8)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_field_that_is_not_finite_is_refused(bad):
    with pytest.raises(ValueError, match="81 NaN or infinite"):
        extract(lambda p: torch.where(p[:, 0] > 0.9, bad, 1.0), 8)


def test_a_field_of_the_wrong_shape_is_refused():
    with pytest.raises(ValueError, match="must map"):
        extract(lambda p: sphere(p)[:, None], 8)


@pytest.mark.parametrize("at_once", [100, 1 << 20])
def test_small_components_are_dropped_by_volume(monkeypatch, at_once):
    monkeypatch.setattr("tar3d.mesh.extract.FACES_AT_ONCE", at_once)

    def three(points: Tensor) -> Tensor:
        return union(
            sphere(points, (-0.4, 0, 0), 0.4),
            sphere(points, (0.5, 0, 0), 0.2),
            sphere(points, (0.2, 0.8, 0), 0.08),
        )

    mesh = extract(three, 48)
    assert len(trimesh.Trimesh(mesh.vertices, mesh.faces, process=False).split()) == 3
    for share, left in ((0.0, 3), (0.05, 2), (0.5, 1), (1.0, 1)):
        kept = drop_small_components(mesh, share)
        assert_closed_and_outward(kept)
        assert len(trimesh.Trimesh(kept.vertices, kept.faces, process=False).split()) == left
    assert kept.vertices[:, 0].max() == pytest.approx(0.0, abs=0.01)


def bumpy(points: Tensor) -> Tensor:
    """Bumps a few coarse cells wide, a thin plate through them, and a cavity."""
    bumps = 0.6 - points.norm(dim=1) + 0.05 * torch.sin(9 * points).prod(dim=1)
    plate = torch.minimum(0.013 - points[:, 1].abs(), 0.9 - points.abs().amax(dim=1))
    return torch.minimum(union(bumps, plate), -sphere(points, (0.1, 0.3, 0), 0.1))


@pytest.mark.parametrize(
    "field, resolution",
    [
        (sphere, 24),
        (bumpy, 47),
        (lambda p: sphere(p, (0, 0, 0), 1.3), 20),
        (lambda p: torch.sin(40 * p @ torch.tensor([[1.0], [0.7], [0.4]]))[:, 0] + p[:, 2], 30),
    ],
)
def test_the_vertices_are_those_of_scikit_image(field, resolution):
    """One for each crossed edge of the lattice; where a face of a cell is ambiguous the triangles
    may differ."""
    mesh = extract(field, resolution)
    axis = torch.linspace(-1, 1, resolution + 1)
    values = field(
        torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1).reshape(-1, 3)
    ).reshape((len(axis),) * 3)
    padded = np.pad(values.numpy() / values.abs().max().item(), 1, constant_values=-1e6)
    index, faces, _, _ = marching_cubes(padded, 0.0, gradient_direction="ascent", method="lorensen")
    reference = Mesh(((index.astype(np.float64) - 1) * 2 / resolution - 1).clip(-1, 1), faces)

    def ordered(vertices: np.ndarray) -> np.ndarray:
        return vertices[np.lexsort(np.round(vertices * 500).T)]

    assert len(mesh.vertices) == len(reference.vertices)
    assert np.abs(ordered(mesh.vertices) - ordered(reference.vertices)).max() < 0.01
    assert signed_volume(mesh) == pytest.approx(signed_volume(reference), rel=0.01)


@pytest.mark.parametrize("field", [sphere, bumpy, lambda p: sphere(p, (0, 0, 0), 1.3)])
@pytest.mark.parametrize("resolution, coarse", [(32, 16), (64, 9), (65, 16), (90, 20), (127, 12)])
def test_coarse_to_fine_is_the_dense_lattice(field, resolution, coarse):
    counted = Counted(field)
    mesh = extract(counted, resolution, coarse=coarse)
    assert_equal(mesh, extract(field, resolution, coarse=resolution))
    assert counted.asked < 0.7 * (resolution + 1) ** 3


@pytest.mark.parametrize("points", [1, 5000, 60_000])
def test_slabs_change_no_more_than_the_order(monkeypatch, points):
    whole = extract(bumpy, 64, coarse=16)
    monkeypatch.setitem(lattice.SLAB_POINTS, "cpu", points)
    mesh = extract(bumpy, 64, coarse=16)
    assert len(mesh.vertices) == len(whole.vertices) and len(mesh.faces) == len(whole.faces)
    assert {tuple(v) for v in mesh.vertices.tolist()} == {tuple(v) for v in whole.vertices.tolist()}
    assert trimesh.Trimesh(mesh.vertices, mesh.faces, process=False).is_watertight


def test_no_point_is_asked_twice():
    asked = []
    extract(lambda p: asked.append(p) or bumpy(p), 64, coarse=16)
    points = torch.cat(asked)
    assert len(points.unique(dim=0)) > 0.97 * len(points), (
        "but for a few where the surface is followed"
    )


def test_a_surface_is_followed_out_of_the_cells_where_it_was_expected():
    """A rod thinner than a cell of the coarse lattice and off its points, with a head that the
    coarse lattice sees."""

    def field(points: Tensor) -> Tensor:
        across = (points[:, 1:] - torch.tensor([0.06, 0.06])).norm(dim=1)
        rod = torch.minimum(0.02 - across, 0.9 - points[:, 0].abs())
        return union(rod.clamp_min(-0.01), sphere(points, (-0.8, 0, 0), 0.15)) - 1e-9

    mesh = extract(field, 128, coarse=16)
    assert_equal(mesh, extract(field, 128, coarse=128))
    assert mesh.vertices[:, 0].max() > 0.88


def test_what_no_coarse_value_betrays_is_missed_and_said():
    def speck(points: Tensor) -> Tensor:
        return sphere(points, (0.05, 0.08, 0.06), 0.02).clamp_min(-0.02)

    with pytest.raises(
        EmptyFieldError, match=r"thinner than a cell of the 16\^3 that were evaluated first"
    ):
        extract(speck, 128, coarse=16)
    assert extract(speck, 128, coarse=64).faces.size


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("thickness", [0.5, 0.25])
def test_a_plate_in_a_saturated_field_is_found_between_the_points(thickness, sign):
    """Alone, and as a cavity of a box: thickness in coarse cells, values flat up to a jump."""

    def field(points: Tensor) -> Tensor:
        across = thickness / 32 - (points[:, 1] - 0.5 / 16).abs()
        plate = torch.minimum(across, 0.6 - points[:, ::2].abs().amax(dim=1))
        box = 0.8 - points.abs().amax(dim=1)
        solid = plate if sign > 0 else torch.minimum(box, -plate)
        return 10 * torch.tanh(400 * solid)

    dense = extract(field, 64, coarse=64)
    assert_equal(extract(field, 64, coarse=16), dense)
    assert face_components(dense.faces, len(dense.vertices)).max() == (0 if sign > 0 else 1)


def test_progress_ends_at_what_was_announced():
    seen = []
    extract(sphere, 64, coarse=16, progress=lambda done, total: seen.append((done, total)))
    totals = list(dict.fromkeys(total for _, total in seen))
    assert len(totals) == 3 and totals[0] == 18**3 and all(done <= total for done, total in seen)
    assert all((total, total) in seen for total in totals)


@pytest.mark.gpu
@pytest.mark.parametrize("resolution", [64, 129])
def test_a_gpu_finds_the_same_surface(resolution):
    here, there = (
        extract(sphere, resolution, coarse=16, device=device) for device in ("cpu", "cuda")
    )
    assert (here.faces == there.faces).all() and np.abs(
        here.vertices - there.vertices
    ).max() < 1e-3 * 2 / resolution
