"""Lists of lattice points and cells, from coarse to fine. One of the mesh files that use torch.

A lattice point and the cell of which it is the lowest corner have the same key, (x P + y) P + z
with P points along an axis, so that keys ascend layer by layer. Letters: M points or cells.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tar3d.mesh.marching_cubes import CORNERS

SLAB_POINTS = {
    "cpu": 1 << 23,
    "cuda": 1 << 25,
}  # lattice points that a slab of cells touches, about


@dataclass(frozen=True)
class Points:
    """Values at lattice points, by ascending key."""

    keys: Tensor  # (M,) int64
    values: Tensor  # (M,) float32, relative to the level; -inf outside the cube

    def merged(self, other: Points) -> Points:
        """With those of `other`, none of which is here."""
        keys, order = torch.cat([self.keys, other.keys]).sort()
        return Points(keys, torch.cat([self.values, other.values])[order])


class Lattice:
    """Every `stride`-th point of the fine lattice along each axis, and one point outside the cube
    at either end."""

    def __init__(self, resolution: int, stride: int) -> None:
        self.resolution, self.stride = resolution, stride
        self.cells = -(-(resolution + 1) // stride) + 1
        self.side = self.cells + 1
        self.steps = (self.side**2, self.side, 1)  # between keys of neighbours
        self.corner_steps = tuple(
            sum(a * b for a, b in zip(corner, self.steps, strict=True)) for corner in CORNERS
        )

    def corners(self, cells: Tensor) -> Tensor:
        """(M,) -> (M, 8) keys"""
        return cells[:, None] + torch.tensor(self.corner_steps, device=cells.device)

    def unravel(self, keys: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        plane = self.side**2
        return keys // plane, keys % plane // self.side, keys % self.side

    def ravel(self, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        return (x * self.side + y) * self.side + z

    def fine_indices(self, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Indices (M, 3) on the fine lattice, clamped to it, and whether they were in it (M,)."""
        index = (torch.stack(self.unravel(keys), dim=1) - 1) * self.stride
        clamped = index.clamp(0, self.resolution)
        return clamped, (index == clamped).all(dim=1)

    def mark_halves(self, marks: Tensor, parents: Tensor | None, first: int, last: int) -> None:
        """Sets in `marks`, the cells of the layers from `first` to before `last`, the halves of
        `parents`, ascending cells of the next coarser lattice; None: all cells."""
        if parents is None:
            layers = marks.view(-1, self.side, self.side)
            layers[max(-first, 0) : self.cells - first, :-1, :-1] = True
            return
        coarser = self.coarser()
        plane = coarser.side**2
        parents = parents[between(parents, (first + 1) // 2 * plane, (last // 2 + 1) * plane)]
        index = [2 * i - 1 for i in coarser.unravel(parents)]
        for offset in CORNERS:
            x, y, z = (i + o for i, o in zip(index, offset, strict=True))
            there = (
                (x >= max(first, 0))
                & (x < min(last, self.cells))
                & (y >= 0)
                & (y < self.cells)
                & (z >= 0)
                & (z < self.cells)
            )
            marks[(self.ravel(x, y, z) - first * self.side**2)[there]] = True

    def parents(self, cells: Tensor) -> Tensor:
        """The cells of the next coarser lattice that `cells` are halves of."""
        return self.coarser().ravel(*((i + 1) // 2 for i in self.unravel(cells)))

    def coarser(self) -> Lattice:
        return Lattice(self.resolution, 2 * self.stride)

    def from_coarser(self, points: Points) -> Points:
        """Values of the next coarser lattice as values of this one."""
        index = [2 * i - 1 for i in self.coarser().unravel(points.keys)]
        there = torch.stack([(i >= 0) & (i < self.side) for i in index]).all(dim=0)
        return Points(self.ravel(*index)[there], points.values[there])

    def slab_height(self, device: torch.device) -> int:
        """Layers of cells that are worked on at once."""
        return min(max(1, SLAB_POINTS[device.type] // self.side**2 - 1), self.cells)


def nonzero(marks: Tensor) -> Tensor:
    """Where (M,) bool `marks` are set, ascending. Few are, so they are first looked at eight at a
    time."""
    head = min(-marks.storage_offset() % 8, len(marks))  # or they could not be read as words
    tail = head + (len(marks) - head) // 8 * 8
    words = marks[head:tail].view(-1, 8)
    word = words.view(torch.int64)[:, 0].nonzero()[:, 0]
    row, place = words[word].nonzero(as_tuple=True)
    return torch.cat(
        [
            marks[:head].nonzero()[:, 0],
            word[row] * 8 + place + head,
            marks[tail:].nonzero()[:, 0] + tail,
        ]
    )


def between(keys: Tensor, start: int, end: int) -> slice:
    """Where in ascending `keys` those from `start` up to, but not including, `end` are."""
    low, high = torch.searchsorted(keys, torch.tensor([start, end], device=keys.device)).tolist()
    return slice(low, high)


def find(ascending: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    """For each key its place in `ascending`, and whether it is there; where it is not, the place
    says nothing."""
    place = torch.searchsorted(ascending, keys)
    there = place < len(ascending)
    there[there.clone()] = ascending[place[there]] == keys[there]
    return place, there
