"""Marching cubes (Lorensen and Cline 1987) over a list of cells, vectorised on any device.

The table of the 256 cases is derived, not typed in. On each face of a cell every run of inside
corners is cut off by one segment; two inside corners at the ends of a diagonal are two runs. The
cell beyond a face sees the same runs in the other direction, so both draw the same segments in
opposite directions: the surface is closed and its winding consistent for any values. Segments chain
into loops, and loops are cut into triangles.

A corner (x, y, z) of a cell, each 0 or 1, has the number 4 x + 2 y + z. An edge is given by a
corner and the axis along which it leaves that corner. This module uses torch, so data workers must
not import it.
"""

from __future__ import annotations

import functools
import itertools
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Iterator

CORNERS = tuple((x, y, z) for x in (0, 1) for y in (0, 1) for z in (0, 1))
EDGES = tuple(
    (corner, axis) for axis in range(3) for corner in range(8) if not CORNERS[corner][axis]
)
_STEP = (4, 2, 1)  # from a corner's number to that of its neighbour along each axis


@functools.cache
def case_table() -> tuple[tuple[tuple[int, int, int], ...], ...]:
    """The triangles of each of the 256 cases, as indices into EDGES, wound outward.

    Bit c of a case is set if corner c is inside.
    """
    return tuple(
        tuple(triangle for loop in _loops(case) for triangle in _triangulate(loop))
        for case in range(256)
    )


def _faces() -> Iterator[tuple[int, ...]]:
    """The corners of each of the six faces, counterclockwise as seen from outside the cell."""
    for axis in range(3):
        u, v = _STEP[(axis + 1) % 3], _STEP[(axis + 2) % 3]
        yield tuple(_STEP[axis] + corner for corner in (0, u, u + v, v))
        yield 0, v, u + v, u


def _loops(case: int) -> Iterator[tuple[int, ...]]:
    """The closed chains of crossed edges of a case.

    A run of inside corners starts at a crossed edge on one of its two faces, and one ends there on
    the other.
    """
    follows = {}
    for face in _faces():
        inside = [case >> corner & 1 for corner in face]
        edges = [_edge_between(face[i], face[(i + 1) % 4]) for i in range(4)]
        for start in range(4):
            if inside[(start + 1) % 4] > inside[start]:
                end = next(
                    i % 4
                    for i in range(start + 1, start + 4)
                    if inside[i % 4] > inside[(i + 1) % 4]
                )
                follows[edges[start]] = edges[end]
    while follows:
        first, edge = follows.popitem()
        loop = [first]
        while edge != first:
            loop.append(edge)
            edge = follows.pop(edge)
        yield tuple(loop)


def _edge_between(a: int, b: int) -> int:
    return EDGES.index((min(a, b), _STEP.index(abs(a - b))))


def _triangulate(loop: tuple[int, ...]) -> list[tuple[int, int, int]]:
    """A fan of triangles whose diagonals lie inside the cell.

    A diagonal within a face could meet one of the cell beyond it, and an edge of the mesh would
    have four triangles.
    """
    for shift in range(len(loop)):
        tip, *others = loop[shift:] + loop[:shift]
        if not any(_share_a_face(tip, other) for other in others[1:-1]):
            return [(tip, a, b) for a, b in itertools.pairwise(others)]
    raise AssertionError(f"every loop has such a fan, {loop} has none")


def _share_a_face(a: int, b: int) -> bool:
    ends = [{corner, corner + _STEP[axis]} for corner, axis in (EDGES[a], EDGES[b])]
    return any(ends[0] | ends[1] <= set(face) for face in _faces())


@functools.cache
def _tables(device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The tables on a device: triangles (256, 5, 3), their counts (256,), and EDGES.

    Triangles are indices into EDGES, which come as corners (12,) and axes (12,).
    """
    cases = case_table()
    triangles = torch.zeros(256, max(map(len, cases)), 3, dtype=torch.int64)
    for case, case_triangles in enumerate(cases):
        if case_triangles:
            triangles[case, : len(case_triangles)] = torch.tensor(case_triangles)
    count = torch.tensor([len(case_triangles) for case_triangles in cases])
    corner, axis = (t.contiguous().to(device) for t in torch.tensor(EDGES).T)
    return triangles.to(device), count.to(device), corner, axis


def triangulate(values: Tensor) -> tuple[Tensor, Tensor]:
    """Values (M, 8) at the corners of cells -> the cell (F,) and the edges (F, 3) of each triangle.

    Edges are indices into EDGES. A value of 0 is outside.
    """
    triangles, count, _, _ = _tables(values.device)
    case = ((values > 0) << torch.arange(8, device=values.device)).sum(dim=1)
    cell, slot = torch.nonzero(
        torch.arange(triangles.shape[1], device=values.device) < count[case][:, None], as_tuple=True
    )
    return cell, triangles[case[cell], slot]


def edge_corners(edges: Tensor) -> tuple[Tensor, Tensor]:
    """Indices into EDGES -> their lower corners and their axes."""
    _, _, corner, axis = _tables(edges.device)
    return corner[edges], axis[edges]


def crossing(low: Tensor, high: Tensor) -> Tensor:
    """Positions in [0, 1], float64, at which the surface crosses edges, counted from the lower end.

    `low` and `high` are the values at the ends, one of them above 0. Computed from the end that is
    inside, so that a value of -inf at the other (known only to be outside) gives the inside end.
    """
    low, high = low.double(), high.double()
    inside, outside = torch.maximum(low, high), torch.minimum(low, high)
    share = inside / (inside - outside)
    return torch.where(low > 0, share, 1 - share)
