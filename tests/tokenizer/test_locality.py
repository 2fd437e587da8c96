"""Without encoder layers a token knows only the points in and beside its own column: what makes
tokens predictable."""

import torch

from tar3d.config import TokenizerConfig
from tar3d.tokenizer.vqvae import VQVAE

R = 8


def latents(surface: torch.Tensor, layers: int) -> torch.Tensor:
    """(1, N, 6) -> (3, R, R, K)."""
    torch.manual_seed(0)
    config = TokenizerConfig(
        grid_size=R,
        width=16,
        num_heads=2,
        encoder="plane_pool",
        encoder_layers=layers,
        point_width=16,
        codebook_size=16,
        decoder_layers=1,
        plane_channels=4,
        upsample_stages=1,
    )
    with torch.no_grad():
        return VQVAE(config).eval().encode(surface)[0]


def points(count: int, low: float, high: float, seed: int) -> torch.Tensor:
    """(1, count, 6) in the box [low, high]^3, with unit normals."""
    generator = torch.Generator().manual_seed(seed)
    at = low + (high - low) * torch.rand(1, count, 3, generator=generator)
    return torch.cat(
        [at, torch.nn.functional.normalize(torch.randn(1, count, 3, generator=generator), dim=-1)],
        dim=-1,
    )


def test_cells_far_from_all_points_are_the_same_for_every_shape():
    one, other = (latents(points(200, 0.25, 0.95, seed), 0) for seed in (0, 1))
    far = slice(
        0, R // 2
    )  # rows and columns below 0; a column reaches three eighths of a cell further
    assert torch.equal(one[:, far, far], other[:, far, far])
    assert not torch.allclose(
        one[:, R // 2 + 1 :, R // 2 + 1 :], other[:, R // 2 + 1 :, R // 2 + 1 :], atol=1e-3
    )


def test_an_encoder_layer_lets_every_cell_know_the_whole_shape():
    one, other = (latents(points(200, 0.25, 0.95, seed), 1) for seed in (0, 1))
    assert not torch.equal(one[:, 0, 0], other[:, 0, 0])
