"""Mesh -> `ShapeSamples`: surface points with outward normals, and query points labelled inside or
outside.

The rule, for meshes as people have them (open, overlapping, inside out, of sheets and thin walls):

    inside    where the generalized winding number w (tar3d.mesh.winding) has |w| > 0.5; a connected piece that is inside out, so
              that it would take from another what it overlaps, is turned first
    buried    faces with the inside on both sides are no surface: parts that stand in one another become one solid
    sheet     a connected piece that is open to too many sides (`solid_winding`) encloses nothing: it has no inside of its own
    thin      sheets, and walls thinner than `min_thickness`, are made that thick, evenly to both sides

A mesh that encloses no sampled point after that is refused (`MeshError`), for nothing can be learnt
from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.spatial import cKDTree
from trimesh.triangles import closest_point

from tar3d.contracts import Mesh, ShapeSamples
from tar3d.mesh.load import FACES_AT_ONCE, MeshError, blocks, face_components
from tar3d.mesh.winding import WindingNumber, unbalanced_edges

if TYPE_CHECKING:
    from tar3d.config import PointSamplingConfig

INSIDE = 0.5
# share of all directions, averaged over a piece: a disc has 0.5, a dish a third as deep as wide
# 0.25
LARGEST_OPENING = 0.25
INSIDE_OUT = 0.1  # share of a piece's surface with w = -1 below it, from which on it is turned
_TURNS = 8  # how often pieces are turned and looked at again
_PIECE_SAMPLES = 8192  # of a mesh, by which its pieces are judged
# of drawing surface points, each as many as are still missing: for meshes that are nearly all
# buried
_ROUNDS = 20
# where a ray through a wall starts, and how far beyond it is looked for the outside
_OFF_THE_WALL = 1e-4
# partners of a crossing are within a fiftieth of the surface along the axis they share
_CROSSING_SHARE = 50
# thin faces that a point's distance is taken to: the nearest sample may lie on the other side of
# the wall
_NEIGHBOURS = 5


def inside(mesh: Mesh, points: np.ndarray) -> np.ndarray:
    """`points` (M, 3) -> (M,) bool, by the winding number alone."""
    return np.abs(WindingNumber(mesh)(points)) > INSIDE


def signed_volume(mesh: Mesh) -> float:
    """Volume enclosed, negative when the faces look inward; of an open mesh, that of the cones to
    its box's centre."""
    vertices = mesh.vertices.astype(np.float64)
    vertices -= (vertices.min(axis=0) + vertices.max(axis=0)) / 2
    total = 0.0
    for part in blocks(len(mesh.faces), FACES_AT_ONCE):
        a, b, c = (vertices[mesh.faces[part, i]] for i in range(3))
        total += float(np.einsum("ij,ij->", a, np.cross(b, c)))
    return total / 6


def sample_surface(mesh: Mesh, count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` points uniform over the area and the unit normals of their faces, (N, 6) float32,
    buried faces included.

    Normals follow the winding of the faces; where the mesh as a whole is inside out
    (`signed_volume` < 0), its opposite.
    """
    points, normals, _ = _draw(mesh, _double_areas(mesh), count, rng)
    outward = -1.0 if signed_volume(mesh) < 0 else 1.0
    return np.concatenate([points, outward * normals], axis=1).astype(np.float32)


def _double_areas(mesh: Mesh) -> np.ndarray:
    """(F,); a MeshError if all are zero."""
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
    """Points (N, 3) uniform over the area, the normals (N, 3) and numbers (N,) of their faces."""
    face = rng.choice(len(double_areas), size=count, p=double_areas / double_areas.sum())
    root, along = (
        np.sqrt(rng.random(count))[:, None],
        rng.random(count)[:, None],
    )  # uniform over a triangle
    corner, edge_b, edge_c = _edges(mesh, mesh.faces[face])
    points = corner + root * ((1 - along) * edge_b + along * edge_c)
    return points, np.cross(edge_b, edge_c) / double_areas[face, None], face


def _edges(mesh: Mesh, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The first corner of each face (F, 3), and from there to the second and to the third,
    float64."""
    first, second, third = (mesh.vertices[faces[:, i]].astype(np.float64) for i in range(3))
    return first, second - first, third - first


def solid_winding(mesh: Mesh, rng: np.random.Generator) -> WindingNumber:
    """The winding number of a mesh without its sheets, and with those connected pieces turned that
    are inside out.

    A sheet's winding number is far from whole at its own surface, on average: by the share of
    directions in which one looks out through holes. Pieces that only together enclose something,
    like the walls of a house, have whole numbers at their surface and are no sheets. A piece that
    is inside out has -1 below its surface; so has, in part, a right one that it overlaps: hence the
    worst are turned first, and then it is looked at again. A hollow has 0 and 1, and is none.
    """
    points, normals, face = _draw(mesh, _double_areas(mesh), _PIECE_SAMPLES, rng)
    piece = face_components(mesh.faces, len(mesh.vertices))
    seen = np.maximum(np.bincount(piece[face], minlength=piece.max() + 1), 1)

    def share(values: np.ndarray) -> np.ndarray:
        """Mean over the samples of each piece."""
        return np.bincount(piece[face], values, minlength=len(seen)) / seen

    faces, winding = mesh.faces, WindingNumber(mesh)
    above, below = winding.sides(points, normals)
    loose = share(np.abs(above - np.rint(above))) > LARGEST_OPENING
    for _ in range(_TURNS):
        negative = np.where(loose, 0.0, share(np.minimum(above, below) < -INSIDE))
        turned = negative > min(0.5, max(INSIDE_OUT, negative.max() - 1e-9))
        if not turned.any():
            break
        faces = np.where(turned[piece][:, None], faces[:, ::-1], faces)
        winding = WindingNumber(Mesh(mesh.vertices, faces, mesh.to_source))
        above, below = winding.sides(points, normals)
    return (
        WindingNumber(Mesh(mesh.vertices, faces, mesh.to_source), ~loose[piece])
        if loose.any()
        else winding
    )


@dataclass(frozen=True)
class Skin:
    """Points of a solid's surface: `points`, outward `normals` (N, 3); `face` (N,) that each lies
    on; `padding` (N,) by which its wall is moved outwards to be thick enough, 0 for most; `buried`
    share of the mesh's area; `spacing`, the side of a square for each point. A sheet has two
    outsides: half of its normals, at random, are those of either."""

    points: np.ndarray
    normals: np.ndarray
    face: np.ndarray
    padding: np.ndarray
    buried: float
    spacing: float


def sample_skin(
    mesh: Mesh,
    winding: WindingNumber,
    count: int,
    rng: np.random.Generator,
    *,
    min_thickness: float = 0.0,
) -> Skin:
    """Draws `count` points uniform over what is not buried; a MeshError where hardly anything is
    not."""
    areas, kept, drawn, found = _double_areas(mesh), [], 0, 0
    for _ in range(_ROUNDS):
        points, normals, face = _draw(
            mesh, areas, count - found if drawn == 0 else min(2 * (count - found) + 100, count), rng
        )
        above, below = (np.abs(w) > INSIDE for w in winding.sides(points, normals))
        keep = ~(above & below)
        normals[above] *= -1.0
        sheet = ~(above | below)
        normals[sheet & (rng.random(len(face)) < 0.5)] *= -1.0
        kept.append([values[keep] for values in (points, normals, face, sheet)])
        drawn, found = drawn + len(face), found + int(keep.sum())
        if found >= count:
            break
    else:
        raise MeshError(
            f"only {found:,} of {drawn:,} points of its surface see the outside: it is nearly all buried in itself"
        )
    points, normals, face, sheet = (
        np.concatenate(values)[:count] for values in zip(*kept, strict=True)
    )
    padding = np.zeros(count)
    if min_thickness > 0:
        padding = np.where(sheet, min_thickness / 2, 0.0)
        wall = np.flatnonzero(~sheet)
        padding[wall] = (
            np.maximum(
                min_thickness
                - _thickness(mesh, winding, points[wall], normals[wall], min_thickness),
                0,
            )
            / 2
        )
    buried = 1 - found / drawn
    return Skin(
        points,
        normals,
        face,
        padding,
        buried,
        float(np.sqrt(areas.sum() / 2 * (1 - buried) / count)),
    )


def outer_surface(mesh: Mesh, count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` points and outward normals of the solid's surface, (N, 6) float32: what the
    tokenizer's encoder is given."""
    skin = sample_skin(mesh, solid_winding(mesh, rng), count, rng)
    return np.concatenate([skin.points, skin.normals], axis=1).astype(np.float32)


def _thickness(
    mesh: Mesh, winding: WindingNumber, points: np.ndarray, normals: np.ndarray, most: float
) -> np.ndarray:
    """How thick the solid is below each of `points`, (N,), up to `most`."""
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
    """Whether each of `points` (M, 3) is inside, (M,) bool, thin walls padded; and how far |w| is from deciding otherwise."""
    magnitude = np.abs(winding(points))
    labels = magnitude > INSIDE
    margin = np.abs(magnitude - INSIDE)
    thin = np.flatnonzero(skin.padding > 0)
    if len(thin) and not labels.all():
        outside = np.flatnonzero(~labels)
        reach = (
            skin.padding[thin].max() + 2 * skin.spacing
        )  # a sample of the nearest face is hardly ever further
        tree = cKDTree(skin.points[thin])
        k = min(_NEIGHBOURS, len(thin))
        _, nearest = tree.query(points[outside], k=np.arange(1, k + 1), distance_upper_bound=reach)
        close = nearest[:, 0] < len(thin)
        outside, nearest = outside[close], thin[np.minimum(nearest[close], len(thin) - 1)]
        triangles = mesh.vertices[mesh.faces[skin.face[nearest]]].astype(np.float64)  # (m, k, 3, 3)
        queries = np.repeat(points[outside].astype(np.float64), k, axis=0)
        away = np.linalg.norm(
            closest_point(triangles.reshape(-1, 3, 3), queries) - queries, axis=1
        ).reshape(-1, k)
        padded = (away < skin.padding[nearest]).any(axis=1)
        labels[outside[padded]] = True
        margin[outside[padded]] = INSIDE
    return labels, margin


def crossings(points: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """For each of `points` (N, 3) of a surface one that two planes of a triplane mistake for it: as
    far along an axis, which is drawn for each, and along the two others with one coordinate of its
    own and one of another point about as far along the axis.

    Where a table has three legs, the fourth crossing of their rows and columns is such a place: two
    planes see a leg there, and uniform points hardly ever tell the third that there is none.
    """
    result, axis = points.copy(), rng.integers(3, size=len(points))
    for shared in range(3):
        mine = np.flatnonzero(axis == shared)
        if len(mine) < 2:
            continue
        mine = mine[np.argsort(points[mine, shared], kind="stable")]
        reach = max(
            1, len(mine) // _CROSSING_SHARE
        )  # partners are within so many places in the order along the axis
        other = np.clip(
            np.arange(len(mine)) + rng.integers(-reach, reach + 1, size=len(mine)), 0, len(mine) - 1
        )
        moved = (shared + 1 + rng.integers(2, size=len(mine))) % 3
        result[mine, moved] = points[mine[other], moved]
    return result


def sample_shape(
    mesh: Mesh, config: PointSamplingConfig, seed: int
) -> tuple[ShapeSamples, dict[str, float]]:
    """Draws what the tokenizer trains on, and says what the mesh is like; the same `seed` gives the
    same bits.

    Volume points are uniform in the cube [-1, 1]^3. Near points are points of the surface, a `config.crossing_share` of them
    `crossings` of two such, moved by isotropic Gaussian noise, in equal shares for each of `config.near_sigmas`, and clipped to
    the cube. The facts are `faces`, `components`, `watertight` (1
    or 0: every edge has as many faces in one direction as in the other), `buried_share` (of the area), `thin_share` (of the rest,
    padded), `inside_share` (of the volume points), `label_confidence` (share of all points with |w| further than 1/4 from 1/2).
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
    share = np.arange(config.near_points) * len(config.near_sigmas) // config.near_points
    near = skin.points[base]
    if config.crossing_share > 0:
        crossed = rng.random(len(near)) < config.crossing_share
        near[crossed] = crossings(near[crossed], rng)
    near = (
        near
        + rng.standard_normal((config.near_points, 3)) * np.asarray(config.near_sigmas)[share, None]
    )
    # rounded before they are labelled, because float16 is how they are stored: a label is then
    # right for its stored point
    points = (
        np.concatenate([volume, near.clip(-1.0, 1.0)]).astype(np.float16).astype(np.float32)
    )  # (M, 3)
    labels, margin = label(mesh, winding, skin, points)
    if not labels.any():
        raise MeshError(
            f"the mesh encloses no volume: none of {len(points):,} sampled points is inside"
        )
    is_near = np.arange(len(points)) >= config.volume_points
    surface = np.concatenate([skin.points, skin.normals], axis=1)[: config.surface_points].astype(
        np.float32
    )
    facts = {
        "faces": len(mesh.faces),
        "components": int(face_components(mesh.faces, len(mesh.vertices)).max()) + 1,
        "watertight": int(len(unbalanced_edges(mesh.faces)[0]) == 0),
        "buried_share": skin.buried,
        "thin_share": float((skin.padding > 0).mean()),
        "inside_share": float(labels[~is_near].mean()),
        "label_confidence": float((margin > 0.25).mean()),
    }
    return ShapeSamples(surface, points, labels, is_near, mesh.to_source), facts
