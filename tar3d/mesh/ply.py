"""PLY files: the header, the rows of every element, and the triangles of a mesh.

http://paulbourke.net/dataformats/ply. Read are ASCII and both byte orders, any properties in any
order, lists of differing lengths, and further elements anywhere.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from tar3d.mesh.polygons import check_polygons, triangles
from tar3d.mesh.text_lines import TextLines, is_whole, plain_text

if TYPE_CHECKING:
    from collections.abc import Callable

HEADER_BYTES = 1 << 20
_TYPES = {
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
    "int64": "i8",
    "uint64": "u8",
    "float16": "f2",
    "float32": "f4",
    "float64": "f8",
}
_ORDERS = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}
_CORNER_LISTS = ("vertex_indices", "vertex_index")


class Property(NamedTuple):
    """A property of an element, with NumPy's types of its values and of a list's length."""

    name: str
    dtype: str
    length: str | None = None


@dataclass
class Element:
    """What a header declares of an element, and, once read, its columns and lists by property."""

    name: str
    count: int
    properties: list[Property] = field(default_factory=list)
    columns: dict[str, np.ndarray] = field(default_factory=dict)  # (N,) float64
    # all lists one after another, and the length of each (N,)
    lists: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    # where a row stands in the file
    row_name: Callable[[int], str] = str


def read_ply(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Vertices (V, 3) float64 and faces (F, 3) int64, of the elements face and tristrips.

    Raises ValueError, with the line or byte, for a file that is cut off or damaged, for corners
    without a vertex, and for used vertices that are not finite.
    """
    elements = {element.name: element for element in read_elements(content)}
    vertex = elements.get("vertex")
    shapes = [elements[name] for name in ("face", "tristrips") if name in elements]
    if vertex is None or not any(shape.count for shape in shapes):
        return np.empty((0, 3)), np.empty((0, 3), np.int64)
    missing = [axis for axis in "xyz" if axis not in vertex.columns]
    if missing:
        raise ValueError(f"its PLY header declares vertices without {', '.join(missing)}")
    vertices = np.stack([vertex.columns[axis] for axis in "xyz"], axis=1)
    faces = [np.empty((0, 3), np.int64)]
    for shape in (shape for shape in shapes if shape.count):
        corners, counts = _corners(shape)
        row = np.arange(len(counts))
        if shape.name == "tristrips":
            corners, row = _strip_triangles(corners, counts)
            counts = np.full(len(corners) // 3, 3)
        check_polygons(vertices, corners, counts, partial(_row_of, shape, row), vertex.row_name)
        faces.append(triangles(vertices, corners, counts))
    return vertices, np.concatenate(faces)


def _row_of(shape: Element, rows: np.ndarray, polygon: int) -> str:
    return shape.row_name(int(rows[polygon]))


def _corners(shape: Element) -> tuple[np.ndarray, np.ndarray]:
    """The vertices of all rows one after another, and how many each row has."""
    name = next((name for name in _CORNER_LISTS if name in shape.lists), None)
    if name is None and len(shape.lists) == 1:
        name = next(iter(shape.lists))
    if name is None:
        raise ValueError(
            f"its element {shape.name} has no list vertex_indices, only "
            f"{', '.join(p.name for p in shape.properties) or 'nothing'}"
        )
    corners, counts = shape.lists[name]
    if corners.dtype.kind == "f" and (wrong := ~is_whole(corners)).any():
        row = int(np.searchsorted(np.cumsum(counts), wrong.argmax(), side="right"))
        raise ValueError(f"{shape.row_name(row)} refers to vertex {corners[wrong][0]:g}")
    return corners.astype(np.int64), counts


def _strip_triangles(corners: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Strips -> the corners of their triangles (3F,), and the strip of each triangle (F,).

    A strip begins anew after each -1; every second triangle of it is turned, to face the same side.
    """
    strip = np.repeat(np.arange(len(counts)), counts)
    place = np.arange(len(corners))
    begins = (place == np.repeat(np.cumsum(counts) - counts, counts)) | (
        np.concatenate([[False], corners[:-1] == -1])
    )
    start = np.maximum.accumulate(np.where(begins, place, 0))
    length = place - start + 1  # corners up to here
    ends = np.flatnonzero((length >= 3) & (corners != -1))
    turned = (length[ends] % 2 == 0)[:, None]
    triangle = ends[:, None] + np.where(turned, [-1, -2, 0], [-2, -1, 0])
    return corners[triangle].ravel(), strip[ends]


def read_header(content: bytes) -> tuple[str, list[Element], int]:
    """The byte order ("" for ASCII), the elements, and the offset of the data.

    `content` may be the beginning of the file only. Raises ValueError.
    """
    begin = re.match(rb"(?:\xef\xbb\xbf)?ply[ \t]*(\r\n|\n|\r)", content)
    if not begin:
        raise ValueError("it does not begin with the line ply")
    end = re.compile(begin[1] + rb"[ \t]*end_header[ \t]*" + begin[1]).search(
        content, begin.end() - len(begin[1]), HEADER_BYTES
    )
    if not end:
        raise ValueError(f"its PLY header does not end within {HEADER_BYTES:,} bytes")
    order: str | None = None
    elements: list[Element] = []
    header = content[begin.end() : max(end.start(), begin.end())].decode("latin-1")
    for number, line in enumerate(header.split(begin[1].decode()), start=2):
        match line.split():
            case ["format", form, "1.0"] if form in _ORDERS:
                order = _ORDERS[form]
            case ["element", name, count] if count.isdecimal():
                elements.append(Element(name, int(count)))
            case ["property", "list", count, dtype, name] if (
                elements and _TYPES.get(count, "f")[0] in "iu" and dtype in _TYPES
            ):
                elements[-1].properties.append(Property(name, _TYPES[dtype], _TYPES[count]))
            case ["property", dtype, name] if elements and dtype in _TYPES:
                elements[-1].properties.append(Property(name, _TYPES[dtype]))
            case [] | ["comment", *_] | ["obj_info", *_]:
                pass
            case _:
                raise ValueError(
                    f"line {number}: its PLY header holds {line[:60]!r}, which is not understood"
                )
    if order is None:
        raise ValueError("its PLY header names no format")
    return order, elements, end.end()


def read_elements(content: bytes) -> list[Element]:
    """All elements of a file, with the content of each.

    Memory is bounded by the size of the file. Raises ValueError for a file that holds less or more
    than its header declares; blanks and zeros may follow.
    """
    order, elements, start = read_header(content)
    for element in elements:
        least = sum(np.dtype(p.length or p.dtype).itemsize for p in element.properties)
        least = max(1, least if order else 2 * len(element.properties) - 1)
        if element.count * least > len(content) - start + (not order) and element.properties:
            raise ValueError(
                f"its PLY header declares {element.count:,} of {element.name}, but the file has "
                f"{len(content):,} bytes"
            )
    elements = [element for element in elements if element.properties]
    if not order:
        _read_ascii(content, start, elements)
        return elements
    try:
        for element in elements:
            start = _read_binary(content, start, order, element)
        if elements and content[start:].strip(b"\0\x1a" + b" \t\r\n"):
            raise ValueError(
                f"byte {start:,}: its header declares {elements[-1].count:,} of "
                f"{elements[-1].name}, but {len(content) - start:,} bytes follow them"
            )
    except ValueError as e:
        body = content[content.index(b"end_header") :]
        if 1 < body.count(b"\n") == body.count(b"\r\n"):
            raise ValueError(f"{e}; a copy in text mode has damaged it: copy it as binary") from e
        raise
    return elements


def _read_ascii(content: bytes, start: int, elements: list[Element]) -> None:
    """Fills the elements; a row is a line that is not blank."""
    before = len(plain_text(content[:start]).split(b"\n")) - 1
    lines = TextLines(plain_text(content[start:]), before=before)
    done = 0
    for element in elements:
        chosen = lines.filled[done : done + element.count]
        done += element.count
        if len(chosen) < element.count:
            raise ValueError(
                f"it ends after {len(chosen):,} of {element.count:,} of {element.name}"
            )
        values, counts = lines.numbers(chosen)
        element.row_name = partial(_line, lines, chosen)
        place, end = np.cumsum(counts) - counts, np.cumsum(counts)
        for name, dtype, length_type in element.properties:
            _check_rows(place + 1 > end, element, "has fewer numbers than its header declares")
            found = values[place]
            place = place + 1
            if length_type is None:
                # text may have more digits than the type that the header declares
                with np.errstate(over="ignore"):
                    rounded = found.astype(dtype).astype(np.float64) if dtype[0] == "f" else found
                element.columns[name] = rounded
                continue
            _check_rows((found < 0) | ~is_whole(found), element, "has a list of no whole length")
            _check_rows(place + found > end, element, "has fewer numbers than its list needs")
            length = found.astype(np.int64)
            element.lists[name] = values[_ranges(place, length)], length
            place = place + length
        if element.name == "vertex":  # a surplus number may be an undeclared one before x
            _check_rows(place < end, element, "has more numbers than its header declares")
    if elements and done < len(lines.filled):
        raise ValueError(
            f"line {lines.number(int(lines.filled[done]))}: its header declares "
            f"{elements[-1].count:,} of {elements[-1].name}, but more follows them"
        )


def _line(lines: TextLines, chosen: np.ndarray, row: int) -> str:
    return f"line {lines.number(int(chosen[row]))}"


def _check_rows(wrong: np.ndarray, element: Element, problem: str) -> None:
    if wrong.any():
        raise ValueError(f"{element.row_name(int(wrong.argmax()))}: {element.name} {problem}")


def _ranges(starts: np.ndarray, lengths: np.ndarray, step: int = 1) -> np.ndarray:
    """start, start + step, .. of each of `lengths`, one after another."""
    before = np.cumsum(lengths) - lengths
    place = np.arange(int(lengths.sum())) - np.repeat(before, lengths)
    return np.repeat(starts, lengths) + step * place


def _read_binary(content: bytes, start: int, order: str, element: Element) -> int:
    """Fills the element that begins at byte `start`, and returns where it ends."""
    if all(p.length is None for p in element.properties):
        layout = np.dtype([(f"f{i}", order + p.dtype) for i, p in enumerate(element.properties)])
        complete = (len(content) - start) // layout.itemsize
        if complete < element.count:
            raise ValueError(f"it ends after {complete:,} of {element.count:,} of {element.name}")
        rows = np.frombuffer(content, layout, element.count, start)
        for i, (name, _, _) in enumerate(element.properties):
            element.columns[name] = rows[f"f{i}"].astype(np.float64)
        element.row_name = lambda row: f"byte {start + layout.itemsize * row:,}"
        return start + element.count * layout.itemsize
    starts = _row_starts(content, start, order, element)
    element.row_name = lambda row: f"byte {starts[row]:,}"
    place = starts[:-1]
    for name, dtype, length_type in element.properties:
        if length_type is None:
            element.columns[name] = _gather(content, place, order + dtype).astype(np.float64)
            place = place + np.dtype(dtype).itemsize
            continue
        length = _gather(content, place, order + length_type).astype(np.int64)
        place = place + np.dtype(length_type).itemsize
        size = np.dtype(dtype).itemsize
        where = _ranges(place, length, size)
        element.lists[name] = _gather(content, where, order + dtype), length
        place = place + size * length
    return int(starts[-1])


def _row_starts(content: bytes, start: int, order: str, element: Element) -> np.ndarray:
    """The byte where each row begins, and where the last one ends (N + 1,).

    Each row leads to the next, because its lists may have any length.
    """
    byte_order: Literal["little", "big"] = "little" if order == "<" else "big"
    # bytes up to the end of a list's length, bytes and sign of the length, and bytes of a value
    lists, skipped = [], 0
    for _, dtype, length_type in element.properties:
        size = np.dtype(length_type or dtype).itemsize
        skipped += size
        if length_type is not None:
            lists.append((skipped, size, length_type[0] == "i", np.dtype(dtype).itemsize))
            skipped = 0
    at, starts, first_lengths = start, [start], []
    for row in range(element.count):
        for before, size, signed, value_size in lists:
            at += before
            length = int.from_bytes(content[at - size : at], byte_order, signed=signed)
            if length < 0:
                raise ValueError(f"byte {at - size:,}: a list has {length} values")
            if row == 0:
                first_lengths.append((at - size - start, length))
            at += length * value_size
        at += skipped
        if at > len(content):
            raise ValueError(f"it ends after {row:,} of {element.count:,} of {element.name}")
        starts.append(at)
        if row == 0:
            equal = start + (at - start) * np.arange(element.count + 1)
            codes = [order + p.length for p in element.properties if p.length]
            if equal[-1] <= len(content) and all(
                (_gather(content, equal[:-1] + place, code) == length).all()
                for code, (place, length) in zip(codes, first_lengths, strict=True)
            ):
                return equal
    return np.array(starts)


def _gather(content: bytes, places: np.ndarray, dtype: str) -> np.ndarray:
    """Values of a type that begin at the bytes `places`, aligned or not."""
    size = np.dtype(dtype).itemsize
    values = np.empty(len(places), dtype)
    for shift in range(size):
        chosen = places % size == shift
        if chosen.any():
            aligned = np.frombuffer(content, dtype, (len(content) - shift) // size, shift)
            values[chosen] = aligned[places[chosen] // size]
    return values
