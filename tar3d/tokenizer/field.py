"""The occupancy of one triplane as a function of points, for millions of them.

Bilinear interpolation is linear, and so is the first layer of the occupancy head: the planes are
put through that layer once, and a point costs a weighted sum of twelve of their rows and the layers
that remain. `VQVAE.query` is the plain form.

Letters: C plane channels, S plane side, W width of the head, M points.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tar3d.tokenizer.decoder import OccupancyHead
from tar3d.tokenizer.planes import PLANE_AXES


class OccupancyField:
    """A function from points (M, 3) in [-1, 1]^3 to float32 logits (M,), positive inside.

    It gives what `head` gives for `planes` (3, C, S, S), up to rounding.
    """

    @torch.no_grad()
    def __init__(self, head: OccupancyHead, planes: Tensor) -> None:
        first, *self._rest = [*head.mlp, head.logit]
        assert isinstance(first, nn.Linear)
        weight = first.weight.view(len(first.weight), 3, -1)  # (W, 3, C)
        rows = torch.einsum("pcrk,wpc->prkw", planes.float(), weight.float())  # (3, S, S, W)
        rows[0] += first.bias  # the shares of a point's four rows of a plane add up to 1
        self._rows, self._side = rows.flatten(0, 2).to(planes.dtype), planes.shape[-1]

    @torch.no_grad()
    def __call__(self, points: Tensor) -> Tensor:
        S = self._side
        position = ((points + 1) * (S / 2) - 0.5).clamp(0, S - 1)  # in cells from the first centre
        low = position.floor().clamp_(max=S - 2) if S > 1 else position.floor()
        high_share = position - low  # (M, 3)
        low = low.long()
        index, share = [], []
        for plane, (column, row) in enumerate(PLANE_AXES):
            corner = (plane * S + low[:, row]) * S + low[:, column]
            right, down = high_share[:, column], high_share[:, row]
            index += [corner, corner + 1, corner + S, corner + S + 1]
            share += [
                (1 - right) * (1 - down),
                right * (1 - down),
                (1 - right) * down,
                right * down,
            ]
        x = F.embedding_bag(
            torch.stack(index, dim=1),
            self._rows,
            mode="sum",
            per_sample_weights=torch.stack(share, dim=1).to(self._rows.dtype),
        )  # (M, W)
        x = x.float()
        for layer in self._rest:
            x = layer(x)
        return x[:, 0]
