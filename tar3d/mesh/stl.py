"""Triangles of an STL file, binary or ASCII.

A binary file is known by its length, because many begin with "solid" as ASCII files do. Normals,
attributes and names are not read.
"""

from __future__ import annotations

import re
import struct

import numpy as np

from tar3d.mesh.polygons import check_polygons, triangles
from tar3d.mesh.text_lines import BROKEN, UTF_16, TextLines, plain_text

_HEADER = 84  # bytes, the last four of them the number of facets
_FACET = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])
_LEAST_BINARY = _HEADER + _FACET.itemsize  # bytes with a zero among them, unlike text
_UNKNOWN = (0, 0xFFFFFFFF)  # what programs write that do not know the number yet
_WORDS = re.compile(rb"[ \t](?=(?:facet|outer|vertex|endloop|endfacet|endsolid)\b)", re.IGNORECASE)


def read_stl(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Vertices (3F, 3) float64 and faces (F, 3) int64.

    Several solids in one file are read together, and bytes behind the last facet that hold none are
    passed over. Raises ValueError, with the line or byte, for a file that is cut off, for a number
    of facets that does not fit the file, and for positions that are no finite numbers.
    """
    if _count(content) in _UNKNOWN or len(content) != _end(content):
        begin = plain_text(content[:_LEAST_BINARY]).lstrip().lower()
        text = b"\0" not in content[:_LEAST_BINARY] or content.startswith(UTF_16)
        if begin.startswith(b"solid") and text:
            return _read_ascii(plain_text(content))
    return _read_binary(content)


def _count(content: bytes, start: int = 0) -> int:
    """The number of facets that a binary header at byte `start` declares, 0 without a header."""
    if len(content) < start + _HEADER:
        return 0
    return struct.unpack_from("<I", content, start + _HEADER - 4)[0]


def _end(content: bytes, start: int = 0) -> int:
    return start + _HEADER + _FACET.itemsize * _count(content, start)


def _read_binary(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    if len(content) < _HEADER:
        raise ValueError(
            f"it has {len(content)} bytes: neither text that begins with solid, nor the {_HEADER} "
            "of a binary STL header"
        )
    count, rest = _count(content), len(content) - _HEADER
    complete, more = divmod(rest, _FACET.itemsize)
    parts = []
    if count in _UNKNOWN and more == 0:
        parts.append(np.frombuffer(content, _FACET, complete, _HEADER))
    elif complete < count:
        raise ValueError(
            f"it declares {count:,} facets as a binary STL, but ends after {complete:,} (byte "
            f"{len(content):,})"
        )
    else:
        parts.append(np.frombuffer(content, _FACET, count, _HEADER))
        if more == 0 and any(content[_end(content) :]):
            raise ValueError(f"it declares {count:,} facets (byte 80), but holds {complete:,}")
        parts += _appended(content, _end(content))
    vertices = np.concatenate([p["corners"].reshape(-1, 3) for p in parts]).astype(np.float64)
    corners = np.arange(len(vertices))
    check_polygons(
        vertices,
        corners,
        np.full(len(corners) // 3, 3),
        lambda facet: f"facet {facet + 1:,}",
        lambda vertex: f"facet {vertex // 3 + 1:,} (byte {_HEADER + vertex // 3 * 50:,})",
    )
    return vertices, corners.reshape(-1, 3)


def _appended(content: bytes, start: int) -> list[np.ndarray]:
    """The facets of further binary files behind the first, if there is nothing else."""
    parts = []
    while start < len(content):
        if len(content) < start + _HEADER or _end(content, start) > len(content):
            return []
        parts.append(np.frombuffer(content, _FACET, _count(content, start), start + _HEADER))
        start = _end(content, start)
    return parts


def _read_ascii(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    lines = TextLines(content)
    if not lines.with_word("vertex").any():  # all in one line
        lines = TextLines(_WORDS.sub(BROKEN, content))
    is_vertex, is_facet = lines.with_word("vertex"), lines.with_word("facet")
    vertex_lines, facet_lines = np.flatnonzero(is_vertex), np.flatnonzero(is_facet)
    if len(vertex_lines) == 0:
        return np.empty((0, 3)), np.empty((0, 3), np.int64)
    last = lines.filled[-1]
    end_lines = np.flatnonzero(lines.with_word("endfacet"))
    cut = len(end_lines) > 0 and len(facet_lines) > 0 and end_lines[-1] < facet_lines[-1]
    cut |= "facet".startswith(lines.text(last).split()[0].lower())
    if cut or is_vertex[last] or is_facet[last] or lines.with_word("outer")[last]:
        raise ValueError(f"line {lines.number(last)}: it ends in the middle of a facet")
    values, counts = lines.numbers(vertex_lines, skip=6)
    if (counts != 3).any():
        line = lines.number(vertex_lines[(counts != 3).argmax()])
        raise ValueError(f"line {line}: a vertex has 3 numbers, this has {counts[counts != 3][0]}")
    vertices = values.reshape(-1, 3)
    facet = np.cumsum(is_facet)[vertex_lines] - 1
    if facet[0] < 0:
        raise ValueError(f"line {lines.number(vertex_lines[0])}: a vertex stands before any facet")
    sizes = np.bincount(facet, minlength=len(facet_lines))
    if (sizes < 3).any():
        wrong = int((sizes < 3).argmax())
        raise ValueError(
            f"line {lines.number(facet_lines[wrong])}: a facet has 3 corners, this has "
            f"{sizes[wrong]}"
        )
    corners = np.arange(len(vertices))
    check_polygons(
        vertices,
        corners,
        sizes,
        lambda facet: f"line {lines.number(facet_lines[facet])}",
        lambda vertex: f"line {lines.number(vertex_lines[vertex])}",
    )
    return vertices, triangles(vertices, corners, sizes, in_order=True)
