"""The only map between a token's place on the triplane and its position in the sequence.

"Next part" order (TAR3D, arXiv 2412.16919, section 3.2), "cells": raster over (row, col); at each
grid position the tokens of the three planes xy, xz, yz are adjacent, so position = 3 (row R + col)
+ plane. It is the order of `Tokens`, of files, and of all that is not said otherwise. For
comparison a GPT can go through a shape in the order "planes", one plane after the other
(`gpt.token_order`): position = plane R^2 + row R + col; it turns tokens around where they come in
and go out.
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
    return rearrange(
        sequence, "b (r c p) ... -> b p r c ...", r=grid_size, c=grid_size, p=NUM_PLANES
    )


def coordinates(
    positions: torch.Tensor, grid_size: int, order: str = "cells"
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Sequence positions (any shape, int) -> (row, col, plane), each of the same shape."""
    if order == "planes":
        plane, cell = positions // grid_size**2, positions % grid_size**2
    else:
        cell, plane = positions // NUM_PLANES, positions % NUM_PLANES
    return cell // grid_size, cell % grid_size, plane


def places(positions: torch.Tensor, grid_size: int, order: str) -> torch.Tensor:
    """Positions of tokens in `order` -> their positions in "cells" order. Both have the same last
    token.

    With p the places of all T positions, sequence[:, p] brings a sequence from "cells" order into
    `order`, and sequence[:, p.argsort()] back."""
    row, column, plane = coordinates(positions, grid_size, order)
    return NUM_PLANES * (row * grid_size + column) + plane
