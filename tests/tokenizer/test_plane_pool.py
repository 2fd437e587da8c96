"""Sums between points and cells: right, each the other's gradient, and an encoder that equals its
plain form."""

import dataclasses

import pytest
import torch

from benchmarks.suites.tokenizer import PlainPlanePoolEncoder
from tar3d.config import TokenizerConfig
from tar3d.tokenizer.encoder import PlanePoolEncoder
from tar3d.tokenizer.planes import PlaneCells, plane_cells

CONFIG = TokenizerConfig(
    grid_size=4,
    width=16,
    num_heads=2,
    num_frequencies=3,
    encoder="plane_pool",
    encoder_layers=1,
    point_width=8,
)


def points(*shape: int, seed: int = 0) -> torch.Tensor:
    """In [0, 1]^3, so that most cells of the planes are empty."""
    return torch.rand(*shape, 3, generator=torch.Generator().manual_seed(seed))


def test_mean_and_count_of_each_cell():
    x, at = torch.randn(2, 50, 4, generator=torch.Generator().manual_seed(2)), points(2, 50)
    cells = PlaneCells(at, 6)
    mean, where = cells.mean(x), plane_cells(at, 6)
    assert (
        mean.shape == (2, 3, 36, 4)
        and cells.count.shape == (2, 3, 36, 1)
        and (cells.count == 0).any()
    )
    for b in range(2):
        for plane in range(3):
            for cell in range(36):
                chosen = x[b, where[plane, b] == cell]
                assert cells.count[b, plane, cell].item() == len(chosen)
                expected = chosen.mean(0) if len(chosen) else torch.zeros(4)
                assert torch.allclose(mean[b, plane, cell], expected, atol=1e-6)


def test_a_point_reads_the_sum_of_its_three_cells():
    at, table = points(2, 50), torch.randn(2, 3, 36, 4, generator=torch.Generator().manual_seed(3))
    read, where = PlaneCells(at, 6).read(table), plane_cells(at, 6)
    for b in range(2):
        assert torch.allclose(
            read[b], sum(table[b, plane, where[plane, b]] for plane in range(3)), atol=1e-6
        )


def test_gradients_against_finite_differences(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "float", lambda x: x)  # the check wants float64 all the way
    cells = PlaneCells(points(2, 7), 3)
    x = torch.randn(2, 7, 2, dtype=torch.float64, requires_grad=True)
    table = torch.randn(2, 3, 9, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(cells.mean, x) and torch.autograd.gradcheck(cells.read, table)


def test_sums_are_float32():
    """2,000 bfloat16 ones in one cell: a bfloat16 sum would stop at 256."""
    cells, x = (
        PlaneCells(torch.zeros(1, 2000, 3), 1),
        torch.ones(1, 2000, 1, dtype=torch.bfloat16, requires_grad=True),
    )
    mean = cells.mean(x)
    assert (
        mean.dtype == torch.float32
        and mean.tolist() == [[[[1.0]]] * 3]
        and cells.count.flatten().tolist() == [2000.0] * 3
    )
    table = torch.ones(1, 3, 1, 1, dtype=torch.bfloat16, requires_grad=True)
    cells.read(table).sum().backward()
    assert table.grad.tolist() == [[[[2000.0]]] * 3]


def pair(device: str = "cpu") -> tuple[PlainPlanePoolEncoder, PlanePoolEncoder]:
    torch.manual_seed(0)
    plain, encoder = PlainPlanePoolEncoder(CONFIG).to(device), PlanePoolEncoder(CONFIG).to(device)
    encoder.load_state_dict(plain.state_dict())
    return plain, encoder


def run(
    encoder: PlanePoolEncoder, surface: torch.Tensor
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    out = encoder(surface)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.device)
    return out, list(
        torch.autograd.grad((out.float() * weights).sum(), [surface, *encoder.parameters()])
    )


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize(
    "batch, count", [(1, 1), (1, 30), (3, 500)], ids=["one point", "few", "many"]
)
def test_the_encoder_equals_its_plain_form(batch, count, device):
    surface = (
        torch.cat([points(batch, count), points(batch, count, seed=1)], dim=-1)
        .to(device)
        .requires_grad_()
    )
    (expected, expected_gradients), (out, gradients) = (
        run(encoder, surface) for encoder in pair(device)
    )
    assert torch.allclose(out, expected, atol=1e-5)
    for gradient, true in zip(gradients, expected_gradients, strict=True):
        assert (gradient - true).norm() <= 1e-5 * true.norm() + 1e-6


def test_the_encoder_equals_its_plain_form_under_autocast():
    """To bfloat16's rounding: both are as far from float32 as from each other, at most."""
    surface = torch.cat([points(2, 500), points(2, 500, seed=1)], dim=-1).requires_grad_()
    plain, encoder = pair()
    exact, exact_gradients = run(plain, surface)
    with torch.autocast("cpu", torch.bfloat16):
        results = [run(e, surface) for e in (plain, encoder)]
    (plain_error, plain_errors), (error, errors) = (
        (
            (out - exact).norm(),
            [(g - t).norm() for g, t in zip(gradients, exact_gradients, strict=True)],
        )
        for out, gradients in results
    )
    assert error <= 1.5 * plain_error and plain_error < 0.05 * exact.norm()
    assert sum(errors) <= 1.5 * sum(plain_errors)


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_a_token_sees_the_points_near_it(factor):
    """A point moves the latents of cells around its own, at every resolution of pooling."""
    torch.manual_seed(0)
    encoder = PlanePoolEncoder(dataclasses.replace(CONFIG, pool_factor=factor, encoder_layers=0))
    assert encoder.pool_size == factor * 4
    near = torch.tensor([[[-0.9, -0.9, -0.9, 0, 0, 1.0]]])
    far = torch.tensor([[[0.9, 0.9, 0.9, 0, 0, 1.0]]])
    moved = (encoder(near) - encoder(far)).abs().sum(-1) > 1e-6  # (1, 3, 4, 4)
    assert moved[..., 0, 0].all() and moved[..., 3, 3].all()
    assert not moved[..., 0, 3].any() and not moved[..., 3, 0].any()


def test_the_number_of_points_does_not_change_what_a_cell_holds():
    """A surface given four times over has the density that `density_points` of it have."""
    torch.manual_seed(0)
    surface = torch.cat([points(2, 300), points(2, 300, seed=1)], dim=-1)
    plain, scaled = (
        PlanePoolEncoder(dataclasses.replace(CONFIG, density_points=n)) for n in (0, 300)
    )
    scaled.load_state_dict(plain.state_dict())
    out = scaled(surface)
    assert torch.equal(out, plain(surface))
    assert torch.allclose(out, scaled(surface.repeat(1, 4, 1)), atol=1e-5)
    assert not torch.allclose(out, plain(surface.repeat(1, 4, 1)), atol=0.01)
