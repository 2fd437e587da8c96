"""Embeddings of what comes into the layers: the condition, and the position of a step.

Letters: B batch, P prefix length, E condition width, D width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from tar3d.layouts.base import Layout


class ConditionMLP(nn.Module):
    """(B, P, E) embeddings -> (B, P, D) prefix."""

    def __init__(self, condition_width: int, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(condition_width, width, bias=False)
        self.fc2 = nn.Linear(width, width, bias=False)

    def forward(self, embeddings: Tensor) -> Tensor:
        return self.fc2(F.silu(self.fc1(embeddings)))


class PositionEmbedding(nn.Module):
    """Learned embeddings of a step's coordinates, added to the step's own.

    There is one table for each embedded axis of the layout: row, column and, where a step is a
    token, plane. TriPE alone tells a token how far others are, not where it is itself, and what
    code to expect depends on that. They start at zero: a model trained without them can go on with
    them.
    """

    coordinates: Tensor  # (axes, steps)

    def __init__(self, layout: Layout, width: int) -> None:
        super().__init__()
        axes = [axis for axis in layout.axes() if axis.embedded]
        for axis in axes:
            self.add_module(axis.name, nn.Embedding(axis.size, width))
        self.names = [axis.name for axis in axes]
        coordinates = torch.from_numpy(np.stack([axis.values for axis in axes]))
        self.register_buffer("coordinates", coordinates, persistent=False)

    def forward(self, start: int, end: int) -> Tensor:
        """Steps start..end-1 of the sequence -> (end - start, D)."""
        first, *others = (
            self.get_submodule(name)(values)
            for name, values in zip(self.names, self.coordinates[:, start:end], strict=True)
        )
        for embedded in others:
            first = first + embedded
        return first
