"""The 3D VQ-VAE: surface points -> tokens -> triplane -> occupancy. The folder's only face.

    latents = model.encode(surface)          (B, 3, R, R, K)
    tokens  = model.tokenize(surface)        Tokens (B, T), GPT order
    plane   = model.decode(tokens)           Triplane (B, 3, C, S, S)
    logits  = model.query(plane, points)     (B, M), positive inside

It never sees a file, marching cubes or an optimizer. TAR3D, arXiv 2412.16919, section 3.1.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tar3d.config import TokenizerConfig
from tar3d.contracts import Tokens, Triplane
from tar3d.layouts.triplane import to_planes, to_sequence
from tar3d.tokenizer.blocks import linear_flops
from tar3d.tokenizer.decoder import OccupancyHead, TriplaneDecoder
from tar3d.tokenizer.encoder import build_encoder
from tar3d.tokenizer.quantize import Quantizer, normalize


@dataclass
class TokenizerOutput:
    logits: Tensor  # (B, M)
    commitment: Tensor  # scalar, zero in the autoencoder stage
    ids: Tensor | None  # (B, 3, R, R), None in the autoencoder stage


class VQVAE(nn.Module):
    adamw_parameters = ("to_code",)  # 768 -> 8 is a projection to coordinates, not a hidden matrix

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = build_encoder(config)
        self.to_code = nn.Linear(config.width, config.code_dim)
        self.quantizer = Quantizer(config.codebook_size, config.code_dim)
        self.decoder = TriplaneDecoder(config)
        self.occupancy = OccupancyHead(config)

    def encode(self, surface: Tensor) -> Tensor:
        """(B, N, 6) points in [-1, 1]^3 with unit normals, of any float dtype -> (B, 3, R, R, K)
        unit latents, not yet quantized."""
        return normalize(self.to_code(self.encoder(surface.float())))

    @torch.inference_mode()
    def tokenize(self, surface: Tensor) -> Tokens:
        latents = self.encode(surface)
        ids = self.quantizer.nearest(latents.reshape(-1, self.config.code_dim))
        return Tokens(to_sequence(ids.view(latents.shape[:-1])))

    def decode(self, tokens: Tokens) -> Triplane:
        if tokens.ids.shape[1] != self.config.num_tokens:
            raise ValueError(
                f"this tokenizer decodes {self.config.num_tokens} tokens (R = {self.config.grid_size}), "
                f"got {tokens.ids.shape[1]}"
            )
        codes = self.quantizer.lookup(to_planes(tokens.ids, self.config.grid_size))
        return Triplane(self.decoder(codes))

    def query(self, triplane: Triplane, points: Tensor) -> Tensor:
        """Points (B, M, 3) in [-1, 1]^3 -> (B, M) logits of being inside."""
        return self.occupancy(triplane.planes, points)

    def forward(self, surface: Tensor, points: Tensor, quantize: bool) -> TokenizerOutput:
        """The training pass. `quantize=False` is the autoencoder stage: latents go to the decoder
        as they are."""
        latents = self.encode(surface)
        if quantize:
            quantized = self.quantizer(latents)
            codes, commitment, ids = quantized.codes, quantized.commitment, quantized.ids
        else:
            codes, commitment, ids = latents, latents.new_zeros(()), None
        return TokenizerOutput(self.occupancy(self.decoder(codes), points), commitment, ids)

    def flops(self, surface_points: int, query_points: int) -> int:
        """Operations of `forward` with the codebook, for one shape: matrix products, convolutions
        and attention, a multiply-add counted as two. Forward and backward together are three times
        as many, to within the comparison with the codebook (0.2 % at the paper's size), which has
        no backward."""
        T, K = self.config.num_tokens, self.config.code_dim
        comparison = 2 * T * self.config.codebook_size * K
        return (
            self.encoder.flops(surface_points)
            + linear_flops(self.to_code, T)
            + comparison
            + self.decoder.flops()
            + self.occupancy.flops(query_points)
        )
