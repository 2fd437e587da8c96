"""Points and the three planes of a triplane: cells of points, pooling, and bilinear sampling.

Letters: B batch, N surface points, M query points, C channels, G side of a plane in cells, H, W
height and width of a plane in pixels.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

PLANE_AXES = ((0, 1), (0, 2), (1, 2))  # (column axis, row axis) of xy, xz, yz


def plane_cells(points: Tensor, grid_size: int) -> Tensor:
    """Points (B, N, 3) in [-1, 1] -> indices (3, B, N) of their cells on the planes xy, xz, yz.

    A cell's index is row * grid_size + column.
    """
    index = ((points.float() + 1) / 2 * grid_size).long().clamp_(0, grid_size - 1)
    return torch.stack(
        [index[..., row] * grid_size + index[..., column] for column, row in PLANE_AXES]
    )


class PlaneCells:
    """Pools features of points (B, N, 3) onto the cells of three planes, G^2 each, and reads back.

    Points are sorted by cell once. Sums are float32, because a bfloat16 sum of many terms would
    lose most of them. Both directions are sums over bags of rows (`F.embedding_bag`), and each is
    the other's gradient. A row is read where it lies, so no copy of the features for each plane is
    made, and nothing is added atomically, so the order of the sum is fixed.
    """

    def __init__(self, points: Tensor, grid_size: int) -> None:
        B = len(points)
        self.shape = (B, 3, grid_size**2)
        tables = torch.arange(3 * B, device=points.device).view(B, 3).T[..., None]  # (3, B, 1)
        # rows of all tables, (3, B, N)
        cells = plane_cells(points, grid_size) + tables * grid_size**2
        self._of_points = rearrange(cells, "p b n -> (b n) p").contiguous()
        in_order, slots = self._of_points.flatten().sort(stable=True)
        # not torch.bincount: it makes the processor wait for a GPU
        edges = torch.searchsorted(
            in_order, torch.arange(3 * B * grid_size**2 + 1, device=points.device)
        )
        self._of_cells, self._starts = slots // 3, edges[:-1]
        self.count = edges.diff().to(torch.float32).view(*self.shape, 1)  # (B, 3, G^2, 1)

    def mean(self, features: Tensor) -> Tensor:
        """Features (B, N, C) of points -> means (B, 3, G^2, C) of cells, 0 in an empty cell."""
        x = features.flatten(0, 1).float()
        total = _BagSum.apply(x, self._of_cells, self._starts, self._of_points, None)
        return total.view(*self.shape, -1) / self.count.clamp_min(1.0)

    def read(self, table: Tensor) -> Tensor:
        """Features (B, 3, G^2, C) of cells -> for each point the sum over its cells, (B, N, C)."""
        total = _BagSum.apply(
            table.flatten(0, 2).float(), self._of_points, None, self._of_cells, self._starts
        )
        return total.view(self.shape[0], -1, table.shape[-1])


class _BagSum(torch.autograd.Function):
    """Sums of the rows that each bag names.

    `back` holds the bags of the transposed 0/1 matrix, over which the gradient is summed: PyTorch's
    own gradient of an embedding bag sorts all indices again.
    """

    @staticmethod
    def forward(
        ctx,
        rows: Tensor,
        bags: Tensor,
        starts: Tensor | None,
        back: Tensor,
        back_starts: Tensor | None,
    ) -> Tensor:
        ctx.back = back, back_starts
        return F.embedding_bag(bags, rows.detach(), starts, mode="sum")

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        bags, starts = ctx.back
        return (
            F.embedding_bag(bags, gradient.contiguous(), starts, mode="sum"),
            None,
            None,
            None,
            None,
        )


def sample_planes(planes: Tensor, points: Tensor) -> Tensor:
    """Bilinear features (B, M, 3 C) of planes (B, 3, C, H, W) at points (B, M, 3) in [-1, 1].

    Cell (row, column) of plane `ab` is centred at a = -1 + (2 column + 1) / W, b = -1 + (2 row + 1)
    / H. Beyond the outermost centres the border value holds. Computed in the wider of the two
    dtypes, because bfloat16 has too few bits for a coordinate; returned in that of the planes.
    """
    # Slices: a list as an index is copied to the GPU, which the processor waits for.
    grids = torch.stack(
        [points[..., c : r + 1 : r - c] for c, r in PLANE_AXES], dim=1
    )  # (B, 3, M, 2)
    wide = torch.promote_types(planes.dtype, grids.dtype)
    tables, grids = planes.flatten(0, 1).to(wide), grids.flatten(0, 1).to(wide)
    if torch.are_deterministic_algorithms_enabled() and planes.is_cuda:
        sampled = sample_by_gathering(tables, grids)
    else:
        sampled = F.grid_sample(
            tables, grids[:, None], mode="bilinear", padding_mode="border", align_corners=False
        )[:, :, 0]
    return rearrange(sampled, "(b p) c m -> b m (p c)", p=3).to(planes.dtype)


def sample_by_gathering(planes: Tensor, grids: Tensor) -> Tensor:
    """`F.grid_sample` of planes (N, C, H, W) at (N, M, 2), column first -> (N, C, M), by gathering.

    Slower than the kernel, but on a GPU its gradient is summed in a fixed order
    (`train.deterministic`).
    """
    H, W = planes.shape[2:]
    size = grids.new_tensor([W, H])
    position = (((grids + 1) * size - 1) / 2).clamp_min(0).minimum(size - 1)  # in pixels
    low = position.long()
    high, share = (low + 1).minimum(size.long() - 1), position - low
    result = planes.new_zeros(())
    for column, across in ((low, 1 - share), (high, share)):
        for row, up in ((low, 1 - share), (high, share)):
            index = row[..., 1] * W + column[..., 0]  # (N, M)
            corner = planes.flatten(2).gather(2, index[:, None].expand(-1, planes.shape[1], -1))
            result = result + corner * (across[..., 0] * up[..., 1])[:, None]
    return result
