"""The one map between a token's place on the triplane and its position in the sequence."""

import numpy as np
import pytest
import torch

from tar3d.layouts.triplane import ORDERS, coordinates, num_tokens, to_planes, to_sequence


@pytest.mark.parametrize("grid", [1, 2, 5, 32])
@pytest.mark.parametrize("extra", [(), (7,)])
def test_planes_to_sequence_to_planes_is_the_identity(grid, extra):
    planes = torch.arange(2 * 3 * grid * grid * (extra[0] if extra else 1)).view(
        2, 3, grid, grid, *extra
    )
    sequence = to_sequence(planes)
    assert sequence.shape == (2, num_tokens(grid), *extra)
    assert torch.equal(to_planes(sequence, grid), planes)
    assert torch.equal(to_sequence(to_planes(sequence, grid)), sequence)


def test_coordinates_say_where_to_sequence_put_a_token():
    grid = 4
    planes = torch.randperm(3 * grid * grid).view(1, 3, grid, grid)
    row, column, plane = coordinates(np.arange(num_tokens(grid)), grid)
    assert torch.equal(to_sequence(planes)[0], planes[0, plane, row, column])


def test_the_planes_of_a_cell_are_adjacent_and_cells_follow_the_raster():
    row, column, plane = coordinates(np.array([0, 1, 2, 3, 12, 13]), 4)
    assert row.tolist() == [0, 0, 0, 0, 1, 1]
    assert column.tolist() == [0, 0, 0, 1, 0, 0]
    assert plane.tolist() == [0, 1, 2, 0, 0, 1]


@pytest.mark.parametrize("grid", [1, 2, 5])
def test_an_order_brings_a_sequence_into_it_and_back(grid):
    planes = torch.randperm(3 * grid * grid).view(1, 3, grid, grid)
    raster = to_sequence(planes)
    assert np.array_equal(ORDERS["cells"](grid), np.arange(num_tokens(grid)))
    assert torch.equal(raster[:, ORDERS["planes"](grid)], planes.flatten(1))
    for order in ORDERS.values():
        permutation = order(grid)
        assert np.array_equal(np.sort(permutation), np.arange(num_tokens(grid)))
        assert torch.equal(raster[:, permutation][:, permutation.argsort()], raster)
        row, column, plane = coordinates(permutation, grid)
        assert torch.equal(raster[0, permutation], planes[0, plane, row, column])


def test_a_sequence_of_another_grid_is_refused():
    with pytest.raises(Exception, match="(?i)shape|rearrange"):
        to_planes(torch.zeros(1, 27, dtype=torch.int64), 4)
