"""Triangles of an OFF file (Geomview), as text: with normals, colours, texture coordinates, in 4D.

http://www.geomview.org/docs/html/OFF.html
"""

from __future__ import annotations

import re

import numpy as np

from tar3d.mesh.polygons import check_polygons, triangles
from tar3d.mesh.text_lines import TextLines, is_whole, plain_text

# the first word says what each vertex has besides x y z; it may stand on the line of the counts, or
# lack
_FIRST_WORD = re.compile(rb"\s*(ST)?(C)?(N)?(4)?(n)?OFF([ \t]+BINARY)?(?=[\s\d])")
_FIRST_LINE = re.compile(rb"(?:\s|#[^\n]*)*")


def read_off(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Vertices (V, 3) float64 and faces (F, 3) int64.

    Raises ValueError, with the line, for a file that holds less or more than it declares, for
    corners without a vertex, and for positions that are no finite numbers.
    """
    content = plain_text(content)
    begin = _FIRST_LINE.match(content)
    start = begin.end() if begin else 0
    word = _FIRST_WORD.match(re.sub(rb"^off", b"OFF", content[start : start + 40]))
    texture, colour, normal, four, any_dimension, binary = word.groups() if word else [None] * 6
    if binary:
        raise ValueError("it is a binary OFF, which is not read: save it as text")
    if word:
        content = content[:start] + b" " * word.end() + content[start + word.end() :]
    lines = TextLines(content, comments=True)
    numbers, counts = lines.numbers(lines.filled)
    if any_dimension and (four or not np.array_equal(numbers[:1], [3])):
        raise ValueError("it is an OFF of more than 3 dimensions, which is not read")
    width = 3 + bool(four)
    stream_width = width + 3 * bool(normal) + 4 * bool(colour) + 2 * bool(texture)
    rows = _Rows(lines, numbers, counts, int(bool(any_dimension)), stream_width)
    vertices = rows.vertices(width)
    if four:
        with np.errstate(divide="ignore", invalid="ignore"):
            vertices = vertices[:, :3] / vertices[:, 3:]
    corners, sizes = rows.faces()
    check_polygons(vertices, corners, sizes, rows.face_name, rows.vertex_name)
    return vertices, triangles(vertices, corners, sizes)


class _Rows:
    """Where the vertices and faces of a file begin among its numbers.

    A row is a line, as in nearly all files, or the numbers go on without regard to lines, where a
    row may take less or more than a line; then faces have no colours.
    """

    def __init__(
        self, lines: TextLines, numbers: np.ndarray, counts: np.ndarray, at: int, width: int
    ) -> None:
        self._lines, self._numbers = lines, numbers
        self._offsets = offsets = np.cumsum(counts) - counts
        self._room = np.repeat(np.cumsum(counts), counts) - np.arange(len(numbers))  # of the line
        declared = numbers[at : at + 2]
        if len(declared) < 2 or (declared < 0).any() or not is_whole(declared).all():
            raise ValueError("it does not begin with the numbers of vertices and faces")
        num_vertices, num_faces = (int(n) for n in declared)
        self._sentence = f"it declares {num_vertices:,} vertices and {num_faces:,} faces, but "
        if num_vertices + num_faces > len(numbers):
            raise ValueError(f"{self._sentence}holds {len(numbers):,} numbers")
        first = at + (2 if self._room[at] == 2 else 3)  # the third is that of edges
        line = int(np.searchsorted(offsets, first))
        beyond = line + num_vertices + num_faces
        if (first == len(numbers) or first in offsets[line : line + 1]) and beyond <= len(offsets):
            self._starts = offsets[line:beyond]
            if beyond < len(offsets):
                more = f"{self._sentence}line {self._name(offsets[beyond])} holds more"
                self._go_on_over_lines(first, num_vertices, num_faces, width, more)
        else:
            self._go_on_over_lines(first, num_vertices, num_faces, width)
        self._num_vertices = num_vertices

    def vertices(self, width: int) -> np.ndarray:
        """The first `width` numbers of each vertex."""
        starts = self._starts[: self._num_vertices]
        self._check_room(starts, np.full(len(starts), width), "a vertex")
        return self._numbers[starts[:, None] + np.arange(width)]

    def faces(self) -> tuple[np.ndarray, np.ndarray]:
        """The corners of all faces one after another, and how many each has."""
        starts = self._starts[self._num_vertices :]
        sizes = self._numbers[starts]
        if (wrong := (sizes < 0) | ~is_whole(sizes)).any():
            at = int(wrong.argmax())
            raise ValueError(f"{self.face_name(at)}: a face has {sizes[at]:g} corners")
        self._check_room(starts, sizes + 1, "a face")
        sizes = sizes.astype(np.int64)
        skipped = np.repeat(starts + 1 - (np.cumsum(sizes) - sizes), sizes)
        corners = self._numbers[skipped + np.arange(len(skipped))]
        if (wrong := ~is_whole(corners)).any():
            at = int(np.searchsorted(np.cumsum(sizes), wrong.argmax(), side="right"))
            raise ValueError(f"{self.face_name(at)}: a face refers to vertex {corners[wrong][0]:g}")
        return corners.astype(np.int64), sizes

    def face_name(self, face: int) -> str:
        return f"line {self._name(self._starts[self._num_vertices + face])}"

    def vertex_name(self, vertex: int) -> str:
        return f"line {self._name(self._starts[vertex])}"

    def _name(self, place: int) -> int:
        """The line that holds the number at `place`."""
        row = np.searchsorted(self._offsets, place, side="right") - 1
        return self._lines.number(self._lines.filled[row])

    def _check_room(self, starts: np.ndarray, needed: np.ndarray, what: str) -> None:
        short = needed > self._room[starts]
        if short.any():
            at = int(short.argmax())
            raise ValueError(
                f"line {self._name(starts[at])}: {what} needs {needed[at]:.0f} numbers there, "
                f"it has {self._room[starts[at]]}"
            )

    def _go_on_over_lines(
        self, first: int, num_vertices: int, num_faces: int, width: int, problem: str = ""
    ) -> None:
        """Finds the rows without regard to lines.

        Refused with `problem`, or as cut off, if they do not end where the file does.
        """
        place, faces = first + num_vertices * width, []
        for _ in range(num_faces):
            size = self._numbers[place : place + 1]
            if not (is_whole(size) & (size >= 0)).all() or len(size) == 0:
                break
            faces.append(place)
            place += 1 + int(size[0])
        if len(faces) < num_faces or place != len(self._numbers):
            last = self._lines.number(self._lines.filled[-1])
            raise ValueError(problem or f"{self._sentence}ends at line {last}")
        vertices = first + width * np.arange(num_vertices)
        self._starts = np.concatenate([vertices, np.array(faces, dtype=np.int64)])
        self._room = len(self._numbers) - np.arange(len(self._numbers))
