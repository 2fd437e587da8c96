"""Lists of points and cells of a regular lattice, from coarse to fine.

A lattice point and the cell of which it is the lowest corner have the same key, (x P + y) P + z
with P points along an axis, so that keys ascend layer by layer. This module uses torch, so data
workers must not import it. Letters: M points or cells.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tar3d.mesh.marching_cubes import CORNERS

SLAB_POINTS = {"cpu": 1 << 23, "cuda": 1 << 25}  # about as many lattice points make a slab


@dataclass(frozen=True)
class Points:
    """Values at lattice points, by ascending key."""

    keys: Tensor  # (M,) int64
    values: Tensor  # (M,) float32, relative to the level; -inf outside the cube

    def merged(self, other: Points) -> Points:
        """These points and those of `other`, which must be different ones."""
        keys, order = torch.cat([self.keys, other.keys]).sort()
        return Points(keys, torch.cat([self.values, other.values])[order])


class Lattice:
    """Every `stride`-th point of the fine lattice along each axis, and one more at either end.

    The points at the ends are outside the cube. `cells` and `side` count cells and points along an
    axis.
    """

    def __init__(self, resolution: int, stride: int) -> None:
        self.resolution, self.stride = resolution, stride
        self.cells = -(-(resolution + 1) // stride) + 1
        self.side = self.cells + 1
        self.steps = (self.side**2, self.side, 1)  # between keys of neighbours
        self.corner_steps = tuple(
            sum(a * b for a, b in zip(corner, self.steps, strict=True)) for corner in CORNERS
        )

    def corners(self, cells: Tensor) -> Tensor:
        """Keys (M, 8) of the corners of `cells` (M,)."""
        return cells[:, None] + torch.tensor(self.corner_steps, device=cells.device)

    def unravel(self, keys: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Keys -> indices along x, y and z."""
        plane = self.side**2
        return keys // plane, keys % plane // self.side, keys % self.side

    def ravel(self, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        """Indices along x, y and z -> keys."""
        return (x * self.side + y) * self.side + z

    def fine_indices(self, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Indices (M, 3) on the fine lattice, clamped to it, and marks (M,) of those inside it."""
        index = (torch.stack(self.unravel(keys), dim=1) - 1) * self.stride
        clamped = index.clamp(0, self.resolution)
        return clamped, (index == clamped).all(dim=1)

    def mark_halves(self, marks: Tensor, parents: Tensor | None, first: int, last: int) -> None:
        """Marks the halves of `parents` in the layers of cells from `first` up to `last` - 1.

        `marks` has a bool for each cell of these layers. `parents` are ascending cells of the next
        coarser lattice, None for all cells.
        """
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
            in_layers = (x >= max(first, 0)) & (x < min(last, self.cells))
            for i in (y, z):
                in_layers &= (i >= 0) & (i < self.cells)
            marks[(self.ravel(x, y, z) - first * self.side**2)[in_layers]] = True

    def parents(self, cells: Tensor) -> Tensor:
        """The cells of the next coarser lattice in which `cells` lie."""
        return self.coarser().ravel(*((i + 1) // 2 for i in self.unravel(cells)))

    def coarser(self) -> Lattice:
        """The lattice with twice the stride."""
        return Lattice(self.resolution, 2 * self.stride)

    def from_coarser(self, points: Points) -> Points:
        """Points of the next coarser lattice with their keys in this one."""
        index = [2 * i - 1 for i in self.coarser().unravel(points.keys)]
        is_inside = torch.stack([(i >= 0) & (i < self.side) for i in index]).all(dim=0)
        return Points(self.ravel(*index)[is_inside], points.values[is_inside])

    def slab_height(self, device: torch.device) -> int:
        """Number of layers of cells in a slab."""
        return min(max(1, SLAB_POINTS[device.type] // self.side**2 - 1), self.cells)


def nonzero(marks: Tensor) -> Tensor:
    """Indices of the set `marks` (M,) bool, ascending.

    Few are set, so they are first read as words of eight.
    """
    head = min(-marks.storage_offset() % 8, len(marks))  # words must be aligned
    tail = head + (len(marks) - head) // 8 * 8
    words = marks[head:tail].view(-1, 8)
    word = words.view(torch.int64)[:, 0].nonzero()[:, 0]
    row, byte = words[word].nonzero(as_tuple=True)
    return torch.cat(
        [
            marks[:head].nonzero()[:, 0],
            word[row] * 8 + byte + head,
            marks[tail:].nonzero()[:, 0] + tail,
        ]
    )


def between(keys: Tensor, start: int, end: int) -> slice:
    """The slice of ascending `keys` from `start` up to, but not including, `end`."""
    low, high = torch.searchsorted(keys, torch.tensor([start, end], device=keys.device)).tolist()
    return slice(low, high)


def find(ascending: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    """The index of each key in `ascending`, and marks of the keys that are there.

    The index of a key that is not there has no meaning.
    """
    index = torch.searchsorted(ascending, keys)
    is_there = index < len(ascending)
    is_there[is_there.clone()] = ascending[index[is_there]] == keys[is_there]
    return index, is_there
