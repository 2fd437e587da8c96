"""Rows of different length in one batch.

Letters: B batch, S positions, P prefix length, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor


def gather(x: Tensor, index: Tensor) -> Tensor:
    """x (B, S, D), index (B, n) -> (B, n, D): each row's own positions."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))


def valid_first(mask: Tensor) -> Tensor:
    """(B, P) bool -> (B, P) int64, the positions of each row, valid ones first, in order."""
    return torch.argsort((~mask).to(torch.uint8), dim=1, stable=True)
