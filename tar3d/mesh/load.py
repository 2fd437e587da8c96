"""Mesh files -> `Mesh`: welded, cleaned, centred and scaled to the project's frame.

Refuses, with one sentence that holds the file and the reason (`MeshError`): unknown suffixes, files
without triangles (points, lines, empty), truncated or malformed files, NaN or infinite coordinates,
zero extent, and anything above the limits below. Flat and open meshes load. Textures, colours,
skins, morphs and animations are not read.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path

import numpy as np
import trimesh
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from tar3d.contracts import CUBE_FILL, Mesh
from tar3d.mesh.gltf import read_gltf

SUPPORTED = (".glb", ".gltf", ".obj", ".ply", ".stl", ".off")
MAX_FILE_BYTES = 1 << 30  # text parsers need up to ten times the file in memory
MAX_VERTICES = 20_000_000
MAX_FACES = 10_000_000  # labelling takes about 1 kB of memory a face
MIN_FACES = 4  # a tetrahedron; fewer enclose nothing
FACES_AT_ONCE = 1 << 20  # bounds what a step over the faces of a mesh takes to about 200 MB
_PLY_HEADER_BYTES = 1 << 16


class MeshError(ValueError):
    """A mesh that cannot be used; the message is one sentence for the person who brought it."""


def load_mesh(path: str | Path) -> Mesh:
    """Reads a file of `SUPPORTED` suffix (in any case); a scene becomes one mesh with its node
    transforms applied."""
    path = Path(path)
    check_file(path, SUPPORTED)
    try:
        if path.suffix.lower() in (".glb", ".gltf"):
            vertices, faces = read_gltf(path, MAX_VERTICES, MAX_FACES)
        else:
            vertices, faces = _read_plain(path)
        if len(vertices) > MAX_VERTICES or len(faces) > MAX_FACES:
            raise ValueError(
                f"it has {len(faces):,} faces and {len(vertices):,} vertices, allowed are {MAX_FACES:,} and "
                f"{MAX_VERTICES:,}; simplify it first"
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
    """`path` itself if it is a file, else the files of `SUPPORTED` suffix below the folder, sorted;
    hidden ones left out."""
    path = Path(path)
    if path.is_dir():
        found = (
            p
            for p in path.rglob("*")
            if p.suffix.lower() in SUPPORTED and not p.name.startswith(".")
        )
        return sorted(p for p in found if p.is_file())
    _check_suffix(path, SUPPORTED)
    if not path.is_file():
        raise MeshError(f"{path}: there is no such file or folder")
    return [path]


def normalize(vertices: np.ndarray, faces: np.ndarray) -> Mesh:
    """`vertices` (V, 3) in any frame and scale -> `Mesh` in the project's frame, computed in
    float64.

    The bounding box is that of the vertices in use. Raises `MeshError` without a face, or when they
    have no extent.
    """
    vertices, faces = np.asarray(vertices, dtype=np.float64), np.asarray(faces, dtype=np.int64)
    if len(faces) == 0:
        raise MeshError("it has no triangles (points and lines are not meshes)")
    if faces.min() < 0 or faces.max() >= len(vertices):
        raise MeshError(
            f"its faces index vertices {faces.min()}..{faces.max()}, but there are {len(vertices):,}"
        )
    if not np.isfinite(vertices[faces]).all():
        raise MeshError("its vertices hold NaN or infinite coordinates")
    vertices, faces = weld(vertices, faces)
    if len(faces) == 0:
        raise MeshError("all its triangles are degenerate, so it has no extent")
    vertices, to_source = to_frame(vertices)
    return Mesh(vertices, faces, to_source)


def to_frame(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Finite `points` (N, 3) float64 in any frame and scale -> the same in the project's frame, and
    the matrix (4, 4) back."""
    low, high = points.min(axis=0), points.max(axis=0)
    half = float((high / 2 - low / 2).max())
    if not np.finfo(np.float64).tiny < half < np.finfo(np.float64).max / 4:
        raise MeshError(f"its extent is {2 * half:.3g}, too small or too large to compute with")
    scale = half / CUBE_FILL
    to_source = np.diag([scale, scale, scale, 1.0])
    to_source[:3, 3] = center = low / 2 + high / 2
    return (points - center) / scale, to_source


def weld(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Merges vertices at equal positions (V, 3); drops faces that lose their area or repeat, and
    unused vertices.

    A connected piece whose every face is there in both directions (a double-sided shell) would
    cancel in a winding number: the first of each two is kept. Elsewhere such pairs stay, they are
    where solids touch. The order of what is kept does not change. The result may have no faces.
    """
    first, inverse = _unique_rows(vertices + 0.0)  # which makes -0 a 0
    faces = first[inverse][faces]
    faces = faces[
        (faces[:, 0] != faces[:, 1]) & (faces[:, 1] != faces[:, 2]) & (faces[:, 2] != faces[:, 0])
    ]
    if len(faces) > 0:
        turned = (
            faces.argmin(axis=1)[:, None] + np.arange(3)
        ) % 3  # smallest index first, direction kept
        faces = faces[np.sort(_unique_rows(np.take_along_axis(faces, turned, axis=1))[0])]
        first, inverse = _unique_rows(np.sort(faces, axis=1))
        piece = face_components(faces, len(vertices))
        single = np.bincount(inverse)[inverse] == 1
        double_sided = np.bincount(piece, single)[piece] == 0
        faces = faces[~double_sided | (first[inverse] == np.arange(len(faces)))]
    used = np.zeros(len(vertices), dtype=bool)
    used[faces] = True
    return vertices[used], (np.cumsum(used) - 1)[faces]


def blocks(count: int, most: int) -> list[slice]:
    """0..count-1 in slices of at most `most`."""
    return [slice(start, start + most) for start in range(0, count, most)]


def face_components(faces: np.ndarray, num_vertices: int) -> np.ndarray:
    """For each face (F,) the number of its connected piece; faces that share a vertex are
    connected."""
    index = (
        np.int32 if num_vertices <= np.iinfo(np.int32).max else np.int64
    )  # half the memory, which counts at 10^7 faces
    starts, ends = (
        np.concatenate([faces[:, i], faces[:, i + 1]], dtype=index, casting="same_kind")
        for i in (0, 1)
    )
    graph = coo_array(
        (np.ones(len(starts), dtype=bool), (starts, ends)), shape=(num_vertices, num_vertices)
    )
    return connected_components(graph, directed=False)[1][faces[:, 0]]


def _unique_rows(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where each distinct row first occurs, and for each row the number of its distinct row."""
    rows = np.ascontiguousarray(rows)
    keys = rows.view(np.dtype((np.void, rows.dtype.itemsize * rows.shape[1]))).ravel()
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    return first, inverse


def _read_plain(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Vertices and faces of an OBJ, PLY, STL or OFF file; side files (materials, textures) are
    never opened."""
    suffix = path.suffix.lower()
    with path.open("rb") as file:
        head = file.read(_PLY_HEADER_BYTES)
        if head.startswith(b"version https://git-lfs"):
            raise ValueError(
                "it is a Git LFS pointer, not the mesh itself; fetch it with git lfs pull"
            )
        if suffix == ".ply":
            _check_ply_header(head, path.stat().st_size)
        file.seek(0)
        logger = logging.getLogger("trimesh")
        was_disabled, logger.disabled = (
            logger.disabled,
            True,
        )  # it reports on normals and materials, which are not read
        try:
            scene = trimesh.load_scene(
                file, file_type=suffix[1:], process=False, skip_materials=True
            )
        # a parser given arbitrary bytes may fail in any way, and all of them are the file's fault
        except Exception as e:
            raise ValueError(f"it cannot be read as {suffix} ({type(e).__name__}: {e})") from e
        finally:
            logger.disabled = was_disabled
    vertices, faces, start = [np.empty((0, 3))], [np.empty((0, 3), dtype=np.int64)], 0
    for part in scene.geometry.values():
        if isinstance(part, trimesh.Trimesh):
            vertices.append(part.vertices)
            faces.append(part.faces + start)
            start += len(part.vertices)
    return np.concatenate(vertices), np.concatenate(faces)


def _check_ply_header(head: bytes, size: int) -> None:
    """The declared counts decide how much is allocated, so they must fit the file: an element takes
    a byte or more."""
    header, end, _ = head.partition(b"end_header")
    if not end:
        raise ValueError(f"its PLY header does not end within {_PLY_HEADER_BYTES:,} bytes")
    declared = sum(int(count) for count in re.findall(rb"element\s+\S+\s+(\d+)", header))
    if declared > size:
        raise ValueError(
            f"its PLY header declares {declared:,} elements, but the file has {size:,} bytes"
        )


def check_file(path: Path, suffixes: tuple[str, ...]) -> None:
    """Refuses a file by its name and size, before it is opened."""
    _check_suffix(path, suffixes)
    if not path.is_file():
        raise MeshError(f"{path}: there is no such file")
    size = path.stat().st_size
    if not 0 < size <= MAX_FILE_BYTES:
        raise MeshError(f"{path}: it has {size:,} bytes, allowed are 1 to {MAX_FILE_BYTES:,}")


def _check_suffix(path: Path, suffixes: tuple[str, ...]) -> None:
    if path.suffix.lower() not in suffixes and not path.is_dir():
        raise MeshError(
            f"{path}: the suffix {path.suffix!r} is not supported, allowed are {', '.join(suffixes)}"
        )


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
