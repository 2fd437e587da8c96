"""Surface points (B, N, 6) -> a triplane of latents (B, 3, R, R, D). Two encoders behind one call:

    CrossAttentionEncoder  the paper's: 3 R^2 learned queries read all points (TAR3D, arXiv 2412.16919, after
                           3DShape2VecSet, arXiv 2301.11445); O(N R^2)
    PlanePoolEncoder       local point features pooled onto the planes (Convolutional Occupancy Networks, arXiv
                           2003.04618), then mixed across planes; O(N), and learns much faster from scratch

Letters: B batch, N surface points, R grid side, D width, C point width, G pooling grid side.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from tar3d.config import TokenizerConfig
from tar3d.tokenizer.blocks import (
    Attention,
    FourierFeatures,
    SelfAttentionBlock,
    TriplaneBlock,
    attention_flops,
    linear_flops,
)

PLANE_AXES = ((0, 1), (0, 2), (1, 2))  # (column axis, row axis) of xy, xz, yz
# points are pooled on a grid 4 times finer than the tokens, then two strided convolutions reduce it
POOL_FACTOR = 4


def build_encoder(config: TokenizerConfig) -> nn.Module:
    return {"cross_attention": CrossAttentionEncoder, "plane_pool": PlanePoolEncoder}[
        config.encoder
    ](config)


class CrossAttentionEncoder(nn.Module):
    adamw_parameters = ("queries",)

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.grid_size = R = config.grid_size
        self.fourier = FourierFeatures(config.num_frequencies)
        self.queries = nn.Parameter(torch.randn(3 * R * R, config.width) * 0.02)
        self.point_projection = nn.Linear(self.fourier.width + 3, config.width)
        self.norm_queries, self.norm_points = nn.LayerNorm(config.width), nn.LayerNorm(config.width)
        self.cross_attention = Attention(config.width, config.num_heads)
        self.blocks = nn.ModuleList(
            SelfAttentionBlock(config.width, config.num_heads) for _ in range(config.encoder_layers)
        )
        self.norm_out = nn.LayerNorm(config.width)

    def forward(self, surface: Tensor) -> Tensor:
        points = torch.cat([self.fourier(surface[..., :3]), surface[..., 3:]], dim=-1)
        points = self.norm_points(self.point_projection(points))  # (B, N, D)
        x = self.queries.expand(len(surface), -1, -1)  # (B, 3 R^2, D)
        x = x + self.cross_attention(self.norm_queries(x), points)
        for block in self.blocks:
            x = block(x)
        return rearrange(self.norm_out(x), "b (p r c) d -> b p r c d", p=3, r=self.grid_size)

    def flops(self, num_points: int) -> int:
        T, D = self.queries.shape
        rows = {"query": T, "key": num_points, "value": num_points, "out": T}
        cross = sum(
            linear_flops(getattr(self.cross_attention, name), count) for name, count in rows.items()
        )
        return (
            linear_flops(self.point_projection, num_points)
            + cross
            + attention_flops(T, num_points, D)
            + sum(block.flops(T) for block in self.blocks)
        )


class PlanePoolEncoder(nn.Module):
    adamw_parameters = ("positions",)

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        R, C, D = config.grid_size, config.point_width, config.width
        self.pool_size = POOL_FACTOR * R
        self.fourier = FourierFeatures(config.num_frequencies)
        self.point_in = nn.Sequential(
            nn.Linear(self.fourier.width + 3, C), nn.GELU(), nn.Linear(C, C)
        )
        self.point_local = nn.Sequential(nn.Linear(2 * C, C), nn.GELU(), nn.Linear(C, C))
        self.to_plane = nn.Linear(C, 3 * C)  # a point looks different from each plane
        self.reduce = nn.Sequential(
            nn.Conv2d(C + 1, C, 3, stride=2, padding=1),
            nn.GELU(),
            nn.Conv2d(C, D, 3, stride=2, padding=1),
        )
        self.positions = nn.Parameter(torch.randn(3, R, R, D) * 0.02)
        self.blocks = nn.ModuleList(
            TriplaneBlock(D, config.num_heads) for _ in range(config.encoder_layers)
        )
        self.norm_out = nn.LayerNorm(D)

    def forward(self, surface: Tensor) -> Tensor:
        B, G = len(surface), self.pool_size
        cells = PlaneCells(surface[..., :3], G)
        x = self.point_in(
            torch.cat([self.fourier(surface[..., :3]), surface[..., 3:]], dim=-1)
        )  # (B, N, C)
        neighbourhood = cells.read(cells.mean(x)) / 3
        x = x + self.point_local(torch.cat([x, neighbourhood.to(x.dtype)], dim=-1))
        planes = torch.cat(
            [self._look(cells.mean(x), cells.count), cells.count.log1p()], dim=-1
        )  # (B, 3, G^2, C + 1)
        planes = rearrange(planes, "b p (r c) d -> (b p) d r c", r=G)
        x = rearrange(self.reduce(planes), "(b p) d r c -> b p r c d", b=B) + self.positions
        for block in self.blocks:
            x = block(x)
        return self.norm_out(x)

    def _look(self, mean: Tensor, count: Tensor) -> Tensor:
        """`to_plane` after the mean of its inputs (B, 3, G^2, C) instead of before: the same, as it
        is linear, for fewer rows than there are points, and each plane takes its own third. An
        empty cell stays zero, so it gets no bias."""
        C = mean.shape[-1]
        weight, bias = self.to_plane.weight.view(3, C, C), self.to_plane.bias.view(3, 1, C)
        return torch.einsum("bpgc,pdc->bpgd", mean, weight) + bias * (count > 0)

    def flops(self, num_points: int) -> int:
        cells, R = self.pool_size**2, self.positions.shape[1]
        first, last = self.reduce[0].weight.numel(), self.reduce[2].weight.numel()
        convolutions = 2 * 3 * (cells // 4 * first + cells // 16 * last)
        return (
            linear_flops(self.point_in, num_points)
            + linear_flops(self.point_local, num_points)
            + linear_flops(self.to_plane, cells)
            + convolutions
            + sum(block.flops(R) for block in self.blocks)
        )


def plane_cells(points: Tensor, grid_size: int) -> Tensor:
    """(B, N, 3) in [-1, 1] -> (3, B, N) flat cell indices row * grid_size + column on the planes
    xy, xz, yz."""
    index = ((points.float() + 1) / 2 * grid_size).long().clamp_(0, grid_size - 1)
    return torch.stack(
        [index[..., row] * grid_size + index[..., column] for column, row in PLANE_AXES]
    )


class PlaneCells:
    """Which of the G^2 cells of each plane the points (B, N, 3) fall in, sorted once, and float32
    sums from points to cells and back: those of many bfloat16 terms would lose most of them.

    Both directions are sums over bags of rows (`F.embedding_bag`), and each is the other's
    gradient. A row is read where it lies, so no copy of the features for each plane is made, and
    nothing is added atomically, so the order of the sum is fixed.
    """

    def __init__(self, points: Tensor, grid_size: int) -> None:
        B, N, _ = points.shape
        self.shape = (B, 3, grid_size**2)
        tables = torch.arange(3 * B, device=points.device).view(B, 3).T[..., None]  # (3, B, 1)
        cells = (
            plane_cells(points, grid_size) + tables * grid_size**2
        )  # rows of all tables, (3, B, N)
        self._of_points = rearrange(cells, "p b n -> (b n) p").contiguous()
        ordered, slots = self._of_points.flatten().sort(stable=True)
        # not torch.bincount: it makes the processor wait for a GPU
        edges = torch.searchsorted(
            ordered, torch.arange(3 * B * grid_size**2 + 1, device=points.device)
        )
        self._of_cells, self._starts = slots // 3, edges[:-1]
        self.count = edges.diff().to(torch.float32).view(*self.shape, 1)  # (B, 3, G^2, 1)

    def mean(self, features: Tensor) -> Tensor:
        """(B, N, C) -> the mean of each cell (B, 3, G^2, C), zero where it holds no point."""
        x = features.flatten(0, 1).float()
        total = _BagSum.apply(x, self._of_cells, self._starts, self._of_points, None)
        return total.view(*self.shape, -1) / self.count.clamp_min(1.0)

    def read(self, table: Tensor) -> Tensor:
        """(B, 3, G^2, C) -> the sum of its three cells for each point (B, N, C)."""
        total = _BagSum.apply(
            table.flatten(0, 2).float(), self._of_points, None, self._of_cells, self._starts
        )
        return total.view(self.shape[0], -1, table.shape[-1])


class _BagSum(torch.autograd.Function):
    """Sums of the rows that each bag names. `back` are the bags of the transposed 0/1 matrix, which
    the gradient sums over: PyTorch's own gradient of an embedding bag sorts all indices again."""

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
    """Bilinear features of the planes (B, 3, C, H, W) at points (B, M, 3) in [-1, 1] -> (B, M, 3
    C).

    Cell (row, column) of plane `ab` is centred at a = -1 + (2 column + 1) / W, b = -1 + (2 row + 1)
    / H. Beyond the outermost centres the border value holds. In the wider of the two dtypes:
    bfloat16 has too few bits for where a point is.
    """
    grids = torch.stack([points[..., list(axes)] for axes in PLANE_AXES], dim=1)  # (B, 3, M, 2)
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
    """`F.grid_sample` as above of (N, C, H, W) at (N, M, 2), column first -> (N, C, M). Slower, but
    on a GPU PyTorch can sum its gradient in a fixed order (`train.deterministic`)."""
    H, W = planes.shape[2:]
    size = grids.new_tensor([W, H])
    place = (((grids + 1) * size - 1) / 2).clamp_min(0).minimum(size - 1)
    low = place.long()
    high, share = (low + 1).minimum(size.long() - 1), place - low
    result = 0
    for column, across in ((low, 1 - share), (high, share)):
        for row, up in ((low, 1 - share), (high, share)):
            index = row[..., 1] * W + column[..., 0]  # (N, M)
            corner = planes.flatten(2).gather(2, index[:, None].expand(-1, planes.shape[1], -1))
            result = result + corner * (across[..., 0] * up[..., 1])[:, None]
    return result
