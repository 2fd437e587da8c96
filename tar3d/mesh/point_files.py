"""Readers of point cloud files: bytes -> points, and normals and a transform if the file has them.

`point_cloud` describes the formats, and checks the content. Readers raise ValueError with the
reason for bytes that they cannot read.
"""

from __future__ import annotations

import io
import re
import zipfile
from typing import TYPE_CHECKING, Any

import numpy as np

from tar3d.mesh.load import MAX_FILE_BYTES
from tar3d.mesh.ply import HEADER_BYTES, read_elements, read_header

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import BinaryIO

    from tar3d.mesh.ply import Element

Parts = tuple[np.ndarray, np.ndarray | None, np.ndarray | None]  # points, normals, to_source
_KEYS = ("surface", "transform", "points", "normals")  # arrays of an .npz that are read
# names of a normal in a .ply, the second those of PCL and ROS
_NORMALS = (("nx", "ny", "nz"), ("normal_x", "normal_y", "normal_z"))
# what the vertices of 3D Gaussian splatting have, as trained and as PlayCanvas packs them
_SPLATS = ({"opacity", "scale_0", "rot_0"}, {"packed_position", "packed_rotation"})
_DECIMAL_COMMA = re.compile(r"[-+]?\d*,\d+(?:[eE][-+]?\d+)?")
_NUMBER = re.compile(r"[-+]?\d*,?\d+(?:[eE][-+]?\d+)?")
_WIDTHS = (3, 6)  # numbers in a row of text
_LINES_CHECKED = 1000  # for decimal commas
_MAX_COLOUR_ERROR = 0.1  # by which a median length may differ from 1 without a negative number


def _columns(rows: np.ndarray, name: str) -> Parts:
    """Rows (N, 3) or (N, 6) -> their parts; `name` names the rows in errors."""
    rows = np.asarray(rows)
    if rows.ndim != 2 or rows.shape[1] not in (3, 6) or rows.dtype.kind not in "fiu":
        raise ValueError(
            f"{name} must be numbers, (N, 3) or with normals (N, 6), but is {rows.dtype} "
            f"{rows.shape}"
        )
    rows = rows.astype(np.float64)
    if rows.shape[1] == 3:
        return rows, None, None
    with np.errstate(over="ignore"):
        length = np.linalg.norm(rows[:, 3:], axis=1)
    if len(rows) and (typical := float(np.median(length))) > 0 and not 0.5 < typical < 1.5:
        raise ValueError(
            f"columns 4 to 6 of {name} should be unit normals, but have a typical length of "
            f"{typical:.3g}: if they are colours, leave them out"
        )
    error = float(np.median(np.abs(length - 1))) if len(rows) else 0.0
    if name != "surface" and error > _MAX_COLOUR_ERROR and (rows[:, 3:] >= 0).all():
        raise ValueError(
            f"columns 4 to 6 of {name} are no unit normals, nor is one of them below 0: if they "
            "are colours, leave them out"
        )
    return rows[:, :3], rows[:, 3:], None


def _read_text(content: bytes) -> Parts:
    try:
        lines = content.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as e:
        raise ValueError(f"it is not text (byte {e.start:,})") from e
    _refuse_decimal_commas(lines)
    separators = str.maketrans(",;", "  ")
    return _columns(_table([line.translate(separators) for line in lines]), "its rows")


def _refuse_decimal_commas(lines: list[str]) -> None:
    """Refuses 1,5 2,5 3,5, which would be six columns; looks at the first lines only."""
    for n, line in enumerate(lines[:_LINES_CHECKED], start=1):
        fields = _fields(line.replace(";", " "))
        comma = next((field for field in fields if _DECIMAL_COMMA.fullmatch(field)), None)
        if comma and len(fields) in (3, 6) and all(_NUMBER.fullmatch(field) for field in fields):
            raise ValueError(
                f"line {n} holds {comma[:40]!r}: a decimal comma must be a point, as in "
                f"{comma.replace(',', '.')[:40]}"
            )


def _table(lines: list[str]) -> np.ndarray:
    """Lines of numbers -> (N, 3) or (N, 6) float64."""
    try:
        if any(_fields(line) for line in lines):
            rows = np.loadtxt(lines, comments=("#", "//"), ndmin=2)
            if rows.shape[1] in _WIDTHS:
                return rows
        problem = ValueError("it holds no points")
    except ValueError as e:
        problem = e
    first = None
    for n, line in enumerate(lines, start=1):  # a second, slow pass names the line
        fields = _fields(line)
        for field in fields:
            try:
                float(field)
            except ValueError:
                raise ValueError(f"line {n} holds {field[:40]!r}, which is no number") from None
        first = first or (len(fields) if fields else None)
        if fields and (len(fields) not in _WIDTHS or len(fields) != first):
            allowed = f"as many as before ({first})" if len(fields) in _WIDTHS else "3 or 6"
            raise ValueError(
                f"line {n} has {len(fields)} numbers, allowed are {allowed}: x y z, or x y z nx "
                "ny nz"
            )
    raise problem


def _fields(line: str) -> list[str]:
    return re.split("#|//", line)[0].split()


def _read_numpy(content: bytes) -> Parts:
    arrays = _from_numpy(content)
    if isinstance(arrays, np.ndarray):
        return _columns(arrays, "its array")
    if "surface" in arrays:
        points, normals, _ = _columns(arrays["surface"], "surface")
        if normals is not None and "transform" in arrays:
            to_source = np.asarray(arrays["transform"], dtype=np.float64)
            if to_source.shape != (4, 4) or not np.isfinite(to_source).all():
                raise ValueError(
                    f"transform must be a finite (4, 4) matrix, but is {to_source.shape}"
                )
            return points, normals, to_source
        return points, normals, None
    if "points" not in arrays:
        raise ValueError(
            f"it has no array points or surface, only {', '.join(arrays) or 'nothing'}"
        )
    points, normals, _ = _columns(arrays["points"], "points")
    if "normals" in arrays:
        normals = np.asarray(arrays["normals"])
        if normals.shape != points.shape or normals.dtype.kind not in "fiu":
            raise ValueError(
                f"normals must be numbers, {points.shape} as points, but are {normals.dtype} "
                f"{normals.shape}"
            )
        normals = normals.astype(np.float64)
    return points, normals, None


def _from_numpy(content: bytes) -> np.ndarray | dict[str, Any]:
    """The array of an .npy, or the arrays of an .npz by name.

    An array of the .npz that is not in _KEYS is None: its content is not read.
    """
    try:
        if not zipfile.is_zipfile(io.BytesIO(content)):
            return np.load(io.BytesIO(content), allow_pickle=False)
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            size = sum(
                archive.zip.getinfo(f"{key}.npy").file_size for key in _KEYS if key in archive.files
            )
            if size > MAX_FILE_BYTES:
                raise ValueError(f"its arrays have {size:,} bytes, allowed are {MAX_FILE_BYTES:,}")
            return {key: archive[key] if key in _KEYS else None for key in archive.files}
    # a parser given arbitrary bytes may fail in any way, and all of them are the file's fault
    except Exception as e:
        raise ValueError(
            f"it cannot be read as a file of numpy arrays ({type(e).__name__}: {e})"
        ) from e


def _read_ply(content: bytes) -> Parts:
    declared = read_header(content)[1]
    if _has_faces(declared):
        raise ValueError("it has faces, so it is a mesh")
    properties = [p for element in declared if element.name == "vertex" for p in element.properties]
    names = {p.name for p in properties}
    if any(splat <= names for splat in _SPLATS):
        raise ValueError(
            "it holds Gaussian splats, whose centres are not points of the surface: extract a mesh "
            "from them, or save the positions of opaque ones on the surface as .xyz"
        )
    missing = [axis for axis in "xyz" if axis not in names]
    if missing:
        raise ValueError(f"its PLY header declares no vertices with {', '.join(missing)}")
    if any(p.length for p in properties):
        raise ValueError("its vertices have properties that are lists, which no point cloud has")
    vertex = next(element for element in read_elements(content) if element.name == "vertex")
    points = np.stack([vertex.columns[axis] for axis in "xyz"], axis=1)
    for normal in _NORMALS:
        if names.issuperset(normal):
            return points, np.stack([vertex.columns[name] for name in normal], axis=1), None
    return points, None, None


def is_point_ply(file: BinaryIO) -> bool:
    """True for an open .ply without faces; ValueError for a broken header."""
    return not _has_faces(read_header(file.read(HEADER_BYTES))[1])


def _has_faces(elements: list[Element]) -> bool:
    return any(e.name in ("face", "tristrips") and e.count > 0 for e in elements)


READERS: dict[str, Callable[[bytes], Parts]] = {
    ".ply": _read_ply,
    ".txt": _read_text,
    ".xyz": _read_text,
    ".npz": _read_numpy,
    ".npy": _read_numpy,
}
