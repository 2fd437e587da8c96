"""`VQVAE.flops` against PyTorch's own count, and the figures that configs/vqvae3d_fast.yaml
gives."""

from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tar3d.config import TokenizerConfig, VQVAEConfig, load
from tar3d.tokenizer import blocks
from tar3d.tokenizer.vqvae import VQVAE

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


@pytest.mark.parametrize(
    "encoder, pool_factor, layers, stages",
    [
        ("cross_attention", 4, 0, 1),
        ("cross_attention", 4, 2, 3),
        ("plane_pool", 4, 0, 1),
        ("plane_pool", 2, 2, 3),
        ("plane_pool", 1, 0, 1),
    ],
)
def test_flops_are_those_that_pytorch_counts(monkeypatch, encoder, pool_factor, layers, stages):
    monkeypatch.setattr(
        blocks, "SHORT_SEQUENCE", 10**6
    )  # PyTorch does not count its fused attention on a CPU; plain attention it does
    model = VQVAE(
        TokenizerConfig(
            grid_size=4,
            width=16,
            num_heads=2,
            num_frequencies=3,
            encoder=encoder,
            pool_factor=pool_factor,
            encoder_layers=layers,
            point_width=8,
            codebook_size=32,
            code_dim=4,
            decoder_layers=layers,
            plane_channels=4,
            upsample_stages=stages,
            occupancy_width=16,
            occupancy_layers=3,
        )
    )
    with FlopCounterMode(display=False) as counter:
        model(torch.rand(1, 600, 6), torch.rand(1, 30, 3), quantize=True)
    assert model.flops(600, 30) == counter.get_total_flops()


def giga_flops(name: str) -> tuple[float, float]:
    """Of a shape forward, and of the encoder alone."""
    config = load(VQVAEConfig, CONFIGS / name)
    t = config.train
    with torch.device("meta"):
        model = VQVAE(config.tokenizer)
    return model.flops(
        t.surface_points, t.volume_points + t.near_points
    ) / 1e9, model.encoder.flops(t.surface_points) / 1e9


def test_the_fast_config_costs_a_quarter():
    whole, encoder = giga_flops("vqvae3d_fast.yaml")
    paper, paper_encoder = giga_flops("vqvae3d.yaml")
    assert 4 * whole < paper
    stated = " ".join((CONFIGS / "vqvae3d_fast.yaml").read_text().replace("#", " ").split())
    assert (
        f"{whole:.0f} GFLOP instead of {paper:,.0f}" in stated
        and f"{encoder:.0f} instead of {paper_encoder:,.0f}" in stated
    )
