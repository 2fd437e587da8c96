import pytest
from torch import nn

from tar3d.config import OptimConfig
from tar3d.optim.groups import build_optimizers
from tar3d.optim.schedule import learning_rate_factor, set_learning_rates


def test_known_points():
    factors = [learning_rate_factor(step, 101, 11, 0.1) for step in range(101)]
    assert factors[0] == pytest.approx(1 / 11)
    assert factors[10] == 1.0 == max(factors)
    assert factors[55] == pytest.approx(0.55)  # halfway down
    assert factors[100] == pytest.approx(0.1)
    assert all(a < b for a, b in zip(factors[:10], factors[1:11], strict=True))
    assert all(a > b for a, b in zip(factors[10:-1], factors[11:], strict=True))


@pytest.mark.parametrize(("step", "total", "warmup", "factor"), [
    (0, 1, 0, 1.0),
    (0, 10, 0, 1.0),
    (9, 10, 0, 0.25),
    (99, 10, 0, 0.25),  # after the end it stays
    (4, 5, 100, 0.05),  # a run shorter than its warm-up
    (1, 2, 2, 1.0),
])
def test_edges(step, total, warmup, factor):
    assert learning_rate_factor(step, total, warmup, 0.25) == pytest.approx(factor)


@pytest.mark.parametrize(("step", "total", "warmup"), [(0, 0, 0), (-1, 10, 0), (0, 10, -1)])
def test_impossible_schedules_are_refused(step, total, warmup):
    with pytest.raises(ValueError, match="total > 0"):
        learning_rate_factor(step, total, warmup, 0.1)


def test_each_group_keeps_its_own_base_rate():
    optimizers = build_optimizers(nn.Sequential(nn.Linear(4, 4), nn.Conv2d(1, 1, 1)), OptimConfig(muon_lr=0.02, adamw_lr=0.003))
    for factor in (0.5, 0.1, 1.0):
        set_learning_rates(optimizers, factor)
        assert [g["lr"] for g in optimizers[0].param_groups] == pytest.approx([0.02 * factor])
        assert [g["lr"] for g in optimizers[1].param_groups] == pytest.approx([0.003 * factor] * 2)


def test_the_base_rate_survives_a_saved_state():
    layer = nn.Linear(4, 4, bias=False)
    saved = build_optimizers(layer, OptimConfig(muon_lr=0.02))[0]
    set_learning_rates([saved], 0.3)
    loaded = build_optimizers(layer, OptimConfig(muon_lr=0.02))[0]
    loaded.load_state_dict(saved.state_dict())
    set_learning_rates([loaded], 1.0)
    assert loaded.param_groups[0]["lr"] == pytest.approx(0.02)
