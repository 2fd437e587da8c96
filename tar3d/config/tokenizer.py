"""The 3D VQ-VAE."""

from __future__ import annotations

from dataclasses import dataclass, field

from tar3d.config.checks import at_least, require
from tar3d.layouts.triplane import num_tokens


@dataclass(kw_only=True)
class TokenizerConfig:
    """The 3D VQ-VAE. The defaults are the paper's (arXiv 2412.16919, section 4.1)."""

    # R; a shape is T = 3 R^2 tokens.
    grid_size: int = 32
    width: int = 768
    num_heads: int = 12
    num_frequencies: int = 8
    # A name in ENCODERS of tar3d/tokenizer/vqvae.py.
    encoder: str = "cross_attention"
    # A name in QUANTIZERS of the same file.
    quantizer: str = "ema"
    # FSQ's number of values of each coordinate: code_dim numbers, of which codebook_size is the
    # product.
    fsq_levels: list[int] = field(default_factory=list)
    encoder_layers: int = 8
    # Hidden width of plane_pool's per-point network.
    point_width: int = 128
    # plane_pool pools points on planes this many times finer than the tokens: 1, 2 or 4. Fewer
    # cells hold more points each, and change less with the points that were drawn.
    pool_factor: int = 4
    # plane_pool counts the points of a cell as if a shape had so many. A training puts for 0 what
    # the state or the --init has that it starts from, else train.surface_points.
    density_points: int = 0
    codebook_size: int = 16_384
    code_dim: int = 8
    decoder_layers: int = 6
    plane_channels: int = 32
    # Each stage doubles the planes' side: R 2^stages at the end.
    upsample_stages: int = 3
    occupancy_width: int = 128
    occupancy_layers: int = 4

    def __post_init__(self) -> None:
        at_least(
            1,
            self,
            "tokenizer.",
            "grid_size",
            "width",
            "num_heads",
            "point_width",
            "code_dim",
            "plane_channels",
            "upsample_stages",
            "occupancy_width",
            "occupancy_layers",
        )
        at_least(
            0,
            self,
            "tokenizer.",
            "num_frequencies",
            "encoder_layers",
            "decoder_layers",
            "density_points",
        )
        at_least(2, self, "tokenizer.", "codebook_size")
        require(
            self.pool_factor in (1, 2, 4),
            f"tokenizer.pool_factor is {self.pool_factor}, allowed are 1, 2, 4",
        )
        require(
            self.width % self.num_heads == 0,
            f"tokenizer.width {self.width} is not divisible by num_heads {self.num_heads}",
        )

    @property
    def num_tokens(self) -> int:
        """Tokens of a shape."""
        return num_tokens(self.grid_size)
