"""Mesh -> `ShapeSamples`: surface points with outward normals, and labelled query points.

Real meshes are open, overlapping, inside out, or made of sheets and thin walls. The rules:

    inside    a point whose generalized winding number w (tar3d.mesh.winding) has |w| > 0.5; a
              connected piece that is inside out is flipped first, because it would subtract itself
              from what it overlaps
    buried    faces with the inside on both sides are no surface: parts that stand in one another
              become one solid
    sheet     a connected piece that is too open (`solid_winding`) encloses nothing
    thin      sheets, and walls thinner than `min_thickness`, are made that thick, evenly to both
              sides

A mesh that then encloses no sampled point is refused (`MeshError`): nothing can be learnt from it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree
from trimesh.triangles import closest_point

from tar3d.config import PointSamplingConfig
from tar3d.contracts import Mesh, ShapeSamples
from tar3d.mesh.background import scene_facts
from tar3d.mesh.load import FACES_AT_ONCE, MeshError, blocks, face_components
from tar3d.mesh.winding import WindingNumber, unbalanced_edges

INSIDE = 0.5  # a point with a larger |winding number| is inside
# A piece is a sheet from this opening on: the share of directions that leave through holes,
# averaged over the piece. A disc has 0.5, a dish a third as deep as wide 0.25.
LARGEST_OPENING = 0.25
INSIDE_OUT = 0.1  # a piece is flipped if this share of its surface has w = -1 below it
_MAX_FLIPS = 8  # rounds of flipping pieces and measuring again
_PIECE_SAMPLES = 8192  # surface points of a mesh by which its pieces are classified
_SKIN_SAMPLES = 16384  # surface points by which `solid_labels` finds thin walls
_MAX_ROUNDS = 20  # draws of surface points; many are needed when nearly all are buried
_OFF_THE_WALL = 1e-4  # distance from a wall to the start of a ray, and to the probe beyond it
_CROSSING_SHARE = 50  # partners of a crossing are within 1 / 50 of the points along the shared axis
# thin faces to which a point's distance is measured: the nearest sample may lie on the other side
# of the wall
_NEIGHBOURS = 5


def inside(mesh: Mesh, points: np.ndarray) -> np.ndarray:
    """Labels (M,) bool of `points` (M, 3), by the winding number alone."""
    return np.abs(WindingNumber(mesh)(points)) > INSIDE


def signed_volume(mesh: Mesh) -> float:
    """Enclosed volume, negative when the faces look inward.

    For an open mesh, the volume of the cones from its faces to the centre of its box.
    """
    vertices = mesh.vertices.astype(np.float64)
    vertices -= (vertices.min(axis=0) + vertices.max(axis=0)) / 2
    total = 0.0
    for part in blocks(len(mesh.faces), FACES_AT_ONCE):
        a, b, c = (vertices[mesh.faces[part, i]] for i in range(3))
        total += float(np.einsum("ij,ij->", a, np.cross(b, c)))
    return total / 6


def sample_surface(mesh: Mesh, count: int, rng: np.random.Generator) -> np.ndarray:
    """Points uniform over the area, buried faces included, with unit normals: (count, 6) float32.

    Normals follow the winding of the faces, or its opposite if the mesh as a whole is inside out
    (`signed_volume` < 0). Raises `MeshError` for a mesh without area.
    """
    points, normals, _ = _draw(mesh, _double_areas(mesh), count, rng)
    outward = -1.0 if signed_volume(mesh) < 0 else 1.0
    return np.concatenate([points, outward * normals], axis=1).astype(np.float32)


def _double_areas(mesh: Mesh) -> np.ndarray:
    """Twice the areas (F,) of the faces; `MeshError` if all are zero."""
    areas = np.concatenate(
        [
            np.linalg.norm(np.cross(*_edges(mesh, mesh.faces[part])[1:]), axis=1)
            for part in blocks(len(mesh.faces), FACES_AT_ONCE)
        ]
    )
    if not areas.sum() > 0:
        raise MeshError("the mesh has no surface area")
    return areas


def _draw(
    mesh: Mesh, double_areas: np.ndarray, count: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points (N, 3) uniform over the area, the normals (N, 3) and indices (N,) of their faces."""
    face = rng.choice(len(double_areas), size=count, p=double_areas / double_areas.sum())
    # two coordinates that are uniform over a triangle
    root = np.sqrt(rng.random(count))[:, None]
    along = rng.random(count)[:, None]
    corner, edge_b, edge_c = _edges(mesh, mesh.faces[face])
    points = corner + root * ((1 - along) * edge_b + along * edge_c)
    return points, np.cross(edge_b, edge_c) / double_areas[face, None], face


def _edges(mesh: Mesh, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The first corner of each face, and the edges from there to the other two, (F, 3) float64."""
    first, second, third = (mesh.vertices[faces[:, i]].astype(np.float64) for i in range(3))
    return first, second - first, third - first


def solid_winding(mesh: Mesh, rng: np.random.Generator) -> WindingNumber:
    """The winding number of a mesh without its sheets, and with inside-out pieces flipped.

    The winding number of a sheet is far from whole at its own surface: on average by the share of
    directions that leave through holes. Pieces that only together enclose something, like the walls
    of a house, have whole numbers at their surface and are no sheets. A piece that is inside out
    has -1 below its surface, and so has, in part, a right one that it overlaps: hence the worst
    pieces are flipped first, and all are measured again. A hollow has 0 and 1, and is not flipped.
    """
    points, normals, face = _draw(mesh, _double_areas(mesh), _PIECE_SAMPLES, rng)
    piece = face_components(mesh.faces, len(mesh.vertices))
    samples = np.maximum(np.bincount(piece[face], minlength=piece.max() + 1), 1)

    def mean_by_piece(values: np.ndarray) -> np.ndarray:
        return np.bincount(piece[face], values, minlength=len(samples)) / samples

    faces, winding = mesh.faces, WindingNumber(mesh)
    above, below = winding.sides(points, normals)
    is_sheet = mean_by_piece(np.abs(above - np.rint(above))) > LARGEST_OPENING
    for _ in range(_MAX_FLIPS):
        negative = np.where(is_sheet, 0.0, mean_by_piece(np.minimum(above, below) < -INSIDE))
        flipped = negative > min(0.5, max(INSIDE_OUT, negative.max() - 1e-9))
        if not flipped.any():
            break
        faces = np.where(flipped[piece][:, None], faces[:, ::-1], faces)
        winding = WindingNumber(Mesh(mesh.vertices, faces, mesh.to_source))
        above, below = winding.sides(points, normals)
    if is_sheet.any():
        return WindingNumber(Mesh(mesh.vertices, faces, mesh.to_source), ~is_sheet[piece])
    return winding


@dataclass(frozen=True)
class Skin:
    """Points of a solid's surface."""

    points: np.ndarray  # (N, 3)
    # (N, 3), unit, outward; a sheet has two outsides, and each normal is one of them at random
    normals: np.ndarray
    face: np.ndarray  # (N,), index of the face that a point lies on
    padding: np.ndarray  # (N,), distance by which a thin wall is moved outward, 0 for most points
    buried: float  # share of the mesh's area
    spacing: float  # side of the square that a point has on the surface, on average


def sample_skin(
    mesh: Mesh,
    winding: WindingNumber,
    count: int,
    rng: np.random.Generator,
    *,
    min_thickness: float = 0.0,
) -> Skin:
    """Draws `count` points, uniform over the surface that is not buried.

    Raises `MeshError` where nearly all of it is buried.
    """
    areas, rounds, drawn, found = _double_areas(mesh), [], 0, 0
    for _ in range(_MAX_ROUNDS):
        points, normals, face = _draw(
            mesh, areas, count - found if drawn == 0 else min(2 * (count - found) + 100, count), rng
        )
        above, below = (np.abs(w) > INSIDE for w in winding.sides(points, normals))
        is_surface = ~(above & below)
        normals[above] *= -1.0
        sheet = ~(above | below)
        normals[sheet & (rng.random(len(face)) < 0.5)] *= -1.0
        rounds.append([values[is_surface] for values in (points, normals, face, sheet)])
        drawn, found = drawn + len(face), found + int(is_surface.sum())
        if found >= count:
            break
    else:
        raise MeshError(
            f"only {found:,} of {drawn:,} points of its surface see the outside: it is nearly all "
            "buried in itself"
        )
    points, normals, face, sheet = (
        np.concatenate(values)[:count] for values in zip(*rounds, strict=True)
    )
    padding = np.zeros(count)
    if min_thickness > 0:
        padding = np.where(sheet, min_thickness / 2, 0.0)
        wall = np.flatnonzero(~sheet)
        depth = _thickness(mesh, winding, points[wall], normals[wall], min_thickness)
        padding[wall] = np.maximum(min_thickness - depth, 0) / 2
    buried = 1 - found / drawn
    spacing = float(np.sqrt(areas.sum() / 2 * (1 - buried) / count))
    return Skin(points, normals, face, padding, buried, spacing)


def outer_surface(mesh: Mesh, count: int, rng: np.random.Generator) -> np.ndarray:
    """Points of the solid's surface with outward normals, (count, 6) float32.

    They are the input of the tokenizer's encoder.
    """
    skin = sample_skin(mesh, solid_winding(mesh, rng), count, rng)
    return np.concatenate([skin.points, skin.normals], axis=1).astype(np.float32)


def _thickness(
    mesh: Mesh, winding: WindingNumber, points: np.ndarray, normals: np.ndarray, most: float
) -> np.ndarray:
    """Thickness (N,) of the solid below each of `points` (N, 3), at most `most`."""
    from embreex.mesh_construction import TriangleMesh
    from embreex.rtcore_scene import EmbreeScene

    scene = EmbreeScene()
    TriangleMesh(scene, mesh.vertices, mesh.faces.astype(np.int32))
    start = (points - _OFF_THE_WALL * normals).astype(np.float32)
    hits = scene.run(
        start, np.ascontiguousarray(-normals, dtype=np.float32), query="INTERSECT", output=True
    )
    depth = np.where(hits["primID"] >= 0, hits["tfar"], np.inf) + _OFF_THE_WALL
    thin = np.flatnonzero(depth < most)
    beyond = points[thin] - (depth[thin] + _OFF_THE_WALL)[:, None] * normals[thin]
    thin = thin[np.abs(winding(beyond)) <= INSIDE]  # elsewhere the ray has met a buried face
    result = np.full(len(points), most)
    result[thin] = depth[thin]
    return result


def label(
    mesh: Mesh, winding: WindingNumber, skin: Skin, points: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Labels (M,) bool of `points` (M, 3), thin walls padded, and their margins (M,).

    A margin is the distance of |w| from INSIDE, at which the label would change.
    """
    magnitude = np.abs(winding(points))
    labels = magnitude > INSIDE
    margin = np.abs(magnitude - INSIDE)
    thin = np.flatnonzero(skin.padding > 0)
    if len(thin) and not labels.all():
        outside = np.flatnonzero(~labels)
        # a sample of the nearest face is hardly ever further away
        reach = skin.padding[thin].max() + 2 * skin.spacing
        tree = cKDTree(skin.points[thin])
        k = min(_NEIGHBOURS, len(thin))
        _, nearest = tree.query(points[outside], k=np.arange(1, k + 1), distance_upper_bound=reach)
        close = nearest[:, 0] < len(thin)
        outside, nearest = outside[close], thin[np.minimum(nearest[close], len(thin) - 1)]
        triangles = mesh.vertices[mesh.faces[skin.face[nearest]]].astype(np.float64)  # (m, k, 3, 3)
        queries = np.repeat(points[outside].astype(np.float64), k, axis=0)
        offset = closest_point(triangles.reshape(-1, 3, 3), queries) - queries
        distance = np.linalg.norm(offset, axis=1).reshape(-1, k)
        padded = (distance < skin.padding[nearest]).any(axis=1)
        labels[outside[padded]] = True
        margin[outside[padded]] = INSIDE
    return labels, margin


def solid_labels(
    mesh: Mesh,
    points: np.ndarray,
    rng: np.random.Generator,
    min_thickness: float = PointSamplingConfig.min_thickness,
) -> np.ndarray:
    """Labels (M,) bool of `points` (M, 3) as `sample_shape` makes them, in the cube's unit."""
    winding = solid_winding(mesh, rng)
    try:
        skin = sample_skin(mesh, winding, _SKIN_SAMPLES, rng, min_thickness=min_thickness)
    except MeshError:  # nearly all of it is buried: there are no thin walls to pad
        return np.abs(winding(points)) > INSIDE
    return label(mesh, winding, skin, points)[0]


def crossings(points: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Points (N, 3) that two planes of a triplane cannot tell from surface points, one for each.

    A crossing has the coordinate of its surface point of `points` (N, 3) along a random axis, and
    along the two others one coordinate of that point and one of another point about as far along
    the axis. Where a table has three legs, the fourth crossing of their rows and columns is such a
    point: two planes see a leg there, and uniform points rarely show the third that there is none.
    """
    result, axis = points.copy(), rng.integers(3, size=len(points))
    for shared in range(3):
        rows = np.flatnonzero(axis == shared)
        if len(rows) < 2:
            continue
        rows = rows[np.argsort(points[rows, shared], kind="stable")]
        reach = max(1, len(rows) // _CROSSING_SHARE)  # largest difference of ranks along the axis
        partner = np.clip(
            np.arange(len(rows)) + rng.integers(-reach, reach + 1, size=len(rows)), 0, len(rows) - 1
        )
        replaced = (shared + 1 + rng.integers(2, size=len(rows))) % 3
        result[rows, replaced] = points[rows[partner], replaced]
    return result


def sample_shape(
    mesh: Mesh, config: PointSamplingConfig, seed: int
) -> tuple[ShapeSamples, dict[str, float]]:
    """Draws the training samples of a mesh and describes it; the same `seed` gives the same bits.

    Volume points are uniform in the cube [-1, 1]^3. Near points are surface points, a
    `config.crossing_share` of them replaced by `crossings`, moved by isotropic Gaussian noise, in
    equal shares for each of `config.near_sigmas`, and clipped to the cube. The description has
    `faces`, `components`, `watertight` (1 or 0: every edge has as many faces in one direction as in
    the other), `buried_share` (of the area), `thin_share` (of the rest, padded), `inside_share` (of
    the volume points), `label_confidence` (share of all points with |w| further than 1/4 from
    1/2) and `scene_facts`. Raises `MeshError` for a mesh that encloses no sampled point.
    """
    rng = np.random.default_rng(seed)
    winding = solid_winding(mesh, rng) if config.min_thickness > 0 else WindingNumber(mesh)
    skin = sample_skin(
        mesh,
        winding,
        max(config.surface_points, config.near_points),
        rng,
        min_thickness=config.min_thickness,
    )
    volume = rng.uniform(-1.0, 1.0, size=(config.volume_points, 3))
    base = rng.permutation(len(skin.points))[: config.near_points]
    level = np.arange(config.near_points) * len(config.near_sigmas) // config.near_points
    near = skin.points[base]
    if config.crossing_share > 0:
        crossed = rng.random(len(near)) < config.crossing_share
        near[crossed] = crossings(near[crossed], rng)
    sigma = np.asarray(config.near_sigmas)[level, None]
    near = near + rng.standard_normal((config.near_points, 3)) * sigma
    # rounded to float16, as they are stored, before they are labelled, so that a label is right for
    # its stored point
    points = np.concatenate([volume, near.clip(-1.0, 1.0)])  # (M, 3)
    points = points.astype(np.float16).astype(np.float32)
    labels, margin = label(mesh, winding, skin, points)
    if not labels.any():
        raise MeshError(
            f"the mesh encloses no volume: none of {len(points):,} sampled points is inside"
        )
    is_near = np.arange(len(points)) >= config.volume_points
    surface = np.concatenate([skin.points, skin.normals], axis=1)[: config.surface_points]
    facts = {
        "faces": len(mesh.faces),
        "components": int(face_components(mesh.faces, len(mesh.vertices)).max()) + 1,
        "watertight": int(len(unbalanced_edges(mesh.faces)[0]) == 0),
        "buried_share": skin.buried,
        "thin_share": float((skin.padding > 0).mean()),
        "inside_share": float(labels[~is_near].mean()),
        "label_confidence": float((margin > 0.25).mean()),
        **scene_facts(mesh, skin.face, skin.points),
    }
    return ShapeSamples(surface.astype(np.float32), points, labels, is_near, mesh.to_source), facts
