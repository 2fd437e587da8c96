"""The triplane as a sequence: the only map between a token's cell and plane and its position.

"Next part" order (TAR3D, arXiv 2412.16919, section 3.2) is raster order over the cells (row,
column) of the grid; the tokens of a cell's three planes xy, xz, yz are adjacent: position =
3 (row R + column) + plane. It is the order of `Tokens` and of files. A GPT may go through a shape
in another order (`gpt.token_order`, the table `ORDERS`) and brings tokens into it where they come
in and out of it where they leave.

Letters: B batch, R grid side, T tokens = 3 R^2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from einops import rearrange

from tar3d.layouts.base import VQVAE, Axis, Layout

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from tar3d.config import GPTConfig

NUM_PLANES = 3


def num_tokens(grid_size: int) -> int:
    """T = 3 R^2."""
    return NUM_PLANES * grid_size * grid_size


def to_sequence(planes: torch.Tensor) -> torch.Tensor:
    """(B, 3, R, R, ...) -> (B, T, ...) in raster order."""
    return rearrange(planes, "b p r c ... -> b (r c p) ...")


def to_planes(sequence: torch.Tensor, grid_size: int) -> torch.Tensor:
    """(B, T, ...) in raster order -> (B, 3, R, R, ...)."""
    return rearrange(
        sequence, "b (r c p) ... -> b p r c ...", r=grid_size, c=grid_size, p=NUM_PLANES
    )


def coordinates(positions: np.ndarray, grid_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positions in raster order (any shape, int) -> (row, column, plane), each of that shape."""
    cell, plane = positions // NUM_PLANES, positions % NUM_PLANES
    return cell // grid_size, cell % grid_size, plane


def cells(grid_size: int) -> np.ndarray:
    """Raster order itself, "next part"."""
    return np.arange(num_tokens(grid_size))


def planes(grid_size: int) -> np.ndarray:
    """One plane after the other, each in raster order."""
    return cells(grid_size).reshape(-1, NUM_PLANES).T.flatten()


# `gpt.token_order`: the raster position of every token of a grid, (T,) int64, in the order in which
# the GPT goes through them. Any permutation will do.
ORDERS: dict[str, Callable[[int], np.ndarray]] = {
    "cells": cells,
    "planes": planes,
}


class TriplaneLayout(Layout):
    """3 R^2 tokens with the coordinates row, column and plane.

    A step is a token, or with `tokens_per_step` 3 the three tokens of a cell, which stands where
    its first token does and has no plane of its own.
    """

    mesher = VQVAE

    def __init__(self, config: GPTConfig) -> None:
        super().__init__(config)
        order, n = config.token_order, config.tokens_per_step
        if order not in ORDERS:
            raise ValueError(f"gpt.token_order is {order!r}, allowed are {', '.join(ORDERS)}")
        if n not in (1, NUM_PLANES):
            raise ValueError(
                f"gpt.tokens_per_step is {n}, allowed are 1 and 3: "
                "a token, or the three plane tokens of a cell"
            )
        if order != "cells" and n != 1:
            raise ValueError(
                f"gpt.token_order is {order}, but with gpt.tokens_per_step {n} a step is a cell: "
                "write gpt.token_order=cells, or gpt.tokens_per_step=1"
            )
        self.grid_size, self.order = config.grid_size, order
        self.num_tokens = num_tokens(config.grid_size)

    def axes(self) -> tuple[Axis, ...]:
        firsts = self.permutation()[:: self.tokens_per_step]
        row, column, plane = coordinates(firsts, self.grid_size)
        return (
            Axis("row", self.grid_size, row),
            Axis("column", self.grid_size, column),
            Axis("plane", NUM_PLANES, plane, categorical=True, embedded=self.tokens_per_step == 1),
        )

    def permutation(self) -> np.ndarray:
        return ORDERS[self.order](self.grid_size)

    @classmethod
    def check_length(cls, num_tokens: int) -> None:
        grid = round((num_tokens / NUM_PLANES) ** 0.5)
        if NUM_PLANES * grid * grid != num_tokens or grid == 0:
            raise ValueError(f"{num_tokens} tokens are not 3 R^2 for any R")
