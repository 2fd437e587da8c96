"""Mesh -> `ShapeSamples`: surface points with outward normals, and query points labelled inside or outside.

Inside is decided by the generalized winding number w of the triangles (Barill et al. 2018, "Fast Winding Numbers for
Soups and Clouds") with the rule |w| > 0.5: right for overlapping parts, for small holes, and for meshes whose faces all
look inward. A mesh that encloses no sampled point is refused (`MeshError`), for nothing can be learnt from it.
"""

from __future__ import annotations

import igl
import numpy as np

from tar3d.config import SampleConfig
from tar3d.contracts import Mesh, ShapeSamples
from tar3d.mesh.load import FACES_AT_ONCE, MeshError, blocks, face_components

FACES_OF_A_TREE = 1 << 22  # bounds what a search tree takes to 1 GB


def winding_number(mesh: Mesh, points: np.ndarray) -> np.ndarray:
    """`points` (M, 3) -> (M,) float64: 1 inside a closed outward surface, 0 outside, -1 inside an inverted one.

    Each call builds its search tree anew, so ask for all the points of a mesh at once.
    """
    queries, vertices = np.ascontiguousarray(points, dtype=np.float64), mesh.vertices.astype(np.float64)
    total = np.zeros(len(queries))
    for part in blocks(len(mesh.faces), FACES_OF_A_TREE):  # it is a sum over the faces
        total += igl.fast_winding_number(vertices, mesh.faces[part], queries)
    return total


def inside(mesh: Mesh, points: np.ndarray) -> np.ndarray:
    """`points` (M, 3) -> (M,) bool."""
    return np.abs(winding_number(mesh, points)) > 0.5


def signed_volume(mesh: Mesh) -> float:
    """Volume enclosed, negative when the faces look inward; of an open mesh, that of the cones to its box's centre."""
    vertices = mesh.vertices.astype(np.float64)
    vertices -= (vertices.min(axis=0) + vertices.max(axis=0)) / 2
    total = 0.0
    for part in blocks(len(mesh.faces), FACES_AT_ONCE):
        a, b, c = (vertices[mesh.faces[part, i]] for i in range(3))
        total += float(np.einsum("ij,ij->", a, np.cross(b, c)))
    return total / 6


def sample_surface(mesh: Mesh, count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` points uniform over the area and the unit normals of their faces, (N, 6) float32.

    Normals follow the winding of the faces; where the mesh as a whole is inside out (`signed_volume` < 0), its opposite.
    """
    double_area = np.concatenate([np.linalg.norm(np.cross(*_edges(mesh, mesh.faces[part])[1:]), axis=1)
                                  for part in blocks(len(mesh.faces), FACES_AT_ONCE)])  # (F,)
    total = double_area.sum()
    if not total > 0:
        raise MeshError("the mesh has no surface area")
    face = rng.choice(len(double_area), size=count, p=double_area / total)
    root, along = np.sqrt(rng.random(count))[:, None], rng.random(count)[:, None]  # uniform over a triangle
    corner, edge_b, edge_c = _edges(mesh, mesh.faces[face])
    points = corner + root * ((1 - along) * edge_b + along * edge_c)
    outward = -1.0 if signed_volume(mesh) < 0 else 1.0
    normals = outward * np.cross(edge_b, edge_c) / double_area[face, None]
    return np.concatenate([points, normals], axis=1).astype(np.float32)


def _edges(mesh: Mesh, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The first corner of each face (F, 3), and from there to the second and to the third, float64."""
    first, second, third = (mesh.vertices[faces[:, i]].astype(np.float64) for i in range(3))
    return first, second - first, third - first


def sample_shape(mesh: Mesh, config: SampleConfig, seed: int) -> tuple[ShapeSamples, dict[str, float]]:
    """Draws what the tokenizer trains on, and says what the mesh is like; the same `seed` gives the same bits.

    The facts are `faces`, `components`, `watertight` (1 or 0: every edge has as many faces in one direction as in the other),
    `inside_share` (of the volume points), `label_confidence` (share of all points whose |w| is further than 1/4 from 1/2).

    Volume points are uniform in the cube [-1, 1]^3. Near points are surface points (not those of `surface`) moved by
    isotropic Gaussian noise, in equal shares for each of `config.near_sigmas`, and clipped to the cube.
    """
    rng = np.random.default_rng(seed)
    surface = sample_surface(mesh, config.surface_points, rng)
    volume = rng.uniform(-1.0, 1.0, size=(config.volume_points, 3))
    near = sample_surface(mesh, config.near_points, rng)[:, :3]
    share = np.arange(config.near_points) * len(config.near_sigmas) // config.near_points
    near = near + rng.standard_normal(near.shape) * np.asarray(config.near_sigmas)[share, None]
    # rounded before they are labelled, because float16 is how they are stored: a label is then right for its stored point
    points = np.concatenate([volume, near.clip(-1.0, 1.0)]).astype(np.float16).astype(np.float32)  # (M, 3)
    magnitude = np.abs(winding_number(mesh, points))
    labels = magnitude > 0.5
    if not labels.any():
        raise MeshError(f"the mesh encloses no volume: none of {len(points):,} sampled points is inside")
    is_near = np.arange(len(points)) >= config.volume_points
    facts = {"faces": len(mesh.faces), "components": int(face_components(mesh.faces, len(mesh.vertices)).max()) + 1,
             "watertight": int(not unbalanced_edges(mesh.faces)[1].size),
             "inside_share": float(labels[~is_near].mean()), "label_confidence": float((np.abs(magnitude - 0.5) > 0.25).mean())}
    return ShapeSamples(surface, points, labels, is_near, mesh.to_source), facts


def unbalanced_edges(faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Edges (K, 2) that faces (F, 3) run through more often in one direction than in the other, and by how much (K,) > 0.

    None: the mesh has no boundary, and its winding number is a whole number everywhere off the surface.
    """
    ends = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    low, high = ends.min(axis=1), ends.max(axis=1)
    size = int(faces.max()) + 1
    keys, inverse = np.unique(low * size + high, return_inverse=True)
    excess = np.bincount(inverse, np.where(ends[:, 0] == low, 1, -1)).astype(np.int64)
    keys, excess = keys[excess != 0], excess[excess != 0]
    edges = np.stack([keys // size, keys % size], axis=1)
    return np.where(excess[:, None] > 0, edges, edges[:, ::-1]), np.abs(excess)
