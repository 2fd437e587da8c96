"""Winding numbers along rays against the exact sum over all faces, which libigl computes."""

import os
from pathlib import Path

import igl
import numpy as np
import pytest
import trimesh

from tar3d.contracts import Mesh
from tar3d.mesh import winding
from tar3d.mesh.load import list_meshes, load_mesh
from tar3d.mesh.winding import WindingNumber, tree_sum, unbalanced_edges

DATASETS = Path(
    os.environ.get("TAR3D_DATASETS") or Path(__file__).parents[3] / "shared" / "datasets"
)
POINTS = np.random.default_rng(0).uniform(-1, 1, (3000, 3))


def at(x: float, extents=(0.6, 0.6, 0.6), turned: bool = False) -> trimesh.Trimesh:
    shape = trimesh.creation.box(
        extents, trimesh.transformations.translation_matrix((x, 0.1, -0.05))
    )
    if turned:
        shape.invert()
    return shape


def without(shape: trimesh.Trimesh, *faces: int) -> trimesh.Trimesh:
    return trimesh.Trimesh(shape.vertices, np.delete(shape.faces, faces, axis=0), process=False)


def soup(count: int) -> trimesh.Trimesh:
    corners = np.random.default_rng(1).uniform(-0.8, 0.8, (3 * count, 3))
    return trimesh.Trimesh(corners, np.arange(3 * count).reshape(-1, 3), process=False)


BALL = trimesh.creation.icosphere(3, 0.7)
CASES = {
    "a box along the axes": at(0),
    "a ball": BALL,
    "a ball that is inside out": trimesh.Trimesh(BALL.vertices, BALL.faces[:, ::-1]),
    "boxes that overlap": trimesh.util.concatenate([at(0), at(0.3)]),
    "one inside out": trimesh.util.concatenate([at(0), at(0.3, turned=True)]),
    "boxes that touch in a face": trimesh.util.concatenate([at(-0.3), at(0.3)]),
    "a box twice": trimesh.util.concatenate([at(0), at(0)]),
    "a box without a face": without(at(0), 3),
    "a ball with two holes": without(BALL, 0, 1, 2, 400, 401),
    "a flat sheet": without(at(0, (1, 1, 1)), *range(2, 12)),
    "three sheets on one edge": trimesh.Trimesh(
        [[0, 0, -0.5], [0, 0, 0.5], [0.5, 0.5, 0], [-0.5, 0.4, 0], [0, -0.6, 0.1]],
        [[0, 1, 2], [0, 1, 3], [0, 1, 4]],
        process=False,
    ),
    "triangles anyhow": soup(50),
}


def exact(shape: trimesh.Trimesh, points: np.ndarray) -> np.ndarray:
    return igl.winding_number(
        np.asarray(shape.vertices, dtype=np.float32).astype(np.float64),
        np.asarray(shape.faces, dtype=np.int64),
        points,
    )


def as_mesh(shape: trimesh.Trimesh) -> Mesh:
    return Mesh(shape.vertices, shape.faces)


@pytest.mark.parametrize("name", CASES)
def test_it_is_the_sum_over_the_faces(name):
    number = WindingNumber(as_mesh(CASES[name]))
    difference = np.abs(number(POINTS) - exact(CASES[name], POINTS))
    assert difference.max() < (
        1e-6 if number.closed else 0.02
    )  # the tree over the lids is an approximation


@pytest.mark.parametrize("boundary", [0.0, 10.0])
def test_both_ways_agree_on_open_meshes(monkeypatch, boundary):
    monkeypatch.setattr(
        winding, "LARGEST_BOUNDARY", boundary
    )  # 0: the tree over all faces; 10: always rays and lids
    for name in ("a ball with two holes", "three sheets on one edge", "triangles anyhow"):
        assert (
            np.abs(WindingNumber(as_mesh(CASES[name]))(POINTS) - exact(CASES[name], POINTS)).max()
            < 0.02
        )


def test_points_that_lie_in_the_planes_of_faces():
    """Lattice points through the corners and edges of a box: what modelled meshes and stored
    float16 points are full of."""
    lattice = np.stack(np.meshgrid(*[np.linspace(-1, 1, 21)] * 3, indexing="ij"), axis=-1).reshape(
        -1, 3
    )
    shape = trimesh.creation.box((1.0, 1.0, 1.0))
    off = (
        np.abs(np.abs(lattice).max(axis=1) - 0.5) > 1e-6
    )  # on the surface itself there is no answer
    inside = (np.abs(lattice) < 0.5).all(axis=1)
    assert (WindingNumber(as_mesh(shape))(lattice) == inside)[off].all()


def test_the_two_sides_of_a_surface():
    shape = trimesh.util.concatenate([at(0), at(0.3, (0.5, 0.4, 0.7))])
    points, face = trimesh.sample.sample_surface(shape, 2000, seed=0)
    normals = shape.face_normals[face]
    above, below = WindingNumber(as_mesh(shape)).sides(points, normals)
    assert (below - above == 1).mean() > 0.998  # one face is passed, but next to an edge
    for side, sign in ((above, 1), (below, -1)):
        assert (
            side == np.rint(exact(shape, points + sign * 1e-3 * normals))
        ).mean() > 0.99  # but beside the other box's faces


@pytest.mark.parametrize("name", ["a ball with two holes", "triangles anyhow"])
def test_the_two_sides_of_an_open_surface(name):
    points, face = trimesh.sample.sample_surface(CASES[name], 500, seed=0)
    normals = CASES[name].face_normals[face]
    above, below = WindingNumber(as_mesh(CASES[name])).sides(points, normals)
    assert (np.abs(above - exact(CASES[name], points + 1e-4 * normals)) < 0.03).mean() > 0.98
    assert (
        np.abs(below - above - 1) < 0.1
    ).mean() > 0.99  # but where another triangle runs through


def test_groups_of_any_size_give_the_same(monkeypatch):
    expected = WindingNumber(as_mesh(BALL))(POINTS)
    for size in (1, 7, 1000):
        monkeypatch.setattr(winding, "PAIRS_AT_ONCE", size)
        assert (WindingNumber(as_mesh(BALL))(POINTS[:200]) == expected[:200]).all()


def test_chosen_faces_alone():
    both = trimesh.util.concatenate([at(0), at(0.3)])
    number = WindingNumber(as_mesh(both), np.arange(24) < 12)
    assert (number(POINTS) == np.rint(exact(at(0), POINTS))).all()
    assert (WindingNumber(as_mesh(both), np.zeros(24, dtype=bool))(POINTS) == 0).all()


def test_unbalanced_edges():
    assert len(unbalanced_edges(at(0).faces)[0]) == 0
    edges, excess = unbalanced_edges(np.array([[0, 1, 2], [0, 1, 3]]))
    assert {tuple(e): n for e, n in zip(edges.tolist(), excess.tolist(), strict=True)} == {
        (0, 1): 2,
        (1, 2): 1,
        (2, 0): 1,
        (1, 3): 1,
        (3, 0): 1,
    }


def test_a_tree_over_blocks(monkeypatch):
    vertices, faces = np.asarray(BALL.vertices), np.asarray(BALL.faces, dtype=np.int64)
    whole = tree_sum(vertices, faces, POINTS)
    monkeypatch.setattr(winding, "FACES_OF_A_TREE", 100)
    assert np.abs(tree_sum(vertices, faces, POINTS) - whole).max() < 0.02


@pytest.mark.skipif(not (DATASETS / "dev").is_dir(), reason="no real meshes here")
def test_real_meshes():
    for path in list_meshes(DATASETS / "dev" / "meshes")[::120]:
        mesh = load_mesh(path)
        exact_sum = igl.winding_number(mesh.vertices.astype(np.float64), mesh.faces, POINTS)
        difference = np.abs(WindingNumber(mesh)(POINTS) - exact_sum)
        assert np.quantile(difference, 0.999) < 0.02 and (difference > 0.1).sum() <= 1, path
