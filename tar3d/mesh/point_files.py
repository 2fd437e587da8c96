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

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import BinaryIO

Parts = tuple[np.ndarray, np.ndarray | None, np.ndarray | None]  # points, normals, to_source
# name, count, and name and type of each property, None for a list
Elements = list[tuple[str, int, list[tuple[str, str | None]]]]
_KEYS = ("surface", "transform", "points", "normals")  # arrays of an .npz that are read
_PLY_HEADER_BYTES = 1 << 16
_PLY_TYPES = {
    "char": "i1",
    "uchar": "u1",
    "short": "i2",
    "ushort": "u2",
    "int": "i4",
    "uint": "u4",
    "float": "f4",
    "double": "f8",
    "int8": "i1",
    "uint8": "u1",
    "int16": "i2",
    "uint16": "u2",
    "int32": "i4",
    "uint32": "u4",
    "float32": "f4",
    "float64": "f8",
}
_PLY_ORDERS = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}


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
    return rows[:, :3], rows[:, 3:], None


def _read_text(content: bytes) -> Parts:
    try:
        lines = content.decode("utf-8-sig").translate(str.maketrans(",;", "  ")).splitlines()
    except UnicodeDecodeError as e:
        raise ValueError(f"it is not text (byte {e.start:,})") from e
    return _columns(_table(lines, 1, (3, 6)), "its rows")


def _table(lines: list[str], number: int, widths: tuple[int, ...]) -> np.ndarray:
    """Lines of numbers -> (N, W) float64, where W is one of `widths`.

    `number` is the number of the first line, for errors.
    """
    try:
        if any(_fields(line) for line in lines):
            rows = np.loadtxt(lines, comments=("#", "//"), ndmin=2)
            if rows.shape[1] in widths:
                return rows
        problem = ValueError("it holds no points")
    except ValueError as e:
        problem = e
    first = None
    for n, line in enumerate(lines, start=number):  # a second, slow pass names the line
        fields = _fields(line)
        for field in fields:
            try:
                float(field)
            except ValueError:
                raise ValueError(f"line {n} holds {field[:40]!r}, which is no number") from None
        first = first or (len(fields) if fields else None)
        if fields and (len(fields) not in widths or len(fields) != first):
            allowed = " or ".join(map(str, widths))
            if len(fields) in widths:
                allowed = f"as many as before ({first})"
            raise ValueError(
                f"line {n} has {len(fields)} numbers, allowed are {allowed}"
                + (": x y z, or x y z nx ny nz" if widths == (3, 6) else "")
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
    order, elements, start = _ply_header(content[:_PLY_HEADER_BYTES])
    if _has_faces(elements):
        raise ValueError("it has faces, so it is a mesh")
    rows = {}
    for name, count, properties in elements:
        if count > len(content):
            raise ValueError(
                f"its PLY header declares {count:,} of {name}, but the file has {len(content):,} "
                "bytes"
            )
        if name == "vertex" and any(dtype is None for _, dtype in properties):
            raise ValueError(
                "its vertices have properties that are lists, which no point cloud has"
            )
        if name == "vertex":
            rows = _ply_rows(content, start, order, count, properties)
            break
        if any(dtype is None for _, dtype in properties):
            raise ValueError(
                f"its {name} come before the vertices and have lists, so that these are not found"
            )
        if order:
            start += count * np.dtype([(p, f"{order}{dtype}") for p, dtype in properties]).itemsize
        else:
            start = len(content) - len(content[start:].split(b"\n", count)[-1])
    missing = [axis for axis in "xyz" if axis not in rows]
    if missing:
        raise ValueError(f"its PLY header declares no vertices with {', '.join(missing)}")
    points = np.stack([rows[axis] for axis in "xyz"], axis=1)
    if not all(f"n{axis}" in rows for axis in "xyz"):
        return points, None, None
    return points, np.stack([rows[f"n{axis}"] for axis in "xyz"], axis=1), None


def _ply_rows(
    content: bytes, start: int, order: str, count: int, properties: list[tuple[str, str | None]]
) -> dict[str, np.ndarray]:
    """The `count` rows that begin at byte `start`: a column (N,) float64 for each property."""
    names = [name for name, _ in properties]
    if order:
        layout = np.dtype([(name, f"{order}{dtype}") for name, dtype in properties])
        complete = (len(content) - start) // layout.itemsize
        if count > complete:
            raise ValueError(f"it ends after {complete:,} of {count:,} points")
        rows = np.frombuffer(content, layout, count, start)
        return {name: rows[name].astype(np.float64) for name in names}
    lines = content[start:].decode("latin-1").splitlines()[:count]
    if len(lines) < count:
        raise ValueError(f"it ends after {len(lines):,} of {count:,} points")
    number = content.count(b"\n", 0, start) + 1
    table = _table(lines, number, (len(names),)) if count else np.empty((0, len(names)))
    return {name: table[:, i] for i, name in enumerate(names)}


def _ply_header(head: bytes) -> tuple[str, Elements, int]:
    """The byte order ("" for ASCII), the elements, and the offset of the data."""
    end = re.search(rb"\nend_header[ \t]*\r?\n", head)
    if not head.startswith(b"ply") or not end:
        raise ValueError(f"it has no complete PLY header within {_PLY_HEADER_BYTES:,} bytes")
    order: str | None = None
    elements: Elements = []
    for line in head[: end.start()].decode("latin-1").splitlines()[1:]:
        match line.split():
            case ["format", form, "1.0"] if form in _PLY_ORDERS:
                order = _PLY_ORDERS[form]
            case ["element", name, count] if count.isdecimal():
                elements.append((name, int(count), []))
            case ["property", "list", _, _, name] if elements:
                elements[-1][2].append((name, None))
            case ["property", dtype, name] if elements and dtype in _PLY_TYPES:
                elements[-1][2].append((name, _PLY_TYPES[dtype]))
            case [] | ["comment", *_] | ["obj_info", *_]:
                pass
            case _:
                raise ValueError(f"its PLY header holds {line[:60]!r}, which is not understood")
    if order is None:
        raise ValueError("its PLY header names no format")
    return order, elements, end.end()


def is_point_ply(file: BinaryIO) -> bool:
    """True for an open .ply without faces; ValueError for a broken header."""
    return not _has_faces(_ply_header(file.read(_PLY_HEADER_BYTES))[1])


def _has_faces(elements: Elements) -> bool:
    return any(name in ("face", "tristrips") and count > 0 for name, count, _ in elements)


READERS: dict[str, Callable[[bytes], Parts]] = {
    ".ply": _read_ply,
    ".txt": _read_text,
    ".xyz": _read_text,
    ".npz": _read_numpy,
    ".npy": _read_numpy,
}
