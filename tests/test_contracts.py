"""The five types refuse what the rest of the code relies on never seeing."""

import numpy as np
import pytest
import torch

from tar3d.contracts import Condition, Mesh, ShapeSamples, Tokens, Triplane

VERTICES = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], dtype=np.float64)
FACES = np.array([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]])


def with_value(array: np.ndarray, value: float) -> np.ndarray:
    changed = array.astype(np.float64)
    changed[1, 2] = value
    return changed


def test_mesh_holds_contiguous_arrays_of_its_types():
    mesh = Mesh(VERTICES[:, ::-1], FACES.astype(np.int32))
    assert (
        mesh.vertices.dtype == np.float32
        and mesh.faces.dtype == np.int64
        and mesh.vertices.flags.c_contiguous
    )
    assert np.array_equal(mesh.to_source, np.eye(4))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"vertices": VERTICES[:, :2]}, r"vertices must be \(V, 3\)"),
        ({"vertices": VERTICES[0]}, r"vertices must be \(V, 3\)"),
        ({"vertices": with_value(VERTICES, np.nan)}, "NaN or infinite"),
        ({"vertices": with_value(VERTICES, np.inf)}, "NaN or infinite"),
        ({"faces": FACES[:, :2]}, r"faces must be \(F, 3\)"),
        ({"faces": FACES[:0]}, "at least one face"),
        ({"faces": FACES + 1}, r"1\.\.4, but there are 4"),
        ({"faces": FACES - 1}, r"-1\.\.2"),
        ({"to_source": np.eye(3)}, "to_source"),
    ],
)
def test_mesh_refuses(changes, message):
    with pytest.raises(ValueError, match=message):
        Mesh(**{"vertices": VERTICES, "faces": FACES} | changes)


SAMPLES = {
    "surface": np.tile(np.float32([0.5, 0, 0, 1, 0, 0]), (5, 1)),
    "points": np.zeros((8, 3), np.float32),
    "inside": np.ones(8, bool),
    "is_near": np.zeros(8, bool),
}


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"surface": SAMPLES["surface"][:, :3]}, r"surface must be \(N, 6\)"),
        ({"points": SAMPLES["points"][:, :2]}, r"points must be \(M, 3\)"),
        ({"inside": np.ones(7, bool)}, r"inside must be \(8,\) bool"),
        ({"inside": np.ones(8, np.uint8)}, "inside must be .* got .* uint8"),
        ({"is_near": np.zeros((8, 1), bool)}, "is_near must be"),
        ({"surface": with_value(SAMPLES["surface"], np.nan)}, "surface holds NaN"),
        ({"points": with_value(SAMPLES["points"], np.inf)}, "points holds NaN or infinite"),
        ({"points": with_value(SAMPLES["points"], 1.01)}, "points leaves the cube"),
        ({"surface": with_value(SAMPLES["surface"], -1.01)}, "surface leaves the cube"),
        ({"surface": SAMPLES["surface"][:0]}, "surface is empty"),
        (
            {
                "points": SAMPLES["points"][:0],
                "inside": np.ones(0, bool),
                "is_near": np.ones(0, bool),
            },
            "points is empty",
        ),
        ({"to_source": np.eye(3)}, r"to_source must be \(4, 4\)"),
    ],
)
def test_samples_refuse(changes, message):
    ShapeSamples(**SAMPLES)
    with pytest.raises(ValueError, match=message):
        ShapeSamples(**SAMPLES | changes)


@pytest.mark.parametrize(
    "ids, message",
    [
        (torch.zeros(12, dtype=torch.int64), r"\(B, T\)"),
        (torch.zeros(1, 12, dtype=torch.int32), "int64, got torch.int32"),
        (torch.zeros(1, 12), "int64, got torch.float32"),
        (torch.zeros(1, 13, dtype=torch.int64), "13 tokens are not 3 R"),
        (torch.zeros(1, 0, dtype=torch.int64), "0 tokens are not 3 R"),
    ],
)
def test_tokens_refuse(ids, message):
    Tokens(torch.zeros(2, 12, dtype=torch.int64))
    with pytest.raises(ValueError, match=message):
        Tokens(ids)


@pytest.mark.parametrize("shape", [(3, 4, 8, 8), (1, 2, 4, 8, 8), (1, 3, 4, 8, 9)])
def test_triplane_refuses(shape):
    Triplane(torch.zeros(1, 3, 4, 8, 8))
    with pytest.raises(ValueError, match=r"planes must be \(B, 3, C, H, H\)"):
        Triplane(torch.zeros(shape))


@pytest.mark.parametrize(
    "embeddings, mask, message",
    [
        (torch.zeros(2, 5), torch.ones(2, 5, dtype=torch.bool), r"\(B, P, E\)"),
        (torch.zeros(2, 5, 4), torch.ones(2, 4, dtype=torch.bool), r"mask must be \(2, 5\)"),
        (torch.zeros(2, 5, 4), torch.ones(2, 5), "mask must be bool"),
    ],
)
def test_condition_refuses(embeddings, mask, message):
    Condition(torch.zeros(2, 5, 4), torch.ones(2, 5, dtype=torch.bool))
    with pytest.raises(ValueError, match=message):
        Condition(embeddings, mask)
