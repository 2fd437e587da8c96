import pytest
import torch

from tar3d.config import GPTConfig
from tar3d.gpt.rope import TriPE, pair_shares, rotary_tables, rotate
from tar3d.layouts import build_layout
from tar3d.layouts.triplane import planes, to_planes

GRID, HEAD_DIM = 4, 16


def _config(**changes) -> GPTConfig:
    return GPTConfig(grid_size=GRID, width=HEAD_DIM, num_heads=1, **changes)


def _tables(kind: str, prefix: str = "identity", **changes) -> tuple[torch.Tensor, torch.Tensor]:
    return rotary_tables(build_layout(_config(**changes)), HEAD_DIM, 10_000.0, kind, prefix)


@pytest.fixture
def places() -> list[tuple[int, int, int]]:
    """(row, col, plane) of each sequence position, read off the layout and not off
    `coordinates`."""
    laid_out = to_planes(torch.arange(3 * GRID**2)[None], GRID)[0]  # (3, R, R)
    found = {
        int(laid_out[p, r, c]): (r, c, p)
        for p in range(3)
        for r in range(GRID)
        for c in range(GRID)
    }
    return [found[i] for i in range(3 * GRID**2)]


def _rotated(x: torch.Tensor, kind: str = "rotation") -> torch.Tensor:
    """x (D,) at every token position: (T, D) float64."""
    cos, sin = (table[1:].double() for table in _tables(kind))
    return rotate(x.expand_as(cos), cos, sin)


def _spread_by_offset(places: list[tuple[int, int, int]], kind: str) -> float:
    """Largest difference between dot products of pairs of tokens that have the same (row, col,
    plane) offset."""
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, HEAD_DIM, generator=generator, dtype=torch.float64)
    dots = _rotated(q, kind) @ _rotated(k, kind).T
    by_offset: dict[tuple[int, ...], list[float]] = {}
    for i, a in enumerate(places):
        for j, b in enumerate(places):
            by_offset.setdefault(tuple(x - y for x, y in zip(a, b, strict=True)), []).append(
                float(dots[i, j])
            )
    assert len(by_offset) == (2 * GRID - 1) ** 2 * 5
    return max(max(v) - min(v) for v in by_offset.values())


def test_dot_products_depend_on_offsets_only(places):
    assert _spread_by_offset(places, "rotation") < 1e-5


def test_the_papers_sum_is_not_relative(places):
    assert _spread_by_offset(places, "paper_sum") > 0.5


def test_every_offset_is_told_apart(places):
    x = torch.ones(HEAD_DIM, dtype=torch.float64)
    rotated = _rotated(x)
    distances = torch.cdist(rotated, rotated) + 10 * torch.eye(len(rotated))
    assert distances.min() > 1e-2


@pytest.mark.parametrize(("kind", "kept"), [("rotation", True), ("paper_sum", False)])
def test_rotation_keeps_norms(kind, kept):
    x = torch.randn(HEAD_DIM, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    norms = _rotated(x, kind).norm(dim=1)
    assert torch.allclose(norms, x.norm().expand_as(norms), atol=1e-6) == kept


@pytest.mark.parametrize("kind", ["rotation", "paper_sum", "sequence"])
def test_prefix_is_identity_or_zero(kind):
    x = torch.randn(HEAD_DIM, generator=torch.Generator().manual_seed(2))
    for prefix, expected in (("identity", x), ("zero", torch.zeros_like(x))):
        cos, sin = _tables(kind, prefix)
        assert torch.equal(rotate(x, cos[0], sin[0]), expected)


def test_plain_positions_depend_on_the_distance_in_the_sequence_alone():
    q, k = torch.randn(2, HEAD_DIM, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    dots = _rotated(q, "sequence") @ _rotated(k, "sequence").T
    for offset in (-5, 0, 1, 7):
        same = dots.diagonal(offset)
        assert (same - same[0]).abs().max() < 1e-5
    assert (_rotated(q, "sequence").norm(dim=1) - q.norm()).abs().max() < 1e-5


def test_tables_follow_the_order_of_the_tokens():
    for kind in ("rotation", "paper_sum"):
        of_orders = (_tables(kind, token_order=order) for order in ("planes", "cells"))
        for mine, theirs in zip(*of_orders, strict=True):
            assert torch.equal(mine[1:], theirs[1:][planes(GRID)])


def test_positions_count_from_a_rows_own_first_token():
    rope = TriPE(_config(), build_layout(_config()))
    cos, sin = rope.packed(torch.tensor([2, 5]), 9)  # (2, 1, 9, D)
    for row, prefix in enumerate((2, 5)):
        alone = rope.packed(prefix, prefix + 4)
        assert torch.equal(cos[row, 0, : prefix + 4], alone[0])
        assert torch.equal(sin[row, 0, : prefix + 4], alone[1])
        for i in range(4):
            assert torch.equal(cos[row, 0, prefix + i : prefix + i + 1], rope.step(i)[0])


@pytest.mark.parametrize("head_dim", [6, 8, 48, 64, 100, 128])
def test_all_pairs_are_used_and_planes_get_the_small_share(head_dim):
    row, col, plane = pair_shares(head_dim, build_layout(_config()).axes())
    assert row + col + plane == head_dim // 2
    assert row == col >= 1
    assert 1 <= plane <= max(2, head_dim // 8)


def test_tables_are_not_weights():
    assert not TriPE(_config(), build_layout(_config())).state_dict()


def test_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="rotation, paper_sum, sequence"):
        _tables("sum")
