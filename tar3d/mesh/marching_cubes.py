"""Marching cubes (Lorensen and Cline 1987) over a list of cells, vectorised on any device. One of
the mesh files that use torch.

The table of the 256 cases is not typed in but derived. On each face of a cell every run of inside
corners is cut off by one segment; of two inside corners at the ends of a diagonal, each alone. The
cell behind a face sees the same runs the other way round, so both draw the same segments in
opposite directions, and whatever the values are, the surface is closed and its winding consistent.
Segments chain into loops, loops are cut into triangles.

A corner (x, y, z) of a cell, each 0 or 1, has the number 4 x + 2 y + z. An edge is a corner and an
axis along which it leaves it.
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
    """For each case (bit c is set if corner c is inside) its triangles, as numbers of EDGES, wound
    so that they look outward."""
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
    """The closed chains of crossed edges. Each such edge is where a run of inside corners starts on
    one of its two faces, and where one ends on the other."""
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
    """A fan whose diagonals lie inside the cell: one within a face could be met by one of the cell
    behind it, and an edge of the mesh would have four triangles."""
    for turn in range(len(loop)):
        tip, *others = loop[turn:] + loop[:turn]
        if not any(_share_a_face(tip, other) for other in others[1:-1]):
            return [(tip, a, b) for a, b in itertools.pairwise(others)]
    raise AssertionError(f"every loop has such a fan, {loop} has none")


def _share_a_face(a: int, b: int) -> bool:
    ends = [{corner, corner + _STEP[axis]} for corner, axis in (EDGES[a], EDGES[b])]
    return any(ends[0] | ends[1] <= set(face) for face in _faces())


@functools.cache
def _tables(device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Triangles (256, 5, 3) as numbers of EDGES, their count (256,), corner (12,) and axis (12,) of
    the edges."""
    cases = case_table()
    triangles = torch.zeros(256, max(map(len, cases)), 3, dtype=torch.int64)
    for case, of_case in enumerate(cases):
        if of_case:
            triangles[case, : len(of_case)] = torch.tensor(of_case)
    count = torch.tensor([len(of_case) for of_case in cases])
    corner, axis = torch.tensor(EDGES).T
    return tuple(t.contiguous().to(device) for t in (triangles, count, corner, axis))


def triangulate(values: Tensor) -> tuple[Tensor, Tensor]:
    """(M, 8) corner values of cells -> for each triangle its cell (F,) and the edges of that cell,
    (F, 3) numbers of EDGES."""
    triangles, count, _, _ = _tables(values.device)
    case = ((values > 0) << torch.arange(8, device=values.device)).sum(
        dim=1
    )  # a value of 0 is outside
    cell, place = torch.nonzero(
        torch.arange(triangles.shape[1], device=values.device) < count[case][:, None], as_tuple=True
    )
    return cell, triangles[case[cell], place]


def edge_corners(edges: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers of EDGES -> their lower corners and their axes."""
    _, _, corner, axis = _tables(edges.device)
    return corner[edges], axis[edges]


def crossing(low: Tensor, high: Tensor) -> Tensor:
    """Where the surface crosses edges with these values at their ends, one of them above 0: float64
    in [0, 1] from the lower end.

    Measured from the end that is inside, so that an end at -inf (nothing is known but that it is
    outside) gives that end.
    """
    low, high = low.double(), high.double()
    inside, outside = torch.maximum(low, high), torch.minimum(low, high)
    share = inside / (inside - outside)
    return torch.where(low > 0, share, 1 - share)
