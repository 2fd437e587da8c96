"""Rows of different length in one batch.

Letters: B batch, S positions, P prefix length, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from tar3d.gpt.layers.base import Rotary

NO_PREFIX = "a condition row has no valid prefix position: give it one, or pass the row as dropped"


class PrefixFeatures(NamedTuple):
    """The embedded condition of each row, (B, P, D), and its valid positions (B, P).

    The mask is None where all of them are valid.
    """

    embedded: Tensor
    mask: Tensor | None


@dataclass(frozen=True)
class PackedRows:
    """Rows as [condition][steps][padding], embedded.

    `prefix_lengths` is an int when all prefixes are full: then S has no padding and no row needs
    its own table.
    """

    x: Tensor  # (B, S, D)
    prefix_lengths: Tensor | int  # (B,) int64, valid prefix positions
    rotary: Rotary
    hints: Tensor | None  # (B, steps, D), of the code predictor
    prefix: PrefixFeatures


def gather(x: Tensor, index: Tensor) -> Tensor:
    """x (B, S, D), index (B, n) -> (B, n, D): each row's own positions."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))


def valid_first(mask: Tensor) -> Tensor:
    """(B, P) bool -> (B, P) int64, the positions of each row, valid ones first, in order."""
    return torch.argsort((~mask).to(torch.uint8), dim=1, stable=True)


def all_full(lengths: Tensor, longest: int) -> bool:
    """Whether all `lengths` (B,) of prefixes are `longest`. Raises ValueError where one is 0.

    A training step on a GPU does not wait for the answer, which is then False; a length of 0 ends
    it as a failed assertion.
    """
    if torch.is_grad_enabled() and not lengths.is_cpu:
        torch._assert_async((lengths > 0).all(), NO_PREFIX)
        return False
    shortest = int(lengths.min())
    if shortest == 0:
        raise ValueError(NO_PREFIX)
    return shortest == longest
