"""The occupancy of one triplane as a function of points, against `VQVAE.query`; and how a
tokenizer's mesh is made of it."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tar3d import checkpoint
from tar3d.config import TokenizerConfig
from tar3d.contracts import Triplane
from tar3d.data.toy.shapes import generate
from tar3d.mesh.extract import extract
from tar3d.mesh.points import sample_surface
from tar3d.pipeline import mesh_from_triplane, reconstruct
from tar3d.placement import Placement
from tar3d.tokenizer.field import OccupancyField
from tar3d.tokenizer.vqvae import VQVAE

TINY = Path(__file__).resolve().parents[2] / "pretrained" / "tiny"


@pytest.mark.parametrize("layers", [1, 2, 4])
@pytest.mark.parametrize("side", [2, 7])
def test_it_is_the_query_of_the_tokenizer(layers, side):
    torch.manual_seed(0)
    vqvae = VQVAE(
        TokenizerConfig(
            grid_size=2,
            width=8,
            num_heads=2,
            encoder="plane_pool",
            encoder_layers=0,
            point_width=8,
            codebook_size=8,
            decoder_layers=1,
            plane_channels=5,
            occupancy_width=12,
            occupancy_layers=layers,
        )
    ).eval()
    planes = torch.randn(1, 3, 5, side, side)
    edges = torch.cartesian_prod(*[torch.tensor([-1.0, -0.999, 0.0, 1 - 1 / side, 1.0])] * 3)
    points = torch.cat([torch.rand(500, 3) * 2 - 1, edges])
    expected = vqvae.query(Triplane(planes), points[None])[0]
    assert torch.allclose(OccupancyField(vqvae.occupancy, planes[0])(points), expected, atol=2e-6)
    assert torch.allclose(
        OccupancyField(vqvae.occupancy, planes[0].half())(points), expected, atol=1e-2
    )


@pytest.fixture(scope="module")
def shipped() -> tuple[VQVAE, np.ndarray]:
    surface = sample_surface(generate(1, 0).mesh, 8192, np.random.default_rng(0))
    return checkpoint.load_tokenizer(TINY).eval(), surface


def triplane(vqvae: VQVAE, surface: np.ndarray) -> Triplane:
    with torch.no_grad():
        return vqvae.decode(vqvae.tokenize(torch.from_numpy(surface)[None]))


def test_the_mesh_is_that_of_the_plain_query_on_the_dense_lattice(shipped):
    vqvae, surface = shipped
    planes = triplane(vqvae, surface)
    with torch.no_grad():
        dense = extract(lambda points: vqvae.query(planes, points[None])[0], 128, coarse=128)
    mesh = mesh_from_triplane(vqvae, planes, 128)
    assert (mesh.faces == dense.faces).all()
    assert np.abs(mesh.vertices - dense.vertices).max() < 1e-3 * 2 / 128, "a thousandth of a cell"


def test_planes_in_half_precision_move_the_surface_by_a_fraction_of_a_cell(shipped):
    vqvae, surface = shipped
    planes = triplane(vqvae, surface)
    mesh = mesh_from_triplane(vqvae, planes, 128)
    half = mesh_from_triplane(vqvae, Triplane(planes.planes.half()), 128)
    distance = torch.cdist(
        torch.from_numpy(half.vertices[::20]), torch.from_numpy(mesh.vertices)
    ).amin(dim=1)
    assert distance.max() < 0.1 * 2 / 128 and abs(len(half.faces) / len(mesh.faces) - 1) < 0.01


def test_low_vram_moves_each_part_to_the_device_while_it_works(shipped, monkeypatch):
    vqvae, surface = shipped
    moves = []
    names = {module: name for name, module in vqvae.named_children()}
    monkeypatch.setattr(
        torch.nn.Module, "to", lambda self, device: moves.append((names[self], str(device))) or self
    )
    placement = Placement(
        torch.device("cpu", 0), low_vram=True
    )  # by its number it is told from where the models rest
    mesh, tokens = reconstruct(vqvae, surface, 32, placement=placement)
    works = [["encoder", "to_code", "quantizer"], ["quantizer", "decoder"], ["occupancy"]]
    assert moves == [
        (name, device) for work in works for device in ("cpu:0", "cpu") for name in work
    ]
    monkeypatch.undo()
    plain, same_tokens = reconstruct(vqvae, surface, 32)
    assert (tokens.ids == same_tokens.ids).all()
    assert abs(len(mesh.faces) / len(plain.faces) - 1) < 0.02


def test_a_part_comes_back_when_its_work_fails():
    moves = []

    class Part(torch.nn.Module):
        def to(self, device):
            moves.append(str(device))

    with (
        pytest.raises(ZeroDivisionError),
        Placement(torch.device("cpu", 0), low_vram=True).on_device(Part()),
    ):
        raise ZeroDivisionError
    assert moves == ["cpu:0", "cpu"]


def test_weights_that_were_moved_can_still_be_trained():
    layer = torch.nn.Linear(2, 2).double()
    with torch.inference_mode(), Placement(torch.device("cpu"), low_vram=True).on_device(layer):
        layer(torch.zeros(1, 2, dtype=torch.float64))
    layer(torch.ones(1, 2, dtype=torch.float64)).sum().backward()
    assert layer.weight.grad is not None
