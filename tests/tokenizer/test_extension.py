"""A new encoder and a new quantizer are a class and one line in a table."""

import pytest
import torch
from torch import nn

from tar3d import checkpoint
from tar3d.config import TokenizerConfig, VQVAEConfig, load
from tar3d.tokenizer import vqvae
from tar3d.tokenizer.blocks import linear_flops
from tar3d.tokenizer.encoder import SurfaceEncoder
from tar3d.tokenizer.quantizer import Quantized, Quantizer
from tar3d.tokenizer.vqvae import VQVAE

TINY = [
    "tokenizer.grid_size=4",
    "tokenizer.width=16",
    "tokenizer.num_heads=2",
    "tokenizer.encoder_layers=1",
    "tokenizer.codebook_size=27",
    "tokenizer.code_dim=3",
    "tokenizer.decoder_layers=1",
    "tokenizer.plane_channels=8",
    "tokenizer.upsample_stages=1",
    "tokenizer.occupancy_width=8",
]


class MeanEncoder(SurfaceEncoder):
    """The mean point, at learned positions."""

    adamw_parameters = ("positions",)

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        R, D = config.grid_size, config.width
        self.point = nn.Linear(6, D)
        self.positions = nn.Parameter(torch.randn(3, R, R, D))

    def forward(self, surface: torch.Tensor) -> torch.Tensor:
        return self.point(surface).mean(1)[:, None, None, None] + self.positions

    def flops(self, num_points: int) -> int:
        return linear_flops(self.point, num_points)


class Ternary(Quantizer):
    """Rounds each number to -1, 0 or 1."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__(config.codebook_size, config.code_dim)
        if self.codebook_size != 3**self.code_dim:
            raise ValueError(
                f"tokenizer.codebook_size is {self.codebook_size}, but three levels in each of "
                f"{self.code_dim} numbers (tokenizer.code_dim) make {3**self.code_dim} codes: "
                f"write tokenizer.codebook_size={3**self.code_dim}"
            )
        place_values = 3 ** torch.arange(self.code_dim)
        digits = torch.arange(self.codebook_size)[:, None] // place_values
        self.register_buffer("place_values", place_values, persistent=False)  # moves with the model
        self.register_buffer("codebook", (digits % 3 - 1).float())

    def project(self, latents: torch.Tensor) -> torch.Tensor:
        return latents.float().tanh()

    def nearest(self, flat: torch.Tensor) -> torch.Tensor:
        return ((flat.round() + 1).long() * self.place_values).sum(-1)

    def forward(self, latents: torch.Tensor) -> Quantized:
        codes = latents + (latents.round() - latents).detach()
        ids = self.nearest(latents.detach())
        return Quantized(codes, ids, latents.new_zeros(()))

    def flops(self, num_latents: int) -> int:
        return 0


def test_a_foreign_encoder_and_quantizer_train_and_come_back(monkeypatch, tmp_path):
    monkeypatch.setitem(vqvae.ENCODERS, "mean", MeanEncoder)
    monkeypatch.setitem(vqvae.QUANTIZERS, "ternary", Ternary)
    names = ["tokenizer.encoder=mean", "tokenizer.quantizer=ternary"]
    config = load(VQVAEConfig, None, [*TINY, *names])
    torch.manual_seed(0)
    model, generator = VQVAE(config.tokenizer), torch.Generator().manual_seed(0)
    surface, points = torch.rand(2, 20, 6) - 0.5, torch.rand(2, 9, 3) - 0.5
    assert model.flops(20, 9) > 0
    with torch.no_grad():
        model.quantizer.init_from_latents(model.encode(surface).flatten(0, -2), generator)
    output = model(surface, points, quantize=True)
    (output.logits.square().mean() + output.commitment).backward()
    assert model.quantizer.step(generator) == 0
    model.quantizer.discard_statistics()
    assert model.encoder.point.weight.grad.abs().sum() > 0  # through the rounding

    tokens = model.eval().tokenize(surface)
    assert torch.equal(model.quantizer.lookup(output.ids), model.encode(surface).round())
    assert model.decode(tokens).planes.shape == (2, 3, 8, 8, 8)
    checkpoint.save_model(tmp_path, model, config, {}, "")
    again = checkpoint.load_tokenizer(tmp_path)
    assert isinstance(again.quantizer, Ternary) and torch.equal(
        again.tokenize(surface).ids, tokens.ids
    )


def test_the_foreign_quantizer_works_where_its_model_is():
    quantizer = Ternary(TokenizerConfig(codebook_size=27, code_dim=3)).to("meta")
    assert quantizer(torch.zeros(2, 3, device="meta")).ids.is_meta


def test_the_foreign_quantizer_refuses_a_codebook_that_it_cannot_fill():
    with pytest.raises(ValueError, match="codebook_size is 16, .* write tokenizer.codebook_size=9"):
        Ternary(TokenizerConfig(codebook_size=16, code_dim=2))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("tokenizer.encoder=pointnet", "tokenizer.encoder is 'pointnet'.*cross_attention, plane_p"),
        ("tokenizer.quantizer=lfq", "tokenizer.quantizer is 'lfq', allowed are ema, fsq"),
    ],
)
def test_a_name_in_no_table_is_refused(override, message):
    with pytest.raises(ValueError, match=message):
        VQVAE(load(VQVAEConfig, None, [*TINY, override]).tokenizer)
