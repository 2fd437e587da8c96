"""A scalar field at the points of a lattice, and at probes between them.

This module uses torch, so data workers must not import it. Letters: M points or cells, P probes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tar3d.mesh.lattice import find

if TYPE_CHECKING:
    from collections.abc import Callable

    from tar3d.mesh.lattice import Lattice

# Probes of a lattice: one for 64 of its points, and no more than a lattice of 128 cells has.
POINTS_A_PROBE, MOST_PROBES = 64, 1 << 15


class LatticeField:
    """Values of the field at lattice points: checked, relative to the level, -inf outside the cube.

    `highest` is the largest value so far.
    """

    def __init__(
        self,
        field: Callable[[Tensor], Tensor],
        resolution: int,
        level: float,
        chunk: int,
        device: torch.device,
    ) -> None:
        self.field, self.level, self.chunk, self.device = field, level, chunk, device
        self.axis = (
            torch.arange(resolution + 1, dtype=torch.float64, device=device) * 2 / resolution - 1
        ).float()
        self.highest = float("-inf")

    def __call__(self, lattice: Lattice, keys: Tensor) -> Tensor:
        """Keys (M,) of points of `lattice` -> values (M,) float32."""
        index, in_cube = lattice.fine_indices(keys)
        result = torch.full(keys.shape, -torch.inf, device=self.device)
        result[in_cube] = self.at(self.axis[index[in_cube]])
        return result

    def at(self, points: Tensor) -> Tensor:
        """Points (M, 3) in the cube -> values (M,) float32."""
        chunks = [
            self._evaluate(points[start : start + self.chunk])
            for start in range(0, len(points), self.chunk)
        ]
        if not chunks:
            return torch.empty(0, device=self.device)
        values = torch.cat(chunks) - self.level
        self.highest = max(self.highest, float(values.max()))
        if bad := int((~values.isfinite()).sum()):
            raise ValueError(
                f"the field has {bad:,} NaN or infinite values at {len(values):,} lattice points"
            )
        return values

    def _evaluate(self, points: Tensor) -> Tensor:
        values = torch.as_tensor(self.field(points), device=self.device)
        if values.shape != points.shape[:1]:
            raise ValueError(
                f"the field must map {tuple(points.shape)} points to {tuple(points.shape[:1])} "
                f"values, got {tuple(values.shape)}"
            )
        return values.float()


class Probes:
    """Points spread evenly over the cube (Sobol 1967), and on which side of the surface they are.

    The points depend on the resolution alone.
    """

    def __init__(self, field: LatticeField, resolution: int) -> None:
        count = min((resolution + 1) ** 3 // POINTS_A_PROBE, MOST_PROBES)
        share = torch.quasirandom.SobolEngine(3).draw(count).to(field.device)  # (P, 3)
        self._position = share.double() * resolution  # in cells of the fine lattice
        self._is_inside = field.at(2 * share - 1) > 0

    def contradict(self, lattice: Lattice, cells: Tensor, case: Tensor) -> Tensor:
        """Marks (M,) of ascending `cells` with a probe on the other side than all of its corners.

        `case` (M,) are the cells' case numbers.
        """
        keys = lattice.ravel(*((self._position / lattice.stride).long() + 1).unbind(dim=1))
        index, is_there = find(cells, keys)
        index, is_inside = index[is_there], self._is_inside[is_there]
        marks = torch.zeros(len(cells), dtype=torch.bool, device=cells.device)
        marks[index[case[index] == torch.where(is_inside, 0, 255)]] = True
        return marks
