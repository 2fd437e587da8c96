"""Rows of different length in one batch.

Letters: B batch, S positions, P prefix length, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor

NO_PREFIX = "a condition row has no valid prefix position: give it one, or pass the row as dropped"


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
