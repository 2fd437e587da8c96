"""Attention of the tokenizer: the axis groups, who sees whom, and the short form against PyTorch's
own kernel."""

import pytest
import torch
import torch.nn.functional as F

from tar3d.contracts import PLANES
from tar3d.tokenizer import blocks
from tar3d.tokenizer.blocks import (
    Attention,
    FourierFeatures,
    SharedAxisAttention,
    TriplaneBlock,
    _from_axis_groups,
    _to_axis_groups,
    attend,
)

R = 4


def place(plane: int, row: int, column: int) -> dict[str, int]:
    """Grid coordinate of a token on each axis of its plane: plane `ab` has rows along b and columns
    along a."""
    first, second = PLANES[plane]
    return {first: column, second: row}


def test_axis_groups_and_back_is_the_identity():
    x = torch.randn(2, 3, R, R, 5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(_from_axis_groups(_to_axis_groups(x)), x)


def test_the_tokens_of_a_group_share_its_coordinate():
    numbered = torch.arange(3 * R * R).view(1, 3, R, R, 1)
    groups = _to_axis_groups(numbered)[0, ..., 0]  # (R, 3, 2R)
    for axis, name in enumerate("xyz"):
        for coordinate in range(R):
            members = [divmod(int(n), R * R) for n in groups[coordinate, axis]]
            places = [place(plane, *divmod(cell, R)) for plane, cell in members]
            assert all(p[name] == coordinate for p in places)
            assert len(set(members)) == 2 * R


@pytest.mark.parametrize("plane, row, column", [(0, 1, 3), (1, 0, 2), (2, 3, 1)])
def test_attention_across_planes_connects_exactly_the_tokens_that_share_a_coordinate(
    plane, row, column
):
    torch.manual_seed(0)
    layer = SharedAxisAttention(8, 2).double()
    x = torch.randn(1, 3, R, R, 8, dtype=torch.float64)
    changed = x.clone()
    changed[0, plane, row, column] += 1.0
    with torch.no_grad():
        moved = (layer(changed) - layer(x)).abs().amax(-1)[0] > 1e-12
    mine = place(plane, row, column)
    for p in range(3):
        for r in range(R):
            for c in range(R):
                theirs = place(p, r, c)
                shares = any(mine[axis] == theirs[axis] for axis in mine.keys() & theirs.keys())
                assert moved[p, r, c].item() == shares, (p, r, c)


@pytest.mark.parametrize("keys", [1, 7, 64])
def test_short_attention_equals_the_kernel(keys):
    generator = torch.Generator().manual_seed(keys)
    q, k, v = (
        torch.randn(2, 3, n, 8, generator=generator, dtype=torch.float64, requires_grad=True)
        for n in (5, keys, keys)
    )
    weight = torch.randn(2, 3, 5, 8, generator=generator, dtype=torch.float64)
    assert keys <= blocks.SHORT_SEQUENCE
    outputs, gradients = [], []
    for form in (attend, F.scaled_dot_product_attention):
        out = form(q, k, v)
        outputs.append(out)
        gradients.append(torch.autograd.grad((out * weight).sum(), (q, k, v)))
    assert torch.allclose(*outputs, atol=1e-12)
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(*gradients, strict=True))


def test_long_and_short_attention_meet(monkeypatch):
    torch.manual_seed(0)
    layer, x, context = Attention(16, 4), torch.randn(2, 6, 16), torch.randn(2, 20, 16)
    short = layer(x, context)
    monkeypatch.setattr(blocks, "SHORT_SEQUENCE", 0)
    assert torch.allclose(layer(x, context), short, atol=1e-6)


def test_a_triplane_block_connects_every_token_with_its_own_plane():
    torch.manual_seed(0)
    block, x = TriplaneBlock(8, 2), torch.randn(1, 3, R, R, 8)
    changed = x.clone()
    changed[0, 1, 2, 3, 0] += 1.0
    with torch.no_grad():
        moved = (block(changed) - block(x)).abs().amax(-1)[0] > 0
    assert moved[1].all()


def test_rows_of_a_batch_do_not_meet():
    torch.manual_seed(0)
    block, x = TriplaneBlock(8, 2).double(), torch.randn(3, 3, R, R, 8, dtype=torch.float64)
    with torch.no_grad():
        together, alone = block(x), torch.cat([block(row[None]) for row in x])
    assert torch.allclose(together, alone, atol=1e-12)


def test_fourier_features_have_the_named_frequencies():
    features = FourierFeatures(2)
    x = torch.tensor([[0.5, -0.25, 0.125]])
    angles = torch.tensor([0.5, 1.0, -0.25, -0.5, 0.125, 0.25]) * torch.pi
    expected = torch.cat([x[0], angles.sin(), angles.cos()])
    assert features.width == 15 and torch.allclose(features(x)[0], expected, atol=1e-6)
