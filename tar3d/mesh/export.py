"""`Mesh` -> a file that other programs open: .glb, .obj, .ply, .stl or .off by its suffix.

Vertices are shared between faces (STL cannot), written in float32, never mirrored, and replace an
older file only when complete. Written text has the nine digits that bring a float32 back exactly.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from tar3d.contracts import Mesh

FORMATS = (".glb", ".obj", ".ply", ".stl", ".off")
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
    for other values and suffixes.
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
    payload = _encode(vertices.astype(np.float32), mesh.faces, suffix)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        partial.write_bytes(payload)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def _encode(vertices: np.ndarray, faces: np.ndarray, suffix: str) -> bytes:
    # trimesh prints a fixed number of decimals, which loses small shapes, so the two text formats
    # are written here
    if suffix == ".obj":
        return (_lines("v %.9g %.9g %.9g\n", vertices) + _lines("f %d %d %d\n", faces + 1)).encode()
    if suffix == ".off":
        header = f"OFF\n{len(vertices)} {len(faces)} 0\n"
        return (
            header + _lines("%.9g %.9g %.9g\n", vertices) + _lines("3 %d %d %d\n", faces)
        ).encode()
    import trimesh
    from trimesh.visual import TextureVisuals
    from trimesh.visual.material import PBRMaterial

    visual = TextureVisuals(material=PBRMaterial(**GREY)) if suffix == ".glb" else None
    content = trimesh.Trimesh(vertices, faces, process=False, visual=visual).export(
        file_type=suffix[1:]
    )
    assert isinstance(content, bytes), "what trimesh makes of the binary formats"
    return content


def _lines(row_format: str, rows: np.ndarray) -> str:
    return (row_format * len(rows)) % tuple(rows.ravel().tolist())
