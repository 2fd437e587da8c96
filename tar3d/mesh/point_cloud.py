"""Point cloud files -> `PointCloud`: checked, in the project's frame, with outward normals.

    .ply            ASCII or binary, without faces (with faces it is a mesh): x y z, and nx ny nz
                    (or normal_x normal_y normal_z) if it has normals; no Gaussian splats
    .xyz .txt       a point a line: x y z, or x y z nx ny nz, separated by blanks or commas; a
                    decimal comma is refused; "#" and "//" begin a comment
    .npz            points (N, 3) or (N, 6), and normals (N, 3) if it has them; or surface (N, 6)
                    and transform, as tar3d.data.make_samples writes them, which are in the
                    project's frame already
    .npy            (N, 3) or (N, 6)

Missing normals are estimated, and normals that point inward as a whole are flipped; `notes` say so.
Raises `MeshError`, one sentence with the file and the reason, for damaged files, rows that are no
points, colours in place of normals, NaN or infinite coordinates, no extent, fewer than 100
different points, and anything above the limits of `tar3d.mesh.load`.
A further file format is a function and one line in `point_files.READERS`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tar3d.contracts import Mesh
from tar3d.mesh.file_kind import refuse_other_files
from tar3d.mesh.load import MAX_VERTICES, MeshError, check_file, one_line, to_frame
from tar3d.mesh.point_files import READERS, is_point_ply
from tar3d.mesh.point_normals import estimate_normals, outward_share, unevenness

ONLY_POINTS = (".xyz", ".npz", ".npy")  # searched for in a folder, where a .txt may be a licence
CLOUD_SUFFIXES = tuple(READERS)
MIN_POINTS = 100
ESTIMATED = "normals estimated and oriented"
UNEVEN = (
    "its points are spread unevenly, as the vertices of a mesh are, but the encoder expects them "
    "uniform over the surface: give the mesh itself, or points sampled from it"
)
MAX_ESTIMATED = 200_000  # points; they take 10 s, and more do not improve a normal
# In the development set the vertices of 66 % of the meshes are above, uniform points (200 to 8,192
# on each mesh) in 1 of 100.
MAX_UNEVENNESS = 0.36
# The true normals of 214 real meshes have at least 0.49, and their opposites at most 0.3 in 98 of
# 100.
MIN_OUTWARD = 0.3
MAX_MISSING = 0.01  # with a larger share of points without a usable normal, all are estimated


@dataclass(frozen=True)
class PointCloud:
    """Points of a surface in the project's frame, with normals."""

    points: np.ndarray  # (N, 3) float32
    normals: np.ndarray  # (N, 3) float32, unit
    to_source: np.ndarray  # (4, 4), as of a `Mesh`
    estimated: bool = False  # the normals are
    notes: tuple[str, ...] = ()  # sentences on changes and on what looks wrong

    def draw(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """Draws `count` different points with their normals, (count, 6) float32.

        All points in their order if there are no more.
        """
        surface = np.concatenate([self.points, self.normals], axis=1)
        if count >= len(surface):
            return surface
        return surface[rng.choice(len(surface), count, replace=False)]


def is_cloud(path: str | Path) -> bool:
    """True for a file of `load_points`, False for one of `load_mesh`.

    The suffix decides, and for a .ply the faces that it declares.
    """
    path = Path(path)
    if path.suffix.lower() != ".ply":
        return path.suffix.lower() in CLOUD_SUFFIXES
    try:
        with path.open("rb") as file:
            return is_point_ply(file)
    except (ValueError, OSError):
        return False  # a broken file, which the mesh reader refuses


def load_points(path: str | Path) -> PointCloud:
    """Reads a file whose suffix, in any case, is in `CLOUD_SUFFIXES`.

    Repeated points are merged; the others keep their order. Raises `MeshError`.
    """
    path = Path(path)
    check_file(path, CLOUD_SUFFIXES)
    try:
        refuse_other_files(path)
        points, normals, to_source = READERS[path.suffix.lower()](path.read_bytes())
        if len(points) > MAX_VERTICES:
            raise ValueError(
                f"it has {len(points):,} points, allowed are {MAX_VERTICES:,}; thin it out first"
            )
        return _prepare(points, normals, to_source)
    except (ValueError, OSError) as e:
        raise MeshError(f"{path}: {one_line(e)}") from e


def splats(surface: np.ndarray, radius: float = 0.02) -> Mesh:
    """A mesh with a small square for each point with a normal, (N, 6), to render a cloud."""
    points, normals = surface[:, :3].astype(np.float64), surface[:, 3:].astype(np.float64)
    across = np.cross(normals, np.eye(3)[np.abs(normals).argmin(axis=1)])
    across *= radius / np.linalg.norm(across, axis=1, keepdims=True)
    up = np.cross(normals, across)
    # (N, 4, 3)
    corners = np.stack([points + across, points + up, points - across, points - up], axis=1)
    faces = np.array([[0, 1, 2], [0, 2, 3]]) + 4 * np.arange(len(points))[:, None, None]
    return Mesh(corners.reshape(-1, 3), faces.reshape(-1, 3))


def _prepare(
    points: np.ndarray, normals: np.ndarray | None, to_source: np.ndarray | None
) -> PointCloud:
    """Checks points (N, 3) and normals (N, 3), and completes them to a cloud.

    `to_source` is given where the points are in the project's frame already.
    """
    notes: list[str] = []
    if bad := int((~np.isfinite(points)).any(axis=1).sum()):
        raise ValueError(f"{bad:,} of its {len(points):,} points have NaN or infinite coordinates")
    points = points + 0.0  # turns -0 into 0
    if normals is not None:
        points, normals = _unit_normals(points, normals, notes)
    rows = points if normals is None else np.concatenate([points, normals], axis=1)
    first = np.sort(np.unique(rows, axis=0, return_index=True)[1])
    if len(first) < len(points):
        notes.append(f"{len(points) - len(first):,} repeated points were merged")
        points, normals = points[first], None if normals is None else normals[first]
    # fewer than `first` where one point has two normals
    positions = np.unique(points, axis=0, return_index=True)[1]
    if len(positions) < MIN_POINTS:
        raise ValueError(
            f"it has {len(positions)} different points, a shape needs at least {MIN_POINTS}"
        )
    if to_source is None:
        points, to_source = to_frame(points)
    elif np.abs(points).max() > 1:
        raise ValueError(
            "its surface leaves the cube [-1, 1]^3, in which sample files are: name the array "
            "points instead"
        )
    if unevenness(points[positions]) > MAX_UNEVENNESS:
        notes.append(UNEVEN)
    estimated = normals is None
    if normals is None:
        points, normals = _with_estimated_normals(points, notes)
    elif outward_share(points, normals) < MIN_OUTWARD:
        normals = -normals
        notes.append("normals looked inward and were turned")
    return PointCloud(
        points.astype(np.float32), normals.astype(np.float32), to_source, estimated, tuple(notes)
    )


def _unit_normals(
    points: np.ndarray, normals: np.ndarray, notes: list[str]
) -> tuple[np.ndarray, np.ndarray | None]:
    """Points with unit normals, without those whose normal has no length.

    Normals are None if too many have no length. Changes are added to `notes`.
    """
    with np.errstate(over="ignore"):
        length = np.linalg.norm(normals, axis=1)
    usable = np.isfinite(length) & (length > 0)
    missing = int((~usable).sum())
    if usable.mean() < 1 - MAX_MISSING:
        notes.append(f"{missing:,} of {len(points):,} normals have no length")
        return points, None
    if not usable.all():
        notes.append(f"{missing:,} points whose normal has no length were left out")
    # normals that are unit vectors to float16 precision stay as they are
    length = np.where(np.abs(length - 1) < 2e-3, 1.0, length)
    return points[usable], normals[usable] / length[usable, None]


def _with_estimated_normals(points: np.ndarray, notes: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """At most MAX_ESTIMATED of `points` (N, 3), and their estimated normals."""
    if len(points) > MAX_ESTIMATED:
        chosen = np.random.default_rng(0).choice(len(points), MAX_ESTIMATED, replace=False)
        points = points[np.sort(chosen)]
        notes.append(f"thinned out to {MAX_ESTIMATED:,} points")
    normals = estimate_normals(points)
    notes.append(ESTIMATED)
    return points, normals
