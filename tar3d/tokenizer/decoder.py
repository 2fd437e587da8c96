"""Decoder: codes (B, 3, R, R, K) -> feature planes (B, 3, C, S, S) -> occupancy logits at points.

Letters: B batch, R token grid side, S = R 2^stages plane side, D width, K code width, C plane
channels, M query points.
"""

import itertools

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from tar3d.config import TokenizerConfig
from tar3d.tokenizer.blocks import TriplaneBlock, blocks_flops, linear_flops
from tar3d.tokenizer.planes import sample_planes


class TriplaneDecoder(nn.Module):
    """Transformer blocks on the token grid, then `Upsample` stages."""

    adamw_parameters = ("positions",)

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        R, D = config.grid_size, config.width
        self.code_in = nn.Linear(config.code_dim, D)
        self.positions = nn.Parameter(torch.randn(3, R, R, D) * 0.02)
        self.blocks = nn.ModuleList(
            TriplaneBlock(D, config.num_heads) for _ in range(config.decoder_layers)
        )
        self.norm_out = nn.LayerNorm(D)
        widths = [
            max(config.plane_channels, D // 2**i) for i in range(1, config.upsample_stages)
        ] + [config.plane_channels]
        self.upsample = nn.Sequential(
            *(Upsample(a, b) for a, b in zip([D, *widths], widths, strict=False))
        )

    def forward(self, codes: Tensor) -> Tensor:
        """Codes (B, 3, R, R, K) -> planes (B, 3, C, S, S)."""
        x = self.code_in(codes) + self.positions  # (B, 3, R, R, D)
        for block in self.blocks:
            x = block(x)
        x = self.upsample(rearrange(self.norm_out(x), "b p r c d -> (b p) d r c"))
        return rearrange(x, "(b p) c h w -> b p c h w", p=3)

    def flops(self) -> int:
        R = self.positions.shape[1]
        upsample = sum(
            blocks_flops([stage], 3 * (R * 2**i) ** 2) for i, stage in enumerate(self.upsample)
        )
        return linear_flops(self.code_in, 3 * R * R) + blocks_flops(self.blocks, R) + upsample


class Upsample(nn.Module):
    """Doubles a plane by interpolation and a convolution.

    A strided deconvolution would leave a checkerboard.
    """

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(width_in, width_out, 1)
        self.refine = nn.Conv2d(width_out, width_out, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.interpolate(self.reduce(x), scale_factor=2, mode="bilinear", align_corners=False)
        return x + F.gelu(self.refine(x))

    def flops(self, pixels: int) -> int:
        """Operations for `pixels` input pixels."""
        return 2 * pixels * (self.reduce.weight.numel() + 4 * self.refine.weight.numel())


class OccupancyHead(nn.Module):
    """MLP from the three sampled features of a point to one logit, positive inside."""

    adamw_parameters = ("logit",)

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        widths = [3 * config.plane_channels] + [config.occupancy_width] * (
            config.occupancy_layers - 1
        )
        hidden = [
            layer for a, b in itertools.pairwise(widths) for layer in (nn.Linear(a, b), nn.GELU())
        ]
        self.mlp = nn.Sequential(*hidden)
        self.logit = nn.Linear(widths[-1], 1)

    def forward(self, planes: Tensor, points: Tensor) -> Tensor:
        """Planes (B, 3, C, S, S), points (B, M, 3) in [-1, 1] -> logits (B, M)."""
        return self.logit(self.mlp(sample_planes(planes, points)))[..., 0]

    def flops(self, num_points: int) -> int:
        return linear_flops(self, num_points)
