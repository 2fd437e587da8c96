"""The tokenizer as a whole: shapes, refusals, determinism, and that it can learn a shape through
its codebook."""

import numpy as np
import pytest
import torch

from tar3d.config import OptimConfig, TokenizerConfig
from tar3d.contracts import Tokens
from tar3d.layouts.triplane import to_sequence
from tar3d.optim.groups import build_optimizers
from tar3d.tokenizer.loss import intersection_over_union, tokenizer_loss
from tar3d.tokenizer.vqvae import VQVAE, sampling_noise

ENCODERS = ("cross_attention", "plane_pool")
BOX = np.array([0.5, 0.4, 0.35])  # half sides of a box around (-0.3, -0.1, 0)
BALL, RADIUS = np.array([0.45, 0.3, 0.1]), 0.42


def tiny(encoder: str, **changes: int) -> VQVAE:
    torch.manual_seed(0)
    values = {
        "grid_size": 4,
        "width": 16,
        "num_heads": 2,
        "num_frequencies": 3,
        "encoder_layers": 1,
        "point_width": 8,
        "codebook_size": 32,
        "code_dim": 4,
        "decoder_layers": 1,
        "plane_channels": 4,
        "upsample_stages": 2,
        "occupancy_width": 16,
        "occupancy_layers": 2,
    }
    return VQVAE(TokenizerConfig(encoder=encoder, **values | changes))


def cloud(batch: int, count: int = 200) -> torch.Tensor:
    points = torch.randn(batch, count, 3, generator=torch.Generator().manual_seed(batch))
    normals = torch.nn.functional.normalize(points, dim=-1)
    return torch.cat([0.7 * normals, normals], dim=-1)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_shapes(encoder):
    model = tiny(encoder).eval()
    surface, points = cloud(2), torch.rand(2, 30, 3) * 2 - 1
    assert model.encode(surface).shape == (2, 3, 4, 4, 4)
    tokens = model.tokenize(surface)
    assert tokens.ids.shape == (2, 48)
    plane = model.decode(tokens)
    assert plane.planes.shape == (2, 3, 4, 16, 16)
    assert model.query(plane, points).shape == (2, 30)
    output = model(surface, points, quantize=True)
    assert output.logits.shape == (2, 30) and torch.equal(to_sequence(output.ids), tokens.ids)
    assert model(surface, points, quantize=False).ids is None


@pytest.mark.parametrize("encoder", ENCODERS)
def test_decoding_tokens_is_the_training_pass(encoder):
    model = tiny(encoder).eval()
    surface, points = cloud(2), torch.rand(2, 30, 3) * 2 - 1
    with torch.no_grad():
        direct = model(surface, points, quantize=True).logits
        through_tokens = model.query(model.decode(model.tokenize(surface)), points)
    assert torch.allclose(direct, through_tokens, atol=1e-5)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_encoding_is_deterministic_and_independent_of_the_batch(encoder):
    model, surface = tiny(encoder).eval(), cloud(3)
    with torch.no_grad():
        together = model.encode(surface)
        assert torch.equal(model.encode(surface), together)
        alone = torch.cat([model.encode(row[None]) for row in surface])
    assert torch.allclose(together, alone, atol=1e-5)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_a_surface_in_float16_is_widened(encoder):
    model, surface = tiny(encoder).eval(), cloud(1).half()
    with torch.no_grad():
        assert torch.equal(model.encode(surface), model.encode(surface.float()))


@pytest.mark.parametrize("encoder", ENCODERS)
def test_the_order_of_the_points_does_not_matter(encoder):
    model, surface = tiny(encoder).eval(), cloud(1)
    shuffled = surface[:, torch.randperm(200, generator=torch.Generator().manual_seed(0))]
    with torch.no_grad():
        assert torch.allclose(model.encode(surface), model.encode(shuffled), atol=1e-4)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_every_parameter_learns(encoder):
    model = tiny(encoder)
    output = model(cloud(2), torch.rand(2, 30, 3) * 2 - 1, quantize=True)
    (output.logits.square().mean() + output.commitment).backward()
    still = [
        name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0
    ]
    assert still == []


def test_tokens_of_another_grid_or_codebook_are_refused():
    model = tiny("plane_pool")
    with pytest.raises(ValueError, match=r"decodes 48 tokens \(R = 4\), got 27"):
        model.decode(Tokens(torch.zeros(1, 27, dtype=torch.int64)))
    for bad in (-1, 32):
        with pytest.raises(ValueError, match=r"leave the codebook 0\.\.31"):
            model.decode(Tokens(torch.full((1, 48), bad)))


def test_tokens_are_the_same_under_autocast():
    """The comparison with the codebook stays float32, whoever calls it and where."""
    model, codes = (
        tiny("plane_pool").eval(),
        torch.nn.functional.normalize(torch.randn(1, 3, 4, 4, 4), dim=-1),
    )
    model.encode = lambda surface: codes
    plain = model.tokenize(cloud(1)).ids
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model.tokenize(cloud(1)).ids, plain)


def solid(points: np.ndarray) -> np.ndarray:
    in_box = (np.abs(points - [-0.3, -0.1, 0.0]) < BOX).all(-1)
    return in_box | (np.linalg.norm(points - BALL, axis=-1) < RADIUS)


def solid_surface(count: int, rng: np.random.Generator) -> np.ndarray:
    """Points on the two boundaries where they bound the union, with normals."""
    axis, sign = rng.integers(0, 3, count), rng.choice([-1.0, 1.0], count)
    on_box = rng.uniform(-1, 1, (count, 3)) * BOX
    box_normals = np.zeros((count, 3))
    box_normals[np.arange(count), axis] = sign
    on_box[np.arange(count), axis] = sign * BOX[axis]
    ball_normals = rng.standard_normal((count, 3))
    ball_normals /= np.linalg.norm(ball_normals, axis=-1, keepdims=True)
    points = np.concatenate([on_box + [-0.3, -0.1, 0.0], BALL + RADIUS * ball_normals])
    normals = np.concatenate([box_normals, ball_normals])
    outer = ~solid(points + 1e-4 * normals)
    chosen = rng.permutation(np.flatnonzero(outer))[:count]
    return np.concatenate([points, normals], axis=-1)[chosen].astype(np.float32)


def test_it_overfits_one_shape_through_its_codebook():
    """A box and a ball, asymmetric in every axis: volume IoU of at least 0.95 on points that were
    never trained on."""
    rng = np.random.default_rng(0)
    model = tiny(
        "plane_pool",
        grid_size=8,
        width=32,
        codebook_size=64,
        plane_channels=8,
        occupancy_width=32,
        occupancy_layers=3,
    )
    optimizers = build_optimizers(model, OptimConfig(muon_lr=0.01, adamw_lr=0.005))
    revival = torch.Generator().manual_seed(0)
    surface = torch.from_numpy(solid_surface(1024, rng))[None]
    steps, first_codebook_step = 300, 100
    for step in range(steps):
        if step == first_codebook_step:
            model.quantizer.init_from_latents(
                model.encode(surface).detach().flatten(0, -2), revival
            )
        points = rng.uniform(-1, 1, (1, 1024, 3)).astype(np.float32)
        inside = torch.from_numpy(solid(points))
        output = model(surface, torch.from_numpy(points), quantize=step >= first_codebook_step)
        loss = tokenizer_loss(
            output.logits,
            inside,
            torch.zeros_like(inside),
            output.commitment,
            near_weight=0.0,
            commitment_weight=0.25,
        )
        loss.total.backward()
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * (1 - step / steps)
            optimizer.step()
            optimizer.zero_grad()
        if step >= first_codebook_step:
            model.quantizer.step(revival)
    model.eval()
    points = rng.uniform(-1, 1, (1, 20_000, 3)).astype(np.float32)
    logits = model.query(model.decode(model.tokenize(surface)), torch.from_numpy(points))
    inside = torch.from_numpy(solid(points))
    assert intersection_over_union(logits, inside, torch.ones_like(inside)).item() >= 0.95


def test_sampling_noise_is_a_share_of_the_variance():
    """Noise of a known share is found; smaller latents have the same share; one shape has none."""
    generator = torch.Generator().manual_seed(0)
    signal = torch.randn(4000, 1, 1, 1, 3, generator=generator)
    first, second = (
        0.8 * signal + 0.6 * torch.randn(signal.shape, generator=generator) for _ in range(2)
    )
    share = sampling_noise(first, second)
    assert share.item() == pytest.approx(0.36, abs=0.02)
    torch.testing.assert_close(sampling_noise(0.1 * first, 0.1 * second), share)
    with pytest.raises(ValueError, match="at least 2 shapes"):
        sampling_noise(first[:1], second[:1])
