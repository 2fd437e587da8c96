"""What the codes of a code predictor decode to, compared with the shape's own field.

A regression of codes by their cosine weighs all errors alike. Through the tokenizer's frozen
decoder those count that move a surface. Both fields come from the tokenizer: that of the shape is
decoded from its tokens, so a training reads token shards alone, never points or meshes.

Letters: B rows, T tokens, K coordinates of a code, M points.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from tar3d.layouts.triplane import to_planes

if TYPE_CHECKING:
    from collections.abc import Callable

    from tar3d.tokenizer.vqvae import VQVAE

CANDIDATES = 8  # points of the cube that the points near a surface are chosen among, times M


class OccupancyLoss:
    """Binary cross-entropy, in nats a point, of the field of predicted codes to the shape's own.

    Half of the `points` are uniform in the cube; the other half are those of 8 times as many where
    the shape's own field is nearest to its surface. The tokenizer's weights stay as they are. It
    holds a part of the tokenizer outside of any module, so that no state of a training has it.
    """

    def __init__(self, vqvae: VQVAE, points: int) -> None:
        self.decoder, self.occupancy = vqvae.decoder, vqvae.occupancy
        for parameter in vqvae.parameters():
            parameter.requires_grad_(False)
        self.points, self.grid_size = points, vqvae.config.grid_size

    def __deepcopy__(self, memo: dict) -> OccupancyLoss:
        """Itself: a moving average of a model needs no second tokenizer."""
        return self

    def __call__(self, predicted: Tensor, true: Tensor, shift: Tensor) -> Tensor:
        """The loss (B,) of codes (B, T, K) against true ones, both in raster order.

        `shift` (3,) in [0, 1) moves the points. There is a gradient for `predicted` alone.
        """
        self.decoder.to(predicted.device)
        self.occupancy.to(predicted.device)
        with torch.no_grad():
            planes = self.decoder(to_planes(true, self.grid_size))
            points = self._points(partial(self.occupancy, planes), len(true), shift.to(true.device))
            target = self.occupancy(planes, points).float().sigmoid()
        planes = self.decoder(to_planes(predicted, self.grid_size))
        logits = self.occupancy(planes, points)
        return F.binary_cross_entropy_with_logits(logits.float(), target, reduction="none").mean(1)

    def flops(self) -> int:
        """Operations for one row, forward and backward."""
        once = self.decoder.flops() + self.occupancy.flops(self.points)
        return 4 * once + self.occupancy.flops(CANDIDATES * (self.points // 2))

    def _points(self, field: Callable[[Tensor], Tensor], rows: int, shift: Tensor) -> Tensor:
        """(B, M, 3) in [-1, 1]^3, of which the second half is near the surface of `field`."""
        near = self.points // 2
        lattice = spread_points((self.points - near) + CANDIDATES * near, shift)
        lattice = lattice.expand(rows, -1, -1)
        uniform, candidates = lattice.split([self.points - near, CANDIDATES * near], dim=1)
        nearest = field(candidates).float().abs().topk(near, dim=1, largest=False).indices
        chosen = candidates.gather(1, nearest[..., None].expand(-1, -1, 3))
        return torch.cat([uniform, chosen], dim=1)


def spread_points(count: int, shift: Tensor) -> Tensor:
    """(count, 3) points that fill [-1, 1]^3 evenly, moved by `shift` (3,) with wrapping.

    The additive sequence of the plastic number's generalisation to three dimensions (M. Roberts,
    "The unreasonable effectiveness of quasirandom sequences", 2018): any first part of it is as
    evenly spread.
    """
    root = 1.22074408460575947536  # of x^4 = x + 1
    steps = torch.tensor([root**-1, root**-2, root**-3], dtype=torch.float64, device=shift.device)
    index = torch.arange(1, count + 1, dtype=torch.float64, device=shift.device)
    unit = (index[:, None] * steps + shift.double()) % 1.0
    return (2 * unit - 1).float()
