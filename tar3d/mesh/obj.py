"""Triangles of a Wavefront OBJ file: positions and faces; everything else in it is passed over.

Faces may have any number of corners, written v, v/vt, v//vn or v/vt/vn, counted from 1 or, when
negative, backwards from the last vertex above them. Lines may be indented, use tabs, end in a
comment, and go on in the next after a backslash.
"""

from __future__ import annotations

import re

import numpy as np

from tar3d.mesh.polygons import check_polygons, triangles
from tar3d.mesh.text_lines import JOINED, TextLines, plain_text

# a backslash goes on in the next line, but not in comments and names, which may be paths of Windows
_CONTINUED = re.compile(
    rb"^(?![ \t]*(?:#|mtllib|usemtl|maplib|usemap|[og][ \t]))([^\n#]*)\\[ \t]*\n", re.MULTILINE
)


def read_obj(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Vertices (V, 3) float64 and faces (F, 3) int64.

    Raises ValueError, with the line, for indices of 0 or without a vertex, for used vertices that
    are not finite, and for lines that are cut off or hold something else than numbers.
    """
    content = plain_text(content)
    while b"\\" in content and (joined := _CONTINUED.sub(rb"\1 " + JOINED, content)) != content:
        content = joined
    lines = TextLines(content, comments=True)
    is_vertex, is_face = lines.with_word("v"), lines.with_word("f") | lines.with_word("fo")
    _refuse_odd_lines(lines)
    vertex_lines, face_lines = np.flatnonzero(is_vertex), np.flatnonzero(is_face)
    vertices = _vertices(lines, vertex_lines)
    corners, counts = lines.numbers(face_lines, skip=2, whole=True)
    _refuse_cut_line(lines, face_lines, counts)

    face_of = np.repeat(np.arange(len(counts)), counts)
    if (corners == 0).any():
        line = lines.number(face_lines[face_of[(corners == 0).argmax()]])
        raise ValueError(f"line {line}: a face refers to vertex 0, but OBJ counts from 1")
    above = np.cumsum(is_vertex)[face_lines][face_of]  # vertices above the face's line
    written, corners = corners, np.where(corners > 0, corners - 1, corners + above)
    outside = (corners < 0) | (corners >= len(vertices))
    if outside.any():
        at = int(outside.argmax())
        have = len(vertices) if written[at] > 0 else above[at]
        raise ValueError(
            f"line {lines.number(face_lines[face_of[at]])}: a face refers to vertex {written[at]}, "
            f"but there are {have:,}" + (" above it" if written[at] < 0 else "")
        )
    check_polygons(
        vertices,
        corners,
        counts,
        lambda polygon: f"line {lines.number(face_lines[polygon])}",
        lambda vertex: f"line {lines.number(vertex_lines[vertex])}",
    )
    return _by_material(vertices, corners, counts, _materials(lines, face_lines))


def _vertices(lines: TextLines, vertex_lines: np.ndarray) -> np.ndarray:
    values, counts = lines.numbers(vertex_lines, skip=2)
    if (counts < 3).any():
        line = lines.number(vertex_lines[(counts < 3).argmax()])
        raise ValueError(f"line {line}: a vertex needs 3 numbers, it has {counts[counts < 3][0]}")
    starts = np.cumsum(counts) - counts
    return values[starts[:, None] + np.arange(3)]


def _refuse_odd_lines(lines: TextLines) -> None:
    """Refuses lines that would lose a vertex or a face without a word: "f1 2 3", "4 5 6"."""
    first, second = lines.letters(0), lines.letters(1)
    number = [_is_number_like(byte) for byte in (first, second)]
    odd = number[0] | (((first | 32 == ord("v")) | (first | 32 == ord("f"))) & number[1])
    odd = np.flatnonzero(odd)
    odd = odd[np.isin(odd, lines.filled)]
    if len(odd) > 0:
        raise ValueError(
            f"line {lines.number(odd[0])} begins with {lines.text(odd[0]).split()[0][:40]!r}, "
            "which is no word of an OBJ file"
        )


def _is_number_like(byte: np.ndarray) -> np.ndarray:
    return ((byte >= ord("0")) & (byte <= ord("9"))) | (byte == ord("-")) | (byte == ord("+"))


def _refuse_cut_line(lines: TextLines, face_lines: np.ndarray, counts: np.ndarray) -> None:
    """Refuses a file that ends in the middle of a face; elsewhere such faces have no area."""
    if len(counts) == 0 or counts[-1] >= 3 or lines.content.endswith(b"\n"):
        return
    if face_lines[-1] == lines.filled[-1]:
        raise ValueError(f"line {lines.number(face_lines[-1])}: it ends in the middle of a face")


def _materials(lines: TextLines, face_lines: np.ndarray) -> np.ndarray:
    """For each face, the number of its material, in the order in which they first have a face."""
    uses = np.flatnonzero(lines.with_word("usemtl"))
    names = [""] + [lines.text(line)[6:].strip() for line in uses.tolist()]
    material = np.unique(names, return_inverse=True)[1][np.searchsorted(uses, face_lines)]
    _, first, inverse = np.unique(material, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse]


def _by_material(
    vertices: np.ndarray, corners: np.ndarray, counts: np.ndarray, material: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Vertices and triangles by material, the last one first.

    Samples drawn from a mesh depend on its order, and this one has been kept from the start.
    """
    if material.max(initial=0) == 0:
        return vertices, triangles(vertices, corners, counts, in_order=len(np.unique(counts)) > 1)
    polygons = np.argsort(-material, kind="stable")
    starts, sizes = (np.cumsum(counts) - counts)[polygons], counts[polygons]
    place = np.arange(len(corners)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    corners = corners[np.repeat(starts, sizes) + place]
    counts, bounds = counts[polygons], np.cumsum(np.bincount(material)[::-1])
    faces, order, first, first_corner = [np.empty((0, 3), np.int64)], [corners[:0]], 0, 0
    for last in bounds.tolist():
        some = counts[first:last]
        inside = corners[first_corner : first_corner + some.sum()]
        faces.append(triangles(vertices, inside, some, in_order=len(np.unique(some)) > 1))
        order.append(np.unique(inside))
        first, first_corner = last, first_corner + len(inside)
    used = np.concatenate(order)
    kept = used[np.sort(np.unique(used, return_index=True)[1])]
    place = np.zeros(len(vertices), np.int64)
    place[kept] = np.arange(len(kept))
    return vertices[kept], place[np.concatenate(faces)]
