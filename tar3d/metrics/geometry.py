"""Metrics of a predicted mesh against the true one: distances of surfaces, and IoU of volumes.

A Chamfer distance means nothing without its convention, so each form has its own name in the tables
of `points`, and `describe` prints what a protocol measures. Predicted and true surface are sampled
independently, so even a perfect prediction scores the `floor`, not 0, which belongs beside the
score: with 16,000 points, a sphere that fills the cube cannot exceed F@0.02 = 0.80, a cube 0.57
(0.995 with 100,000). Scores named surface_* have no such floor: they measure from points to the
other mesh's triangles.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import igl
import numpy as np

from tar3d.contracts import CUBE_FILL, Mesh
from tar3d.mesh.load import face_components
from tar3d.mesh.points import sample_surface
from tar3d.metrics.metric import formulas
from tar3d.metrics.points import (
    CLOUD_METRICS,
    DISTANCE_METRICS,
    NORMAL_METRICS,
    Clouds,
    Distances,
    cloud_scores,
    distance_scores,
    normal_scores,
)
from tar3d.metrics.volumes import VOLUME_METRICS, bounding_box, volume_scores

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tar3d.config import EvalProtocol

LARGEST_RATIO = 2.0  # of the lengths of prediction and truth, or its inverse, without a note
UNITS = {
    "millimetres and metres": 1000.0,
    "centimetres and metres": 100.0,
    "millimetres and centimetres": 10.0,
    "millimetres and inches": 25.4,
    "centimetres and inches": 2.54,
    "inches and metres": 39.37,
    "inches and feet": 12.0,
    "feet and metres": 3.281,
}
UNIT_TOLERANCE = 1.25  # a prediction is rarely exactly as large as its truth

FAR = 16.0  # half sizes from the origin, beyond which float32 loses digits of a shape


def geometry_formulas() -> dict[str, str]:
    """Name -> formula and direction of every geometry score."""
    return {
        **formulas(DISTANCE_METRICS, CLOUD_METRICS, NORMAL_METRICS),
        "surface_*": "the same with d the exact distance to the nearest point of the other mesh's "
        "triangles: no sampling floor",
        **formulas(VOLUME_METRICS),
        "*_near": "the same over points near the true surface",
        "aligned_*": "the same after the alignment named",
        "floor_*": "the true mesh against a second sampling of itself: no prediction can be "
        "expected to score better",
    }


def describe(protocol: EvalProtocol) -> str:
    """Text that defines every score of `protocol`, to be printed beside it."""
    frames = {
        "truth": "both meshes moved and scaled alike, so that the TRUE mesh's bounding box is "
        "centred and its longest side is 2",
        "each": "EACH mesh moved and scaled by its own bounding box: centred, longest side 2",
        "source": "the coordinates of the files, as they are",
    }
    thresholds = ", ".join(f"{tau:g}" for tau in protocol.thresholds)
    return "\n".join(
        [
            f"convention   {protocol.source}; headline {', '.join(protocol.headline)}",
            f"frame, unit  {frames[protocol.frame]}; distances and thresholds are in that unit",
            "points       P (predicted) and T (true) drawn independently and uniformly by area, "
            f"{protocol.points:,} each",
            f"tau          {thresholds}",
            f"iou          {protocol.iou_points:,} points; near: {protocol.near_points:,}, "
            f"Gaussian noise of {protocol.near_sigma:g}",
            f"seed         {protocol.seed}",
            *(f"{name:<22} = {formula}" for name, formula in geometry_formulas().items()),
        ]
    )


def in_frame(pred: Mesh, truth: Mesh, frame: str) -> tuple[Mesh, Mesh]:
    """Moves two meshes as `load_mesh` gives them into the frame of a protocol.

    `frame` is "truth", "each" or "source" (`EvalProtocol.frame`). In "source", meshes far from the
    origin are both moved there, which changes no distance but keeps the digits of their float32.
    """
    unit = np.diag([1 / CUBE_FILL] * 3 + [1.0])  # half the longest side, 0.95, becomes 1
    near = np.eye(4)
    if np.abs(truth.to_source[:3, 3]).max() > FAR * truth.to_source[0, 0]:
        near[:3, 3] = -truth.to_source[:3, 3]
    to_frame = {"truth": unit @ np.linalg.inv(truth.to_source), "source": near}
    if frame == "each":
        return transformed(pred, unit), transformed(truth, unit)
    return transformed(pred, to_frame[frame] @ pred.to_source), transformed(
        truth, to_frame[frame] @ truth.to_source
    )


def transformed(mesh: Mesh, matrix: np.ndarray) -> Mesh:
    """`mesh` with the homogeneous `matrix` (4, 4) applied; its `to_source` is dropped."""
    return Mesh(mesh.vertices.astype(np.float64) @ matrix[:3, :3].T + matrix[:3, 3], mesh.faces)


def surface_cloud(mesh: Mesh, count: int, seed: int | Sequence[int]) -> np.ndarray:
    """Points (count, 6), uniform by area, with unit normals, in the mesh's own frame."""
    return sample_surface(mesh, count, np.random.default_rng(seed)).astype(np.float64)


def point_scores(
    pred: np.ndarray, truth: np.ndarray, thresholds: Sequence[float]
) -> dict[str, float]:
    """Scores of predicted points (N, 3) against true ones (M, 3), by nearest sampled points.

    DISTANCE_METRICS and CLOUD_METRICS; NORMAL_METRICS too if both have normals, (N, 6) and (M, 6).
    Raises ValueError for empty sets, NaN or infinite coordinates, and thresholds <= 0.
    """
    pred, truth = _points(pred, "predicted"), _points(truth, "true")
    clouds = Clouds(pred[:, :3], truth[:, :3])
    to_truth, nearest_t = clouds.truth_tree.query(clouds.pred)  # (N,)
    to_pred, nearest_p = clouds.pred_tree.query(clouds.truth)  # (M,)
    scores = distance_scores(Distances(to_truth, to_pred), thresholds) | cloud_scores(clouds)
    if pred.shape[1] == truth.shape[1] == 6:
        scores |= normal_scores(
            pred[:, 3:], truth[nearest_t, 3:], truth[:, 3:], pred[nearest_p, 3:]
        )
    return scores


def surface_scores(
    pred: Mesh,
    truth: Mesh,
    pred_cloud: np.ndarray,
    true_cloud: np.ndarray,
    thresholds: Sequence[float],
) -> dict[str, float]:
    """Scores named surface_*, by exact distances from each cloud to the other mesh's triangles.

    Clouds are (N, 6) and (M, 6). DISTANCE_METRICS and NORMAL_METRICS.
    """
    to_truth, normals_t = _to_triangles(pred_cloud[:, :3], truth)
    to_pred, normals_p = _to_triangles(true_cloud[:, :3], pred)
    scores = distance_scores(Distances(to_truth, to_pred), thresholds)
    scores |= normal_scores(pred_cloud[:, 3:], normals_t, true_cloud[:, 3:], normals_p)
    return {f"surface_{name}": value for name, value in scores.items()}


def _to_triangles(points: np.ndarray, mesh: Mesh) -> tuple[np.ndarray, np.ndarray]:
    """Distances (N,) of `points` (N, 3) to `mesh`, unit normals (N, 3) of the nearest triangles."""
    vertices = mesh.vertices.astype(np.float64)
    squared, face, _ = igl.point_mesh_squared_distance(
        np.ascontiguousarray(points), vertices, mesh.faces
    )
    a, b, c = (vertices[mesh.faces[face, i]] for i in range(3))
    cross = np.cross(b - a, c - a)
    length = np.linalg.norm(cross, axis=1, keepdims=True)
    return np.sqrt(squared), cross / np.where(length > 0, length, 1)


def floor_scores(truth: Mesh, protocol: EvalProtocol) -> dict[str, float]:
    """Scores of a perfect prediction by `point_scores`, named floor_*.

    The truth is sampled a second time in the prediction's place.
    """
    scores = point_scores(
        _cloud(truth, 0, protocol), _cloud(truth, 1, protocol), protocol.thresholds
    )
    return {f"floor_{name}": value for name, value in scores.items()}


def compare_points(pred: Mesh, truth: Mesh, protocol: EvalProtocol) -> dict[str, float]:
    """`point_scores` of two meshes in one frame, by independent samples, and `floor_scores`."""
    scores = point_scores(
        _cloud(pred, 0, protocol), _cloud(truth, 1, protocol), protocol.thresholds
    )
    return scores | floor_scores(truth, protocol)


def compare_meshes(pred: Mesh, truth: Mesh, protocol: EvalProtocol) -> dict[str, float | bool]:
    """All scores of two meshes in one frame, except floor_* and aligned_*.

    The same protocol, which holds the seed, gives the same numbers. Raises ValueError where a score
    is not defined.
    """
    pred_cloud, true_cloud = _cloud(pred, 0, protocol), _cloud(truth, 1, protocol)
    return (
        point_scores(pred_cloud, true_cloud, protocol.thresholds)
        | surface_scores(pred, truth, pred_cloud, true_cloud, protocol.thresholds)
        | volume_scores(pred, truth, protocol)
    )


def _cloud(mesh: Mesh, stream: int, protocol: EvalProtocol) -> np.ndarray:
    """Points of a mesh from random stream 0, the prediction's, or 1, the truth's."""
    return surface_cloud(mesh, protocol.points, (protocol.seed, stream))


def size_note(pred: Mesh, truth: Mesh) -> str:
    """A sentence on a prediction that is not where or not as large as the truth, or "".

    Lengths are the longest sides of bounding boxes; a far part is told from a wrong unit by the
    box that holds 98 % of the prediction's surface along each axis.
    """
    low, high = map(np.stack, zip(bounding_box(pred), bounding_box(truth), strict=True))
    size, true_size = (high - low).max(axis=1)
    ratio = size / true_size
    if 1 / LARGEST_RATIO <= ratio <= LARGEST_RATIO:
        apart = (low.max(axis=0) > high.min(axis=0)).any()
        return "the boxes of prediction and truth do not overlap" if apart else ""
    bulk = np.ptp(np.quantile(surface_cloud(pred, 4096, 0)[:, :3], [0.01, 0.99], axis=0), axis=0)
    if ratio > LARGEST_RATIO > bulk.max() / true_size:
        return (
            "a part of the prediction lies far out: its box is "
            f"{ratio:,.3g} times as long as the truth's"
        )
    off = {name: abs(np.log(max(ratio, 1 / ratio) / factor)) for name, factor in UNITS.items()}
    unit = min(off, key=lambda name: off[name])
    hint = f": {unit}?" if off[unit] < np.log(UNIT_TOLERANCE) else ""
    return f"the prediction is {ratio:,.4g} times as long as the truth{hint}"


def mesh_facts(mesh: Mesh) -> dict[str, int]:
    """Numbers of vertices, faces and components (pieces that share no vertex) of a prediction."""
    return {
        "pred_vertices": len(mesh.vertices),
        "pred_faces": len(mesh.faces),
        "pred_components": int(face_components(mesh.faces, len(mesh.vertices)).max()) + 1,
    }


def _points(points: np.ndarray, name: str) -> np.ndarray:
    points = np.asarray(points, dtype=np.float64)
    if points.ndim != 2 or points.shape[1] not in (3, 6) or len(points) == 0:
        raise ValueError(
            f"{name} points must be (N, 3), or (N, 6) with normals, with N > 0, got {points.shape}"
        )
    if not np.isfinite(points).all():
        raise ValueError(
            f"{int((~np.isfinite(points)).any(axis=1).sum())} of {len(points)} {name} points are "
            "NaN or infinite"
        )
    return points
