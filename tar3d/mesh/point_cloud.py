"""Point cloud files -> `PointCloud`: checked, in the project's frame, every point with an outward
normal.

    .ply            ASCII or binary, without faces (with faces it is a mesh): x y z, and nx ny nz if it has normals
    .xyz .txt       a point a line: x y z, or x y z nx ny nz, separated by blanks or commas; "#" and "//" begin a comment
    .npz            points (N, 3) or (N, 6), and normals (N, 3) if it has them; or surface (N, 6) and transform, as
                    tar3d.data.make_samples writes them, which are in the project's frame already
    .npy            (N, 3) or (N, 6)

Missing normals are estimated, those that look inward as a whole are turned, and `notes` say so.
Refused, with one sentence that holds the file and the reason (`MeshError`): damaged files, rows
that are no points, NaN or infinite coordinates, no extent, fewer than 100 different points, and
anything above the limits of `tar3d.mesh.load`.
"""

from __future__ import annotations

import io
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tar3d.contracts import Mesh
from tar3d.mesh.load import MAX_FILE_BYTES, MAX_VERTICES, MeshError, check_file, one_line, to_frame
from tar3d.mesh.point_normals import estimate_normals, outward_share, unevenness

ONLY_POINTS = (
    ".xyz",
    ".npz",
    ".npy",
)  # what a folder is searched for; a .txt in one is more often a licence
CLOUD_SUFFIXES = (".ply", ".txt", *ONLY_POINTS)
MIN_POINTS = 100
ESTIMATED = "normals estimated and oriented"
UNEVEN = (
    "its points are spread unevenly, as the vertices of a mesh are, but the encoder expects them uniform over the surface: "
    "give the mesh itself, or points sampled from it"
)
MAX_ESTIMATED = 200_000  # they take 10 s, and more say no more about a normal
# Of the meshes in the development set, the vertices of 66 % are above, uniform points (200 to 8,192
# on each mesh) in 1 of 100.
MAX_UNEVENNESS = 0.36
# the true normals of 214 real meshes have at least 0.49, and their opposites at most 0.3 in 98 of
# 100
MIN_OUTWARD = 0.3
# share of points without a usable normal that are left out, instead of estimating all
MAX_MISSING = 0.01
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


@dataclass(frozen=True)
class PointCloud:
    """`points` (N, 3) float32 in the project's frame, unit `normals` (N, 3) float32, `to_source`
    (4, 4) as of a `Mesh`, `estimated`: the normals are; `notes`: sentences on what was done and on
    what looks wrong."""

    points: np.ndarray
    normals: np.ndarray
    to_source: np.ndarray
    estimated: bool = False
    notes: tuple[str, ...] = ()

    def draw(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """`count` different points with their normals, (count, 6) float32; all of them in their
        order if there are no more."""
        surface = np.concatenate([self.points, self.normals], axis=1)
        return (
            surface
            if count >= len(surface)
            else surface[rng.choice(len(surface), count, replace=False)]
        )


def is_cloud(path: str | Path) -> bool:
    """Whether a file is read by `load_points`, and not by `load_mesh`: by its suffix, a .ply by the
    faces it declares."""
    path = Path(path)
    if path.suffix.lower() != ".ply":
        return path.suffix.lower() in CLOUD_SUFFIXES
    try:
        with path.open("rb") as file:
            return not _faces(_ply_header(file.read(_PLY_HEADER_BYTES))[1])
    except (ValueError, OSError):
        return False  # a broken file, which the mesh reader refuses


def load_points(path: str | Path) -> PointCloud:
    """Reads a file of `CLOUD_SUFFIXES` (in any case). Points that occur twice are merged; the
    others keep their order."""
    path = Path(path)
    check_file(path, CLOUD_SUFFIXES)
    read = {".ply": _read_ply, ".npz": _read_numpy, ".npy": _read_numpy}.get(
        path.suffix.lower(), _read_text
    )
    try:
        points, normals, to_source = read(path.read_bytes())
        if len(points) > MAX_VERTICES:
            raise ValueError(
                f"it has {len(points):,} points, allowed are {MAX_VERTICES:,}; thin it out first"
            )
        return _prepare(points, normals, to_source)
    except (ValueError, OSError) as e:
        raise MeshError(f"{path}: {one_line(e)}") from e


def splats(surface: np.ndarray, radius: float = 0.02) -> Mesh:
    """Points with normals (N, 6) -> a small square for each, to draw them as a mesh is drawn."""
    points, normals = surface[:, :3].astype(np.float64), surface[:, 3:].astype(np.float64)
    across = np.cross(normals, np.eye(3)[np.abs(normals).argmin(axis=1)])
    across *= radius / np.linalg.norm(across, axis=1, keepdims=True)
    up = np.cross(normals, across)
    corners = np.stack(
        [points + across, points + up, points - across, points - up], axis=1
    )  # (N, 4, 3)
    faces = np.array([[0, 1, 2], [0, 2, 3]]) + 4 * np.arange(len(points))[:, None, None]
    return Mesh(corners.reshape(-1, 3), faces.reshape(-1, 3))


def _prepare(
    points: np.ndarray, normals: np.ndarray | None, to_source: np.ndarray | None
) -> PointCloud:
    """Checks; `to_source` is given where the points are in the project's frame."""
    notes = []
    if bad := int((~np.isfinite(points)).any(axis=1).sum()):
        raise ValueError(f"{bad:,} of its {len(points):,} points have NaN or infinite coordinates")
    points = points + 0.0  # which makes -0 a 0
    if normals is not None:
        with np.errstate(over="ignore"):
            length = np.linalg.norm(normals, axis=1)
        usable = np.isfinite(length) & (length > 0)
        if usable.mean() < 1 - MAX_MISSING:
            notes.append(f"{int((~usable).sum()):,} of {len(points):,} normals have no length")
            normals = None
        else:
            if not usable.all():
                notes.append(
                    f"{int((~usable).sum()):,} points whose normal has no length were left out"
                )
            # those that are unit as far as float16 goes stay as they are
            length = np.where(np.abs(length - 1) < 2e-3, 1.0, length)
            points, normals = points[usable], normals[usable] / length[usable, None]
    rows = points if normals is None else np.concatenate([points, normals], axis=1)
    first = np.sort(np.unique(rows, axis=0, return_index=True)[1])
    if len(first) < len(points):
        notes.append(f"{len(points) - len(first):,} repeated points were merged")
        points, normals = points[first], None if normals is None else normals[first]
    places = np.unique(points, axis=0, return_index=True)[
        1
    ]  # fewer where one point has two normals
    if len(places) < MIN_POINTS:
        raise ValueError(
            f"it has {len(places)} different points, a shape needs at least {MIN_POINTS}"
        )
    if to_source is None:
        points, to_source = to_frame(points)
    elif np.abs(points).max() > 1:
        raise ValueError(
            "its surface leaves the cube [-1, 1]^3, in which sample files are: name the array points instead"
        )
    if unevenness(points[places]) > MAX_UNEVENNESS:
        notes.append(UNEVEN)
    estimated = normals is None
    if estimated:
        if len(points) > MAX_ESTIMATED:
            points = points[
                np.sort(np.random.default_rng(0).choice(len(points), MAX_ESTIMATED, replace=False))
            ]
            notes.append(f"thinned out to {MAX_ESTIMATED:,} points")
        normals = estimate_normals(points)
        notes.append(ESTIMATED)
    elif outward_share(points, normals) < MIN_OUTWARD:
        normals = -normals
        notes.append("normals looked inward and were turned")
    return PointCloud(
        points.astype(np.float32), normals.astype(np.float32), to_source, estimated, tuple(notes)
    )


Parts = tuple[np.ndarray, np.ndarray | None, np.ndarray | None]  # points, normals, to_source


def _columns(rows: np.ndarray, name: str) -> Parts:
    """(N, 3) or (N, 6) -> its parts; `name` says what the rows are."""
    rows = np.asarray(rows)
    if rows.ndim != 2 or rows.shape[1] not in (3, 6) or rows.dtype.kind not in "fiu":
        raise ValueError(
            f"{name} must be numbers, (N, 3) or with normals (N, 6), but is {rows.dtype} {rows.shape}"
        )
    rows = rows.astype(np.float64)
    if rows.shape[1] == 3:
        return rows, None, None
    with np.errstate(over="ignore"):
        length = np.linalg.norm(rows[:, 3:], axis=1)
    if len(rows) and (typical := float(np.median(length))) > 0 and not 0.5 < typical < 1.5:
        raise ValueError(
            f"columns 4 to 6 of {name} should be unit normals, but have a typical length of {typical:.3g}: "
            "if they are colours, leave them out"
        )
    return rows[:, :3], rows[:, 3:], None


def _read_text(content: bytes) -> Parts:
    try:
        lines = content.decode("utf-8-sig").translate(str.maketrans(",;", "  ")).splitlines()
    except UnicodeDecodeError as e:
        raise ValueError(f"it is not text (byte {e.start:,})") from e
    return _columns(_table(lines, 1, (3, 6)), "its rows")


def _table(lines: list[str], number: int, widths: tuple[int, ...]) -> np.ndarray:
    """Lines of numbers -> (N, width) float64, each of one of `widths`; `number` is that of the
    first line."""
    try:
        if any(_fields(line) for line in lines):
            rows = np.loadtxt(lines, comments=("#", "//"), ndmin=2)
            if rows.shape[1] in widths:
                return rows
        problem = ValueError("it holds no points")
    except ValueError as e:
        problem = e
    first = None
    for n, line in enumerate(lines, start=number):  # slowly, to say where
        fields = _fields(line)
        for field in fields:
            try:
                float(field)
            except ValueError:
                raise ValueError(f"line {n} holds {field[:40]!r}, which is no number") from None
        first = first or (len(fields) if fields else None)
        if fields and (len(fields) not in widths or len(fields) != first):
            allowed = (
                f"as many as before ({first})"
                if len(fields) in widths
                else " or ".join(map(str, widths))
            )
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
                f"normals must be numbers, {points.shape} as points, but are {normals.dtype} {normals.shape}"
            )
        normals = normals.astype(np.float64)
    return points, normals, None


_KEYS = ("surface", "transform", "points", "normals")


def _from_numpy(content: bytes) -> np.ndarray | dict[str, np.ndarray | None]:
    """The array of an .npy, or those of an .npz that are of use, and None for others: what they
    hold is not read."""
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
    if _faces(elements):
        raise ValueError("it has faces, so it is a mesh")
    rows = {}
    for name, count, properties in elements:
        if count > len(content):
            raise ValueError(
                f"its PLY header declares {count:,} of {name}, but the file has {len(content):,} bytes"
            )
        if name == "vertex" and any(kind is None for _, kind in properties):
            raise ValueError(
                "its vertices have properties that are lists, which no point cloud has"
            )
        if name == "vertex":
            rows = _ply_rows(content, start, order, count, properties)
            break
        if any(kind is None for _, kind in properties):
            raise ValueError(
                f"its {name} come before the vertices and have lists, so that these are not found"
            )
        if order:
            start += count * np.dtype([(p, order + kind) for p, kind in properties]).itemsize
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
    """The `count` rows that begin at byte `start`, as a column (N,) float64 for each property."""
    names = [name for name, _ in properties]
    if order:
        layout = np.dtype([(name, f"{order}{kind}") for name, kind in properties])
        there = (len(content) - start) // layout.itemsize
        if count > there:
            raise ValueError(f"it ends after {there:,} of {count:,} points")
        rows = np.frombuffer(content, layout, count, start)
        return {name: rows[name].astype(np.float64) for name in names}
    lines = content[start:].decode("latin-1").splitlines()[:count]
    if len(lines) < count:
        raise ValueError(f"it ends after {len(lines):,} of {count:,} points")
    number = content.count(b"\n", 0, start) + 1
    table = _table(lines, number, (len(names),)) if count else np.empty((0, len(names)))
    return {name: table[:, i] for i, name in enumerate(names)}


Elements = list[
    tuple[str, int, list[tuple[str, str | None]]]
]  # name, count, and of each property name and type, None for a list


def _ply_header(head: bytes) -> tuple[str, Elements, int]:
    """The byte order ("" for ASCII), the elements, and where the data begins."""
    end = re.search(rb"\nend_header[ \t]*\r?\n", head)
    if not head.startswith(b"ply") or not end:
        raise ValueError(f"it has no complete PLY header within {_PLY_HEADER_BYTES:,} bytes")
    order, elements = None, []
    for line in head[: end.start()].decode("latin-1").splitlines()[1:]:
        match line.split():
            case ["format", form, "1.0"] if form in _PLY_ORDERS:
                order = _PLY_ORDERS[form]
            case ["element", name, count] if count.isdecimal():
                elements.append((name, int(count), []))
            case ["property", "list", _, _, name] if elements:
                elements[-1][2].append((name, None))
            case ["property", kind, name] if elements and kind in _PLY_TYPES:
                elements[-1][2].append((name, _PLY_TYPES[kind]))
            case [] | ["comment", *_] | ["obj_info", *_]:
                pass
            case _:
                raise ValueError(f"its PLY header holds {line[:60]!r}, which is not understood")
    if order is None:
        raise ValueError("its PLY header names no format")
    return order, elements, end.end()


def _faces(elements: Elements) -> bool:
    return any(name in ("face", "tristrips") and count > 0 for name, count, _ in elements)
