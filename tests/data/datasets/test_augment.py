"""Augmented samples are samples of the moved shape: labels, normals and distribution."""

import numpy as np
import pytest
import trimesh

from tar3d.config import AugmentConfig, PointSamplingConfig
from tar3d.contracts import CUBE_FILL, Mesh
from tar3d.data.datasets.augment import augment, random_matrix
from tar3d.mesh.points import sample_shape

ALL = AugmentConfig(scale=[0.75, 1.25], rotate=1.0, mirror=0.5)
BOX = np.array([0.5, 0.9, 0.3])  # half extents


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray]:
    shape = trimesh.creation.box(2 * BOX)
    samples, _ = sample_shape(
        Mesh(shape.vertices, shape.faces),
        PointSamplingConfig(surface_points=6000, volume_points=20_000, near_points=5000),
        0,
    )
    return {
        "surface": samples.surface,
        "points": samples.points,
        "inside": samples.inside,
        "is_near": samples.is_near,
        "transform": samples.to_source,
    }


def moved(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What a box's points are multiplied by and shifted by, exactly, from its corners."""
    corners = np.stack(np.meshgrid(*[[-1, 1]] * 3), axis=-1).reshape(-1, 3) * BOX @ matrix.T
    half = np.abs(corners).max()
    return matrix * CUBE_FILL / half, np.zeros(3)


@pytest.mark.parametrize("seed", range(6))
def test_labels_are_those_of_the_moved_shape(arrays, seed):
    rng = np.random.default_rng(seed)
    matrix = random_matrix(ALL, rng)
    result = augment(arrays, matrix, 15_000, rng)
    back = result["points"] @ np.linalg.inv(moved(matrix)[0]).T
    margin = np.abs(np.abs(back) / BOX - 1).min(axis=1)
    expected = (np.abs(back) < BOX).all(axis=1)
    clear = (
        margin > 0.02
    )  # the moved box is measured by its samples, which do not reach its corners
    assert (result["inside"] == expected)[clear].all() and clear.mean() > 0.5
    assert (
        result["is_near"].sum() > 4000
        and not result["is_near"][:15_000].any()
        and result["is_near"][15_000:].all()
    )
    assert np.abs(result["points"]).max() <= 1 and np.abs(
        result["surface"][:, :3]
    ).max() == pytest.approx(CUBE_FILL, abs=0.01)


@pytest.mark.parametrize("seed", range(4))
def test_volume_points_stay_uniform_in_the_cube(arrays, seed):
    rng = np.random.default_rng(seed)
    points = augment(arrays, random_matrix(ALL, rng), 5000, rng)["points"][:5000]
    counts = np.histogramdd(points, bins=3, range=[(-1, 1)] * 3)[0].ravel()
    assert (
        (counts - 5000 / 27) ** 2 / (5000 / 27)
    ).sum() < 54  # chi-squared, 26 degrees of freedom, at 0.1 %


def test_normals_stay_perpendicular(arrays):
    matrix = random_matrix(ALL, np.random.default_rng(1))
    surface = augment(arrays, matrix, 100, np.random.default_rng(0))["surface"].astype(np.float64)
    original = arrays["surface"].astype(np.float64)
    assert np.allclose(np.linalg.norm(surface[:, 3:], axis=1), 1, atol=2e-3)
    for axis in range(3):  # directions in the face before are directions in the face after
        tangent = np.cross(original[:, 3:], np.eye(3)[axis]) @ matrix.T
        assert np.abs((tangent * surface[:, 3:]).sum(axis=1)).max() < 5e-3
    outward = (surface[:, :3] * surface[:, 3:]).sum(axis=1)
    assert (outward > 0).all(), "a mirrored or turned normal looks inward"


def test_the_default_changes_nothing_but_the_draw(arrays):
    assert not AugmentConfig().active
    assert (random_matrix(AugmentConfig(), np.random.default_rng(0)) == np.eye(3)).all()


def test_the_matrix_is_drawn_as_configured():
    rng = np.random.default_rng(0)
    matrices = [
        random_matrix(AugmentConfig(scale=[0.5, 2.0], rotate=0.5, mirror=0.25), rng)
        for _ in range(2000)
    ]
    scales = np.array([np.linalg.norm(m, axis=0) for m in matrices])
    assert (
        0.5 <= scales.min() < 0.52
        and 1.97 < scales.max() <= 2.0
        and scales.mean() == pytest.approx(1.25, abs=0.02)
    )
    assert np.mean([np.linalg.det(m) < 0 for m in matrices]) == pytest.approx(0.25, abs=0.04)
    assert all(
        abs(m[1, 0]) + abs(m[1, 2]) + abs(m[0, 1]) + abs(m[2, 1]) < 1e-12 for m in matrices
    ), "up stays up"
    quarter = np.mean([np.abs(m[0, [0, 2]]).min() < 1e-9 for m in matrices])
    assert quarter == pytest.approx(0.5, abs=0.04)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"scale": [1.0]}, "scale"),
        ({"scale": [0.0, 1.0]}, "scale"),
        ({"scale": [1.2, 1.0]}, "scale"),
        ({"rotate": 1.5}, "rotate"),
        ({"mirror": -1.0}, "mirror"),
    ],
)
def test_wrong_settings(change, message):
    with pytest.raises(ValueError, match=f"train.augment.{message}"):
        AugmentConfig(**change)
