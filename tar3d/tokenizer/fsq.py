"""Finite scalar quantization (Mentzer et al., arXiv 2309.15505): each coordinate is rounded alone.

Coordinate k takes one of `tokenizer.fsq_levels[k]` values, evenly spaced in [-1, 1]. The codes are
all combinations, so that nothing is learned or revived, and a latent that moves across a bound
changes one coordinate by one step. All arithmetic is float32, also under autocast.
"""

import math

import torch
from torch import Tensor

from tar3d.config import TokenizerConfig
from tar3d.tokenizer.quantizer import Quantized, Quantizer


class FSQ(Quantizer):
    """Rounds each coordinate to one of its levels. There is no commitment loss.

    Raises ValueError where `fsq_levels`, `code_dim` and `codebook_size` contradict each other.
    """

    levels: Tensor  # (K,) float32
    place_values: Tensor  # (K,) int64

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__(config.codebook_size, config.code_dim)
        levels = config.fsq_levels
        if not levels or min(levels) < 2:
            raise ValueError(
                "tokenizer.quantizer=fsq needs tokenizer.fsq_levels, the number of values of each "
                f"coordinate, each at least 2, as in [8,8,8,8], got {levels}"
            )
        if (len(levels), math.prod(levels)) != (self.code_dim, self.codebook_size):
            raise ValueError(
                f"tokenizer.fsq_levels {levels} make {math.prod(levels)} codes of {len(levels)} "
                f"coordinates: write tokenizer.codebook_size={math.prod(levels)} "
                f"tokenizer.code_dim={len(levels)}, got {self.codebook_size} and {self.code_dim}"
            )
        sizes = torch.tensor(levels)
        places = torch.tensor([math.prod(levels[:k]) for k in range(len(levels))])
        digits = torch.arange(self.codebook_size)[:, None] // places % sizes
        self.register_buffer("levels", sizes.float(), persistent=False)
        self.register_buffer("place_values", places, persistent=False)
        self.register_buffer("codebook", digits * 2.0 / (sizes - 1) - 1)  # (V, K)

    def project(self, latents: Tensor) -> Tensor:
        """Latents (..., K) -> (..., K) in [-1, 1], float32."""
        return latents.float().tanh()

    def forward(self, latents: Tensor) -> Quantized:
        """Projected latents (..., K) -> their codes."""
        with torch.autocast(latents.device.type, enabled=False):
            z = latents.float()
            ids = self.nearest(z.detach().reshape(-1, self.code_dim))
            codes = self.codebook[ids].view_as(z)
            return Quantized(z + (codes - z).detach(), ids.view(z.shape[:-1]), z.new_zeros(()))

    def nearest(self, flat: Tensor) -> Tensor:
        """Ids (L,) of the codes nearest to projected latents (L, K)."""
        digits = ((flat + 1) / 2 * (self.levels - 1)).round().clamp_min(0).minimum(self.levels - 1)
        return (digits.long() * self.place_values).sum(-1)

    def flops(self, num_latents: int) -> int:  # noqa: ARG002 (there is no product)
        return 0
