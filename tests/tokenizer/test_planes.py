"""Where a point is on the planes: sampling, pooling and the decoder's features must agree about
it."""

import pytest
import torch

from tar3d.contracts import PLANES
from tar3d.tokenizer.planes import plane_cells, sample_by_gathering, sample_planes

AXES = {"x": 0, "y": 1, "z": 2}


def centre(cell: int, grid: int) -> float:
    return -1 + (2 * cell + 1) / grid


@pytest.mark.parametrize("axis, still", [("x", "yz"), ("y", "xz"), ("z", "xy")])
def test_moving_along_one_axis_leaves_exactly_one_plane_unchanged(axis, still):
    planes = torch.randn(1, 3, 5, 8, 8, generator=torch.Generator().manual_seed(0))
    here = torch.tensor([[[0.13, -0.41, 0.27]]])
    there = here.clone()
    there[..., AXES[axis]] += 0.4
    before, after = (sample_planes(planes, p).view(3, 5) for p in (here, there))
    unchanged = [
        name for name, a, b in zip(PLANES, before, after, strict=True) if torch.equal(a, b)
    ]
    assert unchanged == [still]


@pytest.mark.parametrize("plane", PLANES)
def test_a_spike_is_read_back_at_its_world_coordinate(plane):
    row, column, grid = 1, 5, 8
    planes = torch.zeros(1, 3, 1, grid, grid)
    planes[0, PLANES.index(plane), 0, row, column] = 1.0
    point = torch.full((3,), 0.9)
    point[AXES[plane[0]]] = centre(column, grid)  # the columns of plane `ab` run along a
    point[AXES[plane[1]]] = centre(row, grid)
    sampled = sample_planes(planes, point[None, None])[0, 0]
    assert sampled[PLANES.index(plane)].item() == pytest.approx(1.0, abs=1e-6)
    assert sampled.sum().item() == pytest.approx(1.0, abs=1e-6)
    swapped = point.clone()
    swapped[[AXES[plane[0]], AXES[plane[1]]]] = point[[AXES[plane[1]], AXES[plane[0]]]]
    assert sample_planes(planes, swapped[None, None]).abs().max() < 1e-6


def test_half_way_between_two_cells_is_their_mean_and_the_border_value_holds_outside():
    planes = (
        torch.arange(4.0).view(1, 1, 1, 1, 4).expand(1, 3, 1, 4, 4).contiguous()
    )  # value = column
    points = torch.tensor([[[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]]])
    assert sample_planes(planes, points)[0, :, 0].tolist() == pytest.approx([1.5, 3.0, 0.0])


@pytest.mark.parametrize("autocast", [False, True])
def test_points_are_not_rounded_where_planes_are_bfloat16(autocast):
    planes = (
        torch.arange(256.0).expand(1, 3, 1, 256, 256).contiguous()
    )  # value = column: exact in bfloat16
    points = torch.tensor([[[centre(column, 256), 0.0, 0.0] for column in (0, 130, 201, 255)]])
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        sampled = sample_planes(planes.bfloat16(), points)
    assert sampled.dtype == torch.bfloat16 and sampled[0, :, 0].tolist() == [0, 130, 201, 255]


@pytest.mark.parametrize("height, width", [(8, 8), (5, 9), (1, 3)])
def test_sampling_by_gathering_is_the_same_with_its_gradient(height, width):
    """It takes the place of `F.grid_sample` where a training is deterministic on a GPU."""
    generator = torch.Generator().manual_seed(0)
    planes = torch.randn(
        2, 3, height, width, generator=generator, dtype=torch.float64, requires_grad=True
    )
    grids = (
        torch.rand(2, 50, 2, generator=generator, dtype=torch.float64) * 2.4 - 1.2
    )  # some beyond the border
    mine = sample_by_gathering(planes, grids)
    theirs = torch.nn.functional.grid_sample(
        planes, grids[:, None], padding_mode="border", align_corners=False
    )[:, :, 0]
    weights = torch.randn(mine.shape, generator=generator, dtype=torch.float64)
    gradients = [
        torch.autograd.grad((sampled * weights).sum(), planes)[0] for sampled in (mine, theirs)
    ]
    assert torch.allclose(mine, theirs, atol=1e-12) and torch.allclose(*gradients, atol=1e-12)


def test_pooling_and_sampling_agree_on_where_a_point_is():
    grid, generator = 7, torch.Generator().manual_seed(1)
    points = torch.rand(1, 40, 3, generator=generator) * 2 - 1
    cells = plane_cells(points, grid)  # (3, 1, 40)
    snapped = torch.stack(
        [torch.tensor([centre(int((c + 1) / 2 * grid), grid) for c in p]) for p in points[0]]
    )[None]
    ids = (
        torch.arange(grid * grid, dtype=torch.float32)
        .view(1, 1, 1, grid, grid)
        .expand(1, 3, 1, grid, grid)
        .contiguous()
    )
    assert torch.allclose(sample_planes(ids, snapped)[0].T, cells[:, 0].float(), atol=1e-4)


def test_cells_at_the_border_of_the_cube_are_inside_the_grid():
    cells = plane_cells(torch.tensor([[[-1.0, -1.0, -1.0], [1.0, 1.0, 1.0]]]), 4)
    assert cells[:, 0].tolist() == [[0, 15]] * 3
