import itertools

import pytest
from torch import nn

from tar3d.config import OptimConfig
from tar3d.optim.groups import HIDDEN_OPTIMIZERS, build_optimizers
from tar3d.optim.schedule import DECAYS, learning_rate_factor, set_learning_rates


def test_known_points():
    factors = [
        learning_rate_factor(step, 101, OptimConfig(warmup_steps=11, final_lr_fraction=0.1))
        for step in range(101)
    ]
    assert factors[0] == pytest.approx(1 / 11)
    assert factors[10] == 1.0 == max(factors)
    assert factors[55] == pytest.approx(0.55)  # halfway down
    assert factors[100] == pytest.approx(0.1)
    assert all(a < b for a, b in itertools.pairwise(factors[:11]))
    assert all(a > b for a, b in itertools.pairwise(factors[10:]))


@pytest.mark.parametrize(
    ("step", "total", "warmup", "factor"),
    [
        (0, 1, 0, 1.0),
        (0, 10, 0, 1.0),
        (9, 10, 0, 0.25),
        (99, 10, 0, 0.25),  # after the end it stays
        (4, 5, 100, 0.05),  # a run shorter than its warm-up
        (1, 2, 2, 1.0),
    ],
)
def test_edges(step, total, warmup, factor):
    for schedule in ("cosine", "wsd"):
        config = OptimConfig(warmup_steps=warmup, final_lr_fraction=0.25, schedule=schedule)
        assert learning_rate_factor(step, total, config) == pytest.approx(factor)


def test_a_plateau_and_a_decay():
    config = OptimConfig(
        warmup_steps=11, final_lr_fraction=0.1, schedule="wsd", decay_fraction=0.25
    )
    factors = [learning_rate_factor(step, 101, config) for step in range(101)]
    assert factors[0] == pytest.approx(1 / 11) and factors[100] == pytest.approx(0.1)
    assert set(factors[10:76]) == {1.0}
    assert factors[79] == pytest.approx(0.1 + 0.9 * (1 - (4 / 25) ** 0.5))
    assert all(a > b for a, b in itertools.pairwise(factors[75:]))
    longer = [learning_rate_factor(step, 201, config) for step in range(76)]
    assert longer == factors[:76], "what a longer run would have done up to here"


@pytest.mark.parametrize(("step", "total"), [(0, 0), (-1, 10)])
def test_impossible_schedules_are_refused(step, total):
    with pytest.raises(ValueError, match="total > 0"):
        learning_rate_factor(step, total, OptimConfig())


def test_each_group_keeps_its_own_base_rate():
    optimizers = build_optimizers(
        nn.Sequential(nn.Linear(4, 4), nn.Conv2d(1, 1, 1)),
        OptimConfig(muon_lr=0.02, adamw_lr=0.003),
    )
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


def test_every_schedule_and_optimizer_can_be_configured():
    for name, decay in DECAYS.items():
        config = OptimConfig(schedule=name)
        assert decay(10, 10, 101, config) == 1.0
        assert decay(100, 10, 101, config) == pytest.approx(0.0)
    for name in (*HIDDEN_OPTIMIZERS, "adamw"):
        hidden, _ = build_optimizers(nn.Linear(4, 4), OptimConfig(optimizer=name))
        assert (hidden is None) == (name == "adamw")
