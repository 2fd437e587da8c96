"""Alignments undo the motions they are made for, and no others."""

import numpy as np
import pytest
import trimesh

from tar3d.config import ALIGNMENTS
from tar3d.contracts import Mesh
from tar3d.metrics.align import alignment, cube_rotations
from tar3d.metrics.geometry import surface_cloud, surface_scores, transformed

rotation = trimesh.transformations.rotation_matrix


def lamp() -> Mesh:
    """A shape that no turn maps onto itself: an L with a foot."""
    parts = [
        trimesh.creation.box(bounds=b)
        for b in (
            ((-1, -1, -0.3), (-0.6, 1, 0.3)),
            ((-1, 0.6, -0.3), (0.7, 1, 0.1)),
            ((-1, -1, -0.3), (0.1, -0.8, 0.7)),
        )
    ]
    whole = trimesh.util.concatenate(parts)
    return Mesh(whole.vertices, whole.faces)


def gap(pred: Mesh, truth: Mesh) -> float:
    clouds = surface_cloud(pred, 1000, 1), surface_cloud(truth, 1000, 2)
    return surface_scores(pred, truth, *clouds, (0.1,))["surface_chamfer"]


def motion(turn: np.ndarray, shift=(0.0, 0.0, 0.0), scale: float = 1.0) -> np.ndarray:
    matrix = turn.copy()
    matrix[:3, :3] *= scale
    matrix[:3, 3] = shift
    return matrix


QUARTER, SMALL_TURN = rotation(np.pi / 2, (0, 1, 0)), rotation(0.12, (1, 2, 0.5))
MOVED = {
    "shifted and scaled": motion(np.eye(4), (3, -2, 1), 4.0),
    "turned a little": motion(SMALL_TURN, (0.05, 0.02, -0.05)),
    "quarter turn, shifted and scaled": motion(QUARTER @ SMALL_TURN, (3, -2, 1), 4.0),
}
UNDOES = {
    "none": (),
    "bbox": ("shifted and scaled",),
    "icp": ("turned a little",),
    "rot24+icp": tuple(MOVED),
}


@pytest.mark.parametrize("name", MOVED)
@pytest.mark.parametrize("method", ALIGNMENTS)
def test_each_alignment_undoes_what_it_is_for(method, name):
    truth = lamp()
    pred = transformed(truth, MOVED[name])
    aligned = gap(transformed(pred, alignment(pred, truth, method)), truth)
    if name in UNDOES[method]:
        assert aligned < 0.01
    elif method == "none":
        assert aligned == gap(pred, truth) > 0.02
    else:
        assert aligned > 0.02


def test_icp_keeps_the_scale_and_never_mirrors():
    truth = lamp()
    for method in ("icp", "rot24+icp"):
        matrix = alignment(transformed(truth, MOVED["turned a little"]), truth, method)
        assert np.linalg.det(matrix[:3, :3]) > 0
    assert np.linalg.det(
        alignment(transformed(truth, motion(np.eye(4), scale=1.5)), truth, "icp")[:3, :3]
    ) == pytest.approx(1)


def test_there_are_24_rotations_of_a_cube():
    rotations = cube_rotations()
    assert len({r.tobytes() for r in (np.round(m + 0.0) for m in rotations)}) == 24
    assert np.array_equal(rotations[0], np.eye(3)) and all(
        np.linalg.det(m) == pytest.approx(1) for m in rotations
    )


def test_the_seed_decides_and_an_unknown_method_is_refused():
    truth, pred = lamp(), transformed(lamp(), MOVED["turned a little"])
    assert np.array_equal(alignment(pred, truth, "icp", 3), alignment(pred, truth, "icp", 3))
    with pytest.raises(ValueError, match="'best' is not known, allowed are none, bbox, icp"):
        alignment(pred, truth, "best")
