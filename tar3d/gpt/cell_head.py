"""The head that tells the tokens of a step apart, for `gpt.tokens_per_step` above 1."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, ClassVar, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tar3d.gpt.blocks import MLPWeights, SwiGLU
from tar3d.gpt.norm import RMSNorm

if TYPE_CHECKING:
    from collections.abc import Callable

NUM_MLPS = 2


class CellHeadWeights(NamedTuple):
    plane: Tensor  # (n, D)
    before: list[Tensor]  # (D, D) each
    mlps: list[MLPWeights]


class CellHead(nn.Module):
    """Tells apart the n tokens of a step (three planes of a cell), predicted at once by the layers.

    Token k gets the layers' output, its place in the step, and the tokens before it, so the
    distribution is exact: p(xy | h) p(xz | h, xy) p(yz | h, xy, xz). A cell has at most two tokens
    to look back at: a sum of them and two SwiGLU layers do what attention over three positions
    would.

    Letters: B batch, s steps, n tokens per step, D width.
    """

    # Drawn as small as other matrices, these would let the head hardly see the known tokens.
    init_as: ClassVar[dict[str, str]] = {"before": "scale"}

    def __init__(self, width: int, tokens_per_step: int) -> None:
        super().__init__()
        self.plane = nn.Embedding(tokens_per_step, width)
        self.before = nn.ModuleList(
            nn.Linear(width, width, bias=False) for _ in range(tokens_per_step - 1)
        )
        self.norms = nn.ModuleList(RMSNorm(width) for _ in range(NUM_MLPS))
        self.mlps = nn.ModuleList(SwiGLU(width) for _ in range(NUM_MLPS))

    def forward(self, hidden: Tensor, embedded: Tensor) -> Tensor:
        """Hidden states of each token, (B, s, n, D); entry k depends on the tokens before k only.

        `hidden` (B, s, D) are the layers' outputs, `embedded` (B, s, n - 1, D) the embeddings of
        the first tokens of each step.
        """
        before = (
            linear(embedded[:, :, j]).to(self.plane.weight.dtype)
            for j, linear in enumerate(self.before)
        )
        known = torch.stack(list(itertools.accumulate(before)), dim=2)
        x = hidden[:, :, None] + self.plane.weight + F.pad(known, (0, 0, 1, 0))
        for norm, mlp in zip(self.norms, self.mlps, strict=True):
            x = x + mlp(norm(x))
        return x

    def pack(self, pack: Callable[..., Tensor]) -> CellHeadWeights:
        """The weights for `tar3d.gpt.engine`."""
        return CellHeadWeights(
            self.plane.weight,
            [pack(linear) for linear in self.before],
            [
                cast("SwiGLU", mlp).pack(cast("RMSNorm", norm).weight, pack)
                for norm, mlp in zip(self.norms, self.mlps, strict=True)
            ],
        )
