"""The 3D VQ-VAE (TAR3D, arXiv 2412.16919, section 3.1): surface points -> tokens -> occupancy.

The only module of the folder that other code needs:

    latents = model.encode(surface)          (B, 3, R, R, K)
    tokens  = model.tokenize(surface)        Tokens (B, T), GPT order
    plane   = model.decode(tokens)           Triplane (B, 3, C, S, S)
    logits  = model.query(plane, points)     (B, M), positive inside

It never sees a file, marching cubes or an optimizer. `ENCODERS` and `QUANTIZERS` are the tables of
its exchangeable parts.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from tar3d.config import TokenizerConfig
from tar3d.contracts import Tokens, Triplane
from tar3d.layouts import base, layout_class
from tar3d.layouts.triplane import to_planes, to_sequence
from tar3d.tokenizer.blocks import linear_flops
from tar3d.tokenizer.decoder import OccupancyHead, TriplaneDecoder
from tar3d.tokenizer.ema_quantizer import EMAQuantizer
from tar3d.tokenizer.encoder import CrossAttentionEncoder, PlanePoolEncoder, SurfaceEncoder
from tar3d.tokenizer.fsq import FSQ
from tar3d.tokenizer.quantizer import Quantized, Quantizer

# Names in a config (tokenizer.encoder, tokenizer.quantizer) -> classes, built from the config.
ENCODERS: dict[str, Callable[[TokenizerConfig], SurfaceEncoder]] = {
    "cross_attention": CrossAttentionEncoder,
    "plane_pool": PlanePoolEncoder,
}
QUANTIZERS: dict[str, Callable[[TokenizerConfig], Quantizer]] = {"ema": EMAQuantizer, "fsq": FSQ}


Part = TypeVar("Part")


@dataclass
class TokenizerOutput:
    """Result of a training pass."""

    logits: Tensor  # (B, M)
    commitment: Tensor  # scalar, zero in the autoencoder stage
    ids: Tensor | None  # (B, 3, R, R), None in the autoencoder stage
    consistency: Tensor  # scalar, zero without another sampling


def build_part(
    key: str,
    name: str,
    table: dict[str, Callable[[TokenizerConfig], Part]],
    config: TokenizerConfig,
) -> Part:
    """The part that `name`, the value of the config's `key`, stands for.

    Raises ValueError for a name that is not in `table`.
    """
    if name not in table:
        raise ValueError(f"tokenizer.{key} is {name!r}, allowed are {', '.join(table)}")
    return table[name](config)


def build_encoder(config: TokenizerConfig) -> SurfaceEncoder:
    """The encoder that the config names."""
    return build_part("encoder", config.encoder, ENCODERS, config)


def sampling_noise(latents: Tensor, other: Tensor) -> Tensor:
    """Share of the latents' variance over shapes that comes from the points drawn, a scalar.

    `latents` and `other` (B, 3, R, R, K) are of two samplings of B >= 2 shapes; those of `other`
    count as fixed. A share, because latents that only come closer to each other would gain nothing:
    their codes would follow. Raises ValueError for a single shape.
    """
    if len(latents) < 2:
        raise ValueError(
            "train.consistency_weight compares shapes, but a forward pass has 1: write a "
            "train.batch_size, and train.micro_batch_size if any, of at least 2 shapes a device"
        )
    spread = latents.var(0).sum(-1).mean()
    return (latents - other).square().sum(-1).mean() / (2 * spread)


class VQVAE(nn.Module):
    """Encoder, quantizer and decoder of shapes, as one module."""

    adamw_parameters = ("to_code",)  # 768 -> 8 is a projection to coordinates, not a hidden matrix

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = build_encoder(config)
        self.to_code = nn.Linear(config.width, config.code_dim)
        self.quantizer = build_part("quantizer", config.quantizer, QUANTIZERS, config)
        self.decoder = TriplaneDecoder(config)
        self.occupancy = OccupancyHead(config)

    def encode(self, surface: Tensor) -> Tensor:
        """Points in [-1, 1]^3 with unit normals (B, N, 6) -> latents (B, 3, R, R, K).

        Any float dtype is taken. Latents are in the space of the codes, not yet quantized.
        """
        return self.quantizer.project(self.to_code(self.encoder(surface.float())))

    @torch.inference_mode()
    def tokenize(self, surface: Tensor) -> Tokens:
        """Surface points (B, N, 6) -> tokens (B, T), in the order in which a GPT reads them."""
        return self.tokens_of(self.encode(surface))

    def tokens_of(self, latents: Tensor) -> Tokens:
        """The nearest codes of latents (B, 3, R, R, K), (B, T)."""
        ids = self.quantizer.nearest(latents.reshape(-1, self.config.code_dim))
        return Tokens(to_sequence(ids.view(latents.shape[:-1])))

    def decode(self, tokens: Tokens) -> Triplane:
        """Tokens (B, T) -> planes (B, 3, C, S, S).

        Raises ValueError for another layout or number of tokens, or ids outside the codebook.
        """
        if layout_class(tokens.layout).mesher != base.VQVAE:
            raise ValueError(
                f"this tokenizer decodes triplanes, the tokens have the layout {tokens.layout}"
            )
        if tokens.ids.shape[1] != self.config.num_tokens:
            raise ValueError(
                f"this tokenizer decodes {self.config.num_tokens} tokens "
                f"(R = {self.config.grid_size}), got {tokens.ids.shape[1]}"
            )
        codes = self.quantizer.lookup(to_planes(tokens.ids, self.config.grid_size))
        return Triplane(self.decoder(codes))

    def query(self, triplane: Triplane, points: Tensor) -> Tensor:
        """Points (B, M, 3) in [-1, 1]^3 -> logits (B, M), positive inside."""
        return self.occupancy(triplane.planes, points)

    def forward(
        self,
        surface: Tensor,
        points: Tensor,
        quantize: bool,
        other: Tensor | None = None,
        replace: Callable[[Quantized, Quantizer], Tensor] | None = None,
    ) -> TokenizerOutput:
        """Training pass of `surface` (B, N, 6) with query `points` (B, M, 3).

        Without `quantize`, the autoencoder stage, latents go to the decoder as they are. `other`
        (B, N, 6) is another sampling of the same shapes (`sampling_noise`). `replace` gives the
        codes (B, 3, R, R, K) that the decoder gets.
        """
        latents = self.encode(surface)
        consistency = latents.new_zeros(())
        if other is not None:
            with torch.no_grad():
                target = self.encode(other)
            consistency = sampling_noise(latents, target)
        if quantize:
            quantized = self.quantizer(latents)
            codes, commitment, ids = quantized.codes, quantized.commitment, quantized.ids
            if replace is not None:
                codes = replace(quantized, self.quantizer)
        else:
            codes, commitment, ids = latents, latents.new_zeros(()), None
        logits = self.occupancy(self.decoder(codes), points)
        return TokenizerOutput(logits, commitment, ids, consistency)

    def flops(self, surface_points: int, query_points: int) -> int:
        """Operations of `forward` with the codebook for one shape, a multiply-add counted as two.

        Matrix products, convolutions and attention count. Forward and backward together are three
        times as many, to within the comparison with the codebook (0.2 % at the paper's size), which
        has no backward.
        """
        T = self.config.num_tokens
        return (
            self.encoder.flops(surface_points)
            + linear_flops(self.to_code, T)
            + self.quantizer.flops(T)
            + self.decoder.flops()
            + self.occupancy.flops(query_points)
        )
