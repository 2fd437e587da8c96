"""Mesh files -> `Mesh`: welded, cleaned, centred and scaled to the project's frame.

Raises `MeshError`, one sentence with the file and the reason, for unknown suffixes, files without
triangles (points, lines, empty), truncated or malformed files, NaN or infinite coordinates, zero
extent, and anything above the limits below. Flat and open meshes load. Textures, colours and
animations are not read. A further file format is a function and one line in `READERS`.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from tar3d.contracts import CUBE_FILL, Mesh
from tar3d.folders import find_files
from tar3d.mesh.file_kind import refuse_other_files
from tar3d.mesh.gltf import read_gltf
from tar3d.mesh.obj import read_obj
from tar3d.mesh.off import read_off
from tar3d.mesh.orient import oriented
from tar3d.mesh.ply import read_ply
from tar3d.mesh.stl import read_stl

if TYPE_CHECKING:
    from collections.abc import Callable

    Triangles = tuple[np.ndarray, np.ndarray]  # vertices (V, 3) and faces (F, 3)
    Reader = Callable[[bytes], Triangles]

MAX_FILE_BYTES = 1 << 30  # text parsers need up to ten times the file in memory
MAX_VERTICES = 20_000_000
MAX_FACES = 10_000_000  # labelling takes about 1 kB of memory a face
MIN_FACES = 4  # a tetrahedron; fewer enclose nothing
# height of a triangle as a share of its longest side, up to which it counts as a line
NO_AREA = 1e-6
FACES_AT_ONCE = 1 << 20  # bounds the memory of a step over the faces of a mesh to about 200 MB


class MeshError(ValueError):
    """A mesh that cannot be used; the message is one sentence for the owner of the file."""


def load_mesh(path: str | Path) -> Mesh:
    """Reads a file whose suffix, in any case, is in `SUPPORTED`.

    A scene becomes one mesh with its node transforms applied. Raises `MeshError`.
    """
    path = Path(path)
    check_file(path, SUPPORTED)
    try:
        refuse_other_files(path)
        vertices, faces = READERS[path.suffix.lower()](path)
        if len(vertices) > MAX_VERTICES or len(faces) > MAX_FACES:
            raise ValueError(
                f"it has {len(faces):,} faces and {len(vertices):,} vertices, allowed are "
                f"{MAX_FACES:,} and {MAX_VERTICES:,}; simplify it first"
            )
        mesh = normalize(vertices, faces)
    except (ValueError, OSError) as e:
        raise MeshError(f"{path}: {one_line(e)}") from e
    if len(mesh.faces) < MIN_FACES:
        raise MeshError(
            f"{path}: a shape needs at least {MIN_FACES} usable triangles, it has {len(mesh.faces)}"
        )
    return mesh


def list_meshes(path: str | Path) -> list[Path]:
    """The file `path`, or all files of `SUPPORTED` suffix below the folder `path`, sorted.

    `find_files` says what is left out. Raises `MeshError` for a path that is neither.
    """
    path = Path(path)
    if path.is_dir():
        return find_files(path, SUPPORTED, beside=BESIDE_MESHES).files
    _check_suffix(path, SUPPORTED)
    if not path.is_file():
        raise MeshError(f"{path}: there is no such file or folder")
    return [path]


def normalize(vertices: np.ndarray, faces: np.ndarray) -> Mesh:
    """Vertices (V, 3) in any frame and scale, faces (F, 3) -> `Mesh` in the project's frame.

    Computed in float64. The bounding box is that of the vertices in use; faces without area do not
    make it larger. Faces that disagree with their neighbours which side is outside are turned
    (`oriented`). Raises `MeshError` without a usable face, for indices out of range, and for
    coordinates that are not finite or have no extent.
    """
    vertices, faces = np.asarray(vertices, dtype=np.float64), np.asarray(faces, dtype=np.int64)
    if len(faces) == 0:
        raise MeshError("it has no triangles (points and lines are not meshes)")
    if faces.min() < 0 or faces.max() >= len(vertices):
        raise MeshError(
            f"its faces index vertices {faces.min()}..{faces.max()}, but there are "
            f"{len(vertices):,}"
        )
    if not np.isfinite(vertices[faces]).all():
        raise MeshError("its vertices hold NaN or infinite coordinates")
    vertices, faces = _without_stray_lines(*weld(vertices, faces))
    if len(faces) == 0:
        raise MeshError("all its triangles are degenerate, so it has no extent")
    in_frame, to_source = to_frame(vertices)
    return Mesh(in_frame, oriented(in_frame, faces), to_source)


def to_frame(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Moves finite `points` (N, 3) float64 into the project's frame.

    Returns them and the matrix (4, 4) back. Raises `MeshError` for an extent of 0 or one too large
    to compute with.
    """
    low, high = points.min(axis=0), points.max(axis=0)
    half = float((high / 2 - low / 2).max())
    if not np.finfo(np.float64).tiny < half < np.finfo(np.float64).max / 4:
        raise MeshError(f"its extent is {2 * half:.3g}, too small or too large to compute with")
    scale = half / CUBE_FILL
    to_source = np.diag([scale, scale, scale, 1.0])
    to_source[:3, 3] = center = low / 2 + high / 2
    return (points - center) / scale, to_source


def weld(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Merges vertices (V, 3) at equal positions; drops degenerate and repeated faces (F, 3).

    Unused vertices are dropped too. A connected piece with every face in both directions (a
    double-sided shell) would cancel in a winding number, so the first face of each pair is kept.
    Elsewhere such pairs stay, because solids touch there. Vertices and faces keep their order. The
    result may have no faces.
    """
    first, inverse = _unique_rows(vertices + 0.0)  # the sum turns -0 into 0
    faces = first[inverse][faces]
    faces = faces[
        (faces[:, 0] != faces[:, 1]) & (faces[:, 1] != faces[:, 2]) & (faces[:, 2] != faces[:, 0])
    ]
    if len(faces) > 0:
        # smallest index first, direction kept
        rotated = (faces.argmin(axis=1)[:, None] + np.arange(3)) % 3
        faces = faces[np.sort(_unique_rows(np.take_along_axis(faces, rotated, axis=1))[0])]
        first, inverse = _unique_rows(np.sort(faces, axis=1))
        piece = face_components(faces, len(vertices))
        single = np.bincount(inverse)[inverse] == 1
        double_sided = np.bincount(piece, single)[piece] == 0
        faces = faces[~double_sided | (first[inverse] == np.arange(len(faces)))]
    return _used(vertices, faces)


def _used(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The vertices that faces use, and the faces with the indices of those."""
    used = np.zeros(len(vertices), dtype=bool)
    used[faces] = True
    return vertices[used], (np.cumsum(used) - 1)[faces]


def _without_stray_lines(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Drops faces without area that reach beyond the box of all others; keeps all if none has area.

    They cannot be sampled, but would make the object small in the frame. Within the box they stay,
    because they often close the gap between two other faces.
    """
    has_area = np.concatenate(
        [np.empty(0, bool)]
        + [_has_area(vertices, faces[part]) for part in blocks(len(faces), FACES_AT_ONCE)]
    )
    if has_area.all() or not has_area.any():
        return vertices, faces
    solid = vertices[np.unique(faces[has_area])]
    low, high = solid.min(axis=0), solid.max(axis=0)
    beyond = ((vertices < low) | (vertices > high)).any(axis=1)
    stray = ~has_area & beyond[faces].any(axis=1)
    return _used(vertices, faces[~stray]) if stray.any() else (vertices, faces)


def _has_area(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Marks (F,) of the faces that are higher than NO_AREA times their longest side."""
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    sides = np.stack([b - a, c - b, a - c])
    # the extent divides the sides, so that no square overflows
    sides = sides / max(float(np.abs(sides).max(initial=0)), np.finfo(np.float64).tiny)
    double_area = np.linalg.norm(np.cross(sides[0], sides[1]), axis=1)
    return double_area > NO_AREA * (sides**2).sum(axis=2).max(axis=0)


def blocks(count: int, largest: int) -> list[slice]:
    """Slices of at most `largest` items that cover 0..count-1."""
    return [slice(start, start + largest) for start in range(0, count, largest)]


def face_components(faces: np.ndarray, num_vertices: int) -> np.ndarray:
    """Indices (F,) of the connected pieces of faces; faces that share a vertex are connected."""
    # int32 takes half the memory, which counts at 10^7 faces
    index = np.int32 if num_vertices <= np.iinfo(np.int32).max else np.int64
    starts, ends = (
        np.concatenate([faces[:, i], faces[:, i + 1]], dtype=index, casting="same_kind")
        for i in (0, 1)
    )
    graph = coo_array(
        (np.ones(len(starts), dtype=bool), (starts, ends)), shape=(num_vertices, num_vertices)
    )
    return connected_components(graph, directed=False)[1][faces[:, 0]]


def _unique_rows(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first index of each distinct row, and for each row the number of its distinct row."""
    rows = np.ascontiguousarray(rows)
    keys = rows.view(np.dtype((np.void, rows.dtype.itemsize * rows.shape[1]))).ravel()
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    return first, inverse


def _plain(read: Reader, path: Path) -> Triangles:
    """The content of a file that is read on its own: side files (materials) are never opened."""
    return read(path.read_bytes())


def _read_gltf(path: Path) -> Triangles:
    return read_gltf(path, MAX_VERTICES, MAX_FACES)


# Functions from a file to vertices (V, 3) and faces (F, 3); they raise ValueError or OSError.
READERS: dict[str, Callable[[Path], Triangles]] = {
    ".glb": _read_gltf,
    ".gltf": _read_gltf,
    ".obj": partial(_plain, read_obj),
    ".ply": partial(_plain, read_ply),
    ".stl": partial(_plain, read_stl),
    ".off": partial(_plain, read_off),
}
SUPPORTED = tuple(READERS)
# Files that belong to meshes: materials, buffers and textures.
BESIDE_MESHES: tuple[str, ...] = (".mtl", ".bin", ".png", ".jpg", ".jpeg", ".tga", ".bmp", ".dds")
BESIDE_MESHES += (".ktx", ".ktx2", ".webp", ".tif", ".tiff", ".gif", ".exr", ".hdr", ".svg", ".psd")


def check_file(path: Path, suffixes: tuple[str, ...]) -> None:
    """Refuses a file by its name and size, before it is opened; raises `MeshError`."""
    _check_suffix(path, suffixes)
    if not path.is_file():
        raise MeshError(f"{path}: there is no such file")
    size = path.stat().st_size
    if not 0 < size <= MAX_FILE_BYTES:
        raise MeshError(f"{path}: it has {size:,} bytes, allowed are 1 to {MAX_FILE_BYTES:,}")


def _check_suffix(path: Path, suffixes: tuple[str, ...]) -> None:
    if path.suffix.lower() not in suffixes and not path.is_dir():
        raise MeshError(
            f"{path}: the suffix {path.suffix!r} is not supported, allowed are "
            f"{', '.join(suffixes)}"
        )


def one_line(error: Exception) -> str:
    """The message of an error in one line of at most 300 characters."""
    return " ".join(str(error).split())[:300]
