"""The only map between a token's place on the triplane and its position in the sequence.

"Next part" order (TAR3D, arXiv 2412.16919, section 3.2): raster over (row, col); at each grid position the tokens of the
three planes xy, xz, yz are adjacent, so position = 3 (row R + col) + plane.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from einops import rearrange

if TYPE_CHECKING:
    import torch

NUM_PLANES = 3


def num_tokens(grid_size: int) -> int:
    """T = 3 R^2."""
    return NUM_PLANES * grid_size * grid_size


def to_sequence(planes: torch.Tensor) -> torch.Tensor:
    """(B, 3, R, R, ...) -> (B, T, ...) in GPT order."""
    return rearrange(planes, "b p r c ... -> b (r c p) ...")


def to_planes(sequence: torch.Tensor, grid_size: int) -> torch.Tensor:
    """(B, T, ...) in GPT order -> (B, 3, R, R, ...)."""
    return rearrange(sequence, "b (r c p) ... -> b p r c ...", r=grid_size, c=grid_size, p=NUM_PLANES)


def coordinates(positions: torch.Tensor, grid_size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Sequence positions (any shape, int) -> (row, col, plane), each of the same shape."""
    cell, plane = positions // NUM_PLANES, positions % NUM_PLANES
    return cell // grid_size, cell % grid_size, plane
