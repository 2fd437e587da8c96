"""Encoders: surface points (B, N, 6) -> a triplane of latents (B, 3, R, R, D).

    CrossAttentionEncoder  the paper's (TAR3D, arXiv 2412.16919, after 3DShape2VecSet, arXiv
                           2301.11445): 3 R^2 learned queries read all points; O(N R^2)
    PlanePoolEncoder       local point features pooled onto the planes (Convolutional Occupancy
                           Networks, arXiv 2003.04618), then mixed across planes; O(N), and learns
                           much faster from scratch

Letters: B batch, N surface points, R grid side, D width, C point width, G pooling grid side.
"""

import torch
from einops import rearrange
from torch import Tensor, nn

from tar3d.config import TokenizerConfig
from tar3d.tokenizer.blocks import (
    Attention,
    FourierFeatures,
    SelfAttentionBlock,
    TriplaneBlock,
    attention_flops,
    blocks_flops,
    linear_flops,
)
from tar3d.tokenizer.planes import PlaneCells


class SurfaceEncoder(nn.Module):
    """Base class of encoders, built from the whole `TokenizerConfig`.

    An encoder of another kind is a subclass in a file of its own and one line in `vqvae.ENCODERS`.
    """

    adamw_parameters: tuple[str, ...] = ()  # names of parameters that Muon must not train

    def forward(self, surface: Tensor) -> Tensor:
        """Points in [-1, 1]^3 with unit normals (B, N, 6) -> latents (B, 3, R, R, D)."""
        raise NotImplementedError

    def flops(self, num_points: int) -> int:
        """Operations of `forward` for one shape, a multiply-add counted as two."""
        raise NotImplementedError


class CrossAttentionEncoder(SurfaceEncoder):
    """The paper's encoder: 3 R^2 learned queries read all points, then attend to each other."""

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
            + blocks_flops(self.blocks, T)
        )


class PlanePoolEncoder(SurfaceEncoder):
    """Pools features of single points onto the planes.

    Points are pooled on a grid of each plane, `pool_factor` times as fine as the tokens, which two
    convolutions reduce to R x R tokens; transformer blocks mix the planes. The padding of a strided
    convolution is one-sided: with 4 times as fine a grid, the convolutions of a token see three
    fine cells before its own four along each axis, and none after them.
    """

    adamw_parameters = ("positions",)

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        R, C, D = config.grid_size, config.point_width, config.width
        self.pool_size = config.pool_factor * R
        self.density_points = config.density_points
        self.fourier = FourierFeatures(config.num_frequencies)
        self.point_in = nn.Sequential(
            nn.Linear(self.fourier.width + 3, C), nn.GELU(), nn.Linear(C, C)
        )
        self.point_local = nn.Sequential(nn.Linear(2 * C, C), nn.GELU(), nn.Linear(C, C))
        self.to_plane = nn.Linear(C, 3 * C)  # a point looks different from each plane
        first, second = {4: (2, 2), 2: (2, 1), 1: (1, 1)}[config.pool_factor]
        self.reduce = nn.Sequential(
            nn.Conv2d(C + 1, C, 3, stride=first, padding=1),
            nn.GELU(),
            nn.Conv2d(C, D, 3, stride=second, padding=1),
        )
        self.positions = nn.Parameter(torch.randn(3, R, R, D) * 0.02)
        self.blocks = nn.ModuleList(
            TriplaneBlock(D, config.num_heads) for _ in range(config.encoder_layers)
        )
        self.norm_out = nn.LayerNorm(D)

    def forward(self, surface: Tensor) -> Tensor:
        B, G = len(surface), self.pool_size
        cells = PlaneCells(surface[..., :3], G)
        points = torch.cat([self.fourier(surface[..., :3]), surface[..., 3:]], dim=-1)
        x = self.point_in(points)  # (B, N, C)
        neighbourhood = cells.read(cells.mean(x)) / 3
        x = x + self.point_local(torch.cat([x, neighbourhood.to(x.dtype)], dim=-1))
        planes = torch.cat(
            [
                self._project(cells.mean(x), cells.count),
                self.density(cells.count, surface.shape[1]),
            ],
            dim=-1,
        )  # (B, 3, G^2, C + 1)
        planes = rearrange(planes, "b p (r c) d -> (b p) d r c", r=G)
        x = rearrange(self.reduce(planes), "(b p) d r c -> b p r c d", b=B) + self.positions
        for block in self.blocks:
            x = block(x)
        return self.norm_out(x)

    def density(self, count: Tensor, num_points: int) -> Tensor:
        """log(1 + n) of cells, n the number of points that they would hold of `density_points`.

        `count` (...) is the number that they hold of `num_points`. Without a `density_points` it is
        taken as it is.
        """
        return (count * ((self.density_points or num_points) / num_points)).log1p()

    def _project(self, mean: Tensor, count: Tensor) -> Tensor:
        """`to_plane` of the means (B, 3, G^2, C) of cells, each plane by its own third.

        The layer is linear, so this equals the mean of its outputs, for fewer rows than there are
        points. An empty cell stays zero, so it gets no bias.
        """
        C = mean.shape[-1]
        weight, bias = self.to_plane.weight.view(3, C, C), self.to_plane.bias.view(3, 1, C)
        return torch.einsum("bpgc,pdc->bpgd", mean, weight) + bias * (count > 0)

    def flops(self, num_points: int) -> int:
        cells, R = self.pool_size**2, self.positions.shape[1]
        convolutions, pixels = 0, cells
        for layer in self.reduce:
            if isinstance(layer, nn.Conv2d):
                pixels //= layer.stride[0] ** 2
                convolutions += 2 * 3 * pixels * layer.weight.numel()
        return (
            linear_flops(self.point_in, num_points)
            + linear_flops(self.point_local, num_points)
            + linear_flops(self.to_plane, cells)
            + convolutions
            + blocks_flops(self.blocks, R)
        )
