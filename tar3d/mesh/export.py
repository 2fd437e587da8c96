"""`Mesh` -> a file that other programs open: .glb, .obj, .ply, .stl or .off by its suffix.

Vertices are shared between faces (STL cannot), never mirrored, and replace an older file only when
complete. They are written in float32, in text with the nine digits that bring one back exactly. A
shape that float32 would round by more than `_MAX_ROUNDING` of its size, such as one in
georeferenced coordinates, keeps its place: a GLB moves it there by a node, a PLY holds doubles, an
OBJ and an OFF have 17 digits, and an STL is text of 17 digits.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from tar3d.contracts import Mesh

FORMATS = (".glb", ".obj", ".ply", ".stl", ".off")
_MAX_ROUNDING = 5e-7  # share of the longest side by which float32 may move a vertex
# Without a material glTF means white metal, which viewers without surroundings to mirror draw black
# or washed out.
GREY = {
    "name": "grey",
    "baseColorFactor": (96, 98, 102, 255),
    "metallicFactor": 0.0,
    "roughnessFactor": 0.8,
}
# +90 degrees about x
_Y_UP_TO_Z_UP = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, 1.0, 0.0]])


def save_mesh(
    mesh: Mesh,
    path: str | Path,
    *,
    frame: str = "normalized",
    up: str = "y",
    size: float | None = None,
) -> Path:
    """Writes `mesh` to `path` and returns the path; missing folders are made.

    `frame` is "normalized" (the project's frame) or "source" (the frame and scale of the file the
    mesh came from). `up` is "y", or "z" to turn the vertices by +90 degrees about x, for CAD and 3D
    printing. `size` is the longest side of the mesh's box in the file's unit (slicers take that of
    an STL for a millimetre), scaled about the origin; None leaves it as it is. Raises ValueError
    for other values and suffixes, and for a .glb larger or smaller than its float32 can hold.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    for name, value, allowed in (
        ("suffix", suffix, FORMATS),
        ("frame", frame, ("normalized", "source")),
        ("up", up, ("y", "z")),
    ):
        if value not in allowed:
            raise ValueError(
                f"cannot save {path}: {name} is {value!r}, allowed are {', '.join(allowed)}"
            )
    vertices = mesh.vertices.astype(np.float64)
    if frame == "source":
        vertices = vertices @ mesh.to_source[:3, :3].T + mesh.to_source[:3, 3]
    if up == "z":
        vertices = vertices @ _Y_UP_TO_Z_UP.T
    if size is not None:
        extent = float(np.ptp(vertices, axis=0).max())
        if not 0 < size < np.inf or extent == 0:
            raise ValueError(
                f"cannot save {path}, {extent:g} long, with a longest side of {size:g}: both must "
                "be positive"
            )
        vertices = vertices * (size / extent)
    try:
        payload = _encode(vertices, mesh.faces, suffix)
    except ValueError as e:
        raise ValueError(f"cannot save {path}: {e}") from e
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        partial.write_bytes(payload)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def _encode(vertices: np.ndarray, faces: np.ndarray, suffix: str) -> bytes:
    """The content of a file with `vertices` (V, 3) float64 and `faces` (F, 3)."""
    # trimesh prints a fixed number of decimals, which loses small shapes, so text is written here
    fits = _fits_float32(vertices)
    row = " ".join(["%.9g" if fits else "%.17g"] * 3) + "\n"
    if fits:
        vertices = vertices.astype(np.float32)
    if suffix == ".obj":
        return (_lines(f"v {row}", vertices) + _lines("f %d %d %d\n", faces + 1)).encode()
    if suffix == ".off":
        header = f"OFF\n{len(vertices)} {len(faces)} 0\n"
        return (header + _lines(row, vertices) + _lines("3 %d %d %d\n", faces)).encode()
    if suffix == ".ply":
        return _encode_ply(vertices, faces)
    if suffix == ".stl" and not fits:
        return _encode_text_stl(vertices[faces], row)
    import trimesh
    from trimesh.visual import TextureVisuals
    from trimesh.visual.material import PBRMaterial

    visual = TextureVisuals(material=PBRMaterial(**GREY)) if suffix == ".glb" else None
    center = np.zeros(3)
    if not fits:
        center = vertices.min(axis=0) / 2 + vertices.max(axis=0) / 2
        vertices = vertices - center
        if not _fits_float32(vertices):
            raise ValueError(
                f"it is {np.ptp(vertices, axis=0).max():.3g} long, which the float32 of a GLB "
                "cannot hold; choose another suffix or size"
            )
    shape = trimesh.Trimesh(vertices, faces, process=False, visual=visual)
    scene = trimesh.Scene(shape) if center.any() else shape
    if center.any():
        scene.apply_translation(center)  # of the node: the vertices keep their small numbers
    content = scene.export(file_type=suffix[1:])
    assert isinstance(content, bytes), "what trimesh makes of the binary formats"
    return content


def _fits_float32(vertices: np.ndarray) -> bool:
    """True if float32 moves no vertex (V, 3) float64 by more than `_MAX_ROUNDING` of the size."""
    with np.errstate(over="ignore", invalid="ignore"):
        moved = np.abs(vertices.astype(np.float32).astype(np.float64) - vertices).max()
        return bool(moved <= _MAX_ROUNDING * np.ptp(vertices, axis=0).max())


def _encode_ply(vertices: np.ndarray, faces: np.ndarray) -> bytes:
    """A binary PLY whose coordinates have the type of `vertices`, float32 or float64."""
    kind = "float" if vertices.dtype == np.float32 else "double"
    header = [
        *("ply", "format binary_little_endian 1.0", f"element vertex {len(vertices)}"),
        *(f"property {kind} {axis}" for axis in "xyz"),
        *(f"element face {len(faces)}", "property list uchar int vertex_indices", "end_header\n"),
    ]
    rows = np.empty(len(faces), dtype=[("count", "u1"), ("corners", "<i4", 3)])
    rows["count"], rows["corners"] = 3, faces
    little_endian = vertices.astype(vertices.dtype.newbyteorder("<"))
    return "\n".join(header).encode() + little_endian.tobytes() + rows.tobytes()


def _encode_text_stl(triangles: np.ndarray, row: str) -> bytes:
    """An ASCII STL of `triangles` (F, 3, 3); `row` is the format of three numbers.

    It is for coordinates that the float32 of a binary one would lose.
    """
    a, b, c = triangles[:, 0], triangles[:, 1], triangles[:, 2]
    normal = np.cross(b - a, c - a)
    length = np.linalg.norm(normal, axis=1, keepdims=True)
    normal /= np.where(length > 0, length, 1)
    facet = f"facet normal %.9g %.9g %.9g\nouter loop\n{f'vertex {row}' * 3}endloop\nendfacet\n"
    lines = _lines(facet, np.concatenate([normal, triangles.reshape(-1, 9)], axis=1))
    return f"solid mesh\n{lines}endsolid mesh\n".encode()


def _lines(row_format: str, rows: np.ndarray) -> str:
    return (row_format * len(rows)) % tuple(rows.ravel().tolist())
