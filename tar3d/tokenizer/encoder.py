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
from tar3d.tokenizer.blocks import Attention, FourierFeatures, SelfAttentionBlock, TriplaneBlock

PLANE_AXES = ((0, 1), (0, 2), (1, 2))  # (column axis, row axis) of xy, xz, yz
POOL_FACTOR = 4  # points are pooled on a grid 4 times finer than the tokens, then two strided convolutions reduce it


def build_encoder(config: TokenizerConfig) -> nn.Module:
    return {"cross_attention": CrossAttentionEncoder, "plane_pool": PlanePoolEncoder}[config.encoder](config)


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
        self.blocks = nn.ModuleList(SelfAttentionBlock(config.width, config.num_heads) for _ in range(config.encoder_layers))
        self.norm_out = nn.LayerNorm(config.width)

    def forward(self, surface: Tensor) -> Tensor:
        points = torch.cat([self.fourier(surface[..., :3]), surface[..., 3:]], dim=-1)
        points = self.norm_points(self.point_projection(points))  # (B, N, D)
        x = self.queries.expand(len(surface), -1, -1)  # (B, 3 R^2, D)
        x = x + self.cross_attention(self.norm_queries(x), points)
        for block in self.blocks:
            x = block(x)
        return rearrange(self.norm_out(x), "b (p r c) d -> b p r c d", p=3, r=self.grid_size)


class PlanePoolEncoder(nn.Module):
    adamw_parameters = ("positions",)

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        R, C, D = config.grid_size, config.point_width, config.width
        self.pool_size = POOL_FACTOR * R
        self.fourier = FourierFeatures(config.num_frequencies)
        self.point_in = nn.Sequential(nn.Linear(self.fourier.width + 3, C), nn.GELU(), nn.Linear(C, C))
        self.point_local = nn.Sequential(nn.Linear(2 * C, C), nn.GELU(), nn.Linear(C, C))
        self.to_plane = nn.Linear(C, 3 * C)  # a point looks different from each plane
        self.reduce = nn.Sequential(nn.Conv2d(C + 1, C, 3, stride=2, padding=1), nn.GELU(),
                                    nn.Conv2d(C, D, 3, stride=2, padding=1))
        self.positions = nn.Parameter(torch.randn(3, R, R, D) * 0.02)
        self.blocks = nn.ModuleList(TriplaneBlock(D, config.num_heads) for _ in range(config.encoder_layers))
        self.norm_out = nn.LayerNorm(D)

    def forward(self, surface: Tensor) -> Tensor:
        B, G = len(surface), self.pool_size
        cells = plane_cells(surface[..., :3], G)  # (3, B, N)
        x = self.point_in(torch.cat([self.fourier(surface[..., :3]), surface[..., 3:]], dim=-1))  # (B, N, C)
        neighbourhood = sum(pool_to_cells(x, c, G)[0].gather(1, c[..., None].expand_as(x)) for c in cells) / 3
        x = x + self.point_local(torch.cat([x, neighbourhood.to(x.dtype)], dim=-1))
        planes = []
        for features, cell in zip(self.to_plane(x).chunk(3, dim=-1), cells, strict=True):
            mean, count = pool_to_cells(features, cell, G)
            planes.append(torch.cat([mean, count.log1p()], dim=-1))
        planes = rearrange(torch.stack(planes, dim=1), "b p (r c) d -> (b p) d r c", r=G)
        x = rearrange(self.reduce(planes), "(b p) d r c -> b p r c d", b=B) + self.positions
        for block in self.blocks:
            x = block(x)
        return self.norm_out(x)


def plane_cells(points: Tensor, grid_size: int) -> Tensor:
    """(B, N, 3) in [-1, 1] -> (3, B, N) flat cell indices row * grid_size + column on the planes xy, xz, yz."""
    index = ((points.float() + 1) / 2 * grid_size).long().clamp_(0, grid_size - 1)
    return torch.stack([index[..., row] * grid_size + index[..., column] for column, row in PLANE_AXES])


def pool_to_cells(features: Tensor, cells: Tensor, grid_size: int) -> tuple[Tensor, Tensor]:
    """Mean of (B, N, C) features over `cells` (B, N) -> (B, G^2, C) float32 and the point count (B, G^2, 1).

    Float32, because a sum of many bfloat16 terms in one cell loses most of them.
    """
    B, N, C = features.shape
    cells_per_item = grid_size * grid_size
    flat = (cells + torch.arange(B, device=cells.device)[:, None] * cells_per_item).reshape(-1)
    total = features.new_zeros(B * cells_per_item, C, dtype=torch.float32)
    total = total.index_add(0, flat, features.reshape(B * N, C).float())
    count = torch.bincount(flat, minlength=B * cells_per_item).to(torch.float32)[:, None]
    mean = total / count.clamp_min(1.0)
    return mean.reshape(B, cells_per_item, C), count.reshape(B, cells_per_item, 1)


def sample_planes(planes: Tensor, points: Tensor) -> Tensor:
    """Bilinear features of the planes (B, 3, C, H, W) at points (B, M, 3) in [-1, 1] -> (B, M, 3 C).

    Cell (row, column) of plane `ab` is centred at a = -1 + (2 column + 1) / W, b = -1 + (2 row + 1) / H. Beyond the
    outermost centres the border value holds.
    """
    grids = torch.stack([points[..., list(axes)] for axes in PLANE_AXES], dim=1)  # (B, 3, M, 2)
    sampled = F.grid_sample(planes.flatten(0, 1), grids.flatten(0, 1)[:, None].to(planes.dtype), mode="bilinear",
                            padding_mode="border", align_corners=False)  # (3B, C, 1, M)
    return rearrange(sampled, "(b p) c 1 m -> b m (p c)", p=3)
