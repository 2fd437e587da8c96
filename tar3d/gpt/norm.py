"""The RMS norm of all layers (arXiv 1910.07467)."""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

NORM_EPS = 1e-6


class RMSNorm(nn.RMSNorm):
    """RMS norm in the precision of its gain.

    Under autocast a bfloat16 input is normalised in float32.
    """

    init_as: ClassVar[dict[str, str]] = {"weight": "ones"}

    def __init__(self, width: int) -> None:
        super().__init__(width, eps=NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.to(self.weight.dtype), self.normalized_shape, self.weight, self.eps)
