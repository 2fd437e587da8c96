"""The loss between what predicted codes and true ones decode to."""

from __future__ import annotations

import pytest
import torch
from script_runs import code_predictor_objective, random_rows

from tar3d import checkpoint
from tar3d import config as configuration
from tar3d.config import GPTRunConfig
from tar3d.layouts.triplane import to_planes
from tar3d.training.gpt_objective import GPTObjective, draw_shift, new_objective
from tar3d.training.occupancy_loss import OccupancyLoss, spread_points

POINTS, EVERY = 64, 2


@pytest.fixture
def vqvae(vqvae_run):
    return checkpoint.load_tokenizer(vqvae_run / "model")


def objective_of(vqvae, *overrides: str) -> tuple[GPTRunConfig, GPTObjective]:
    config, plain = code_predictor_objective(
        vqvae,
        "train.code_predictor_weight=0.5",
        "train.occupancy_weight=2",
        f"train.occupancy_every={EVERY}",
        f"train.occupancy_points={POINTS}",
        *overrides,
    )
    return config, new_objective(plain.model, vqvae, config.train)


def test_it_is_the_entropy_of_the_true_field_for_the_true_codes_and_more_for_others(vqvae):
    loss = OccupancyLoss(vqvae, POINTS)
    codes = vqvae.quantizer.codebook
    ids = torch.randint(len(codes), (3, vqvae.config.num_tokens))
    true, shift = codes[ids], torch.tensor([0.3, 0.6, 0.9])
    found = loss(true, true, shift)
    with torch.no_grad():
        planes = vqvae.decoder(to_planes(true, vqvae.config.grid_size))
        points = loss._points(lambda x: vqvae.occupancy(planes, x), 3, shift)
        inside = vqvae.occupancy(planes, points).sigmoid()
    entropy = torch.distributions.Bernoulli(inside).entropy().mean(1)
    assert torch.allclose(found, entropy, atol=1e-5)
    assert (loss(-true, true, shift) > found).all()


def test_half_of_the_points_are_the_nearest_to_the_surface(vqvae):
    loss = OccupancyLoss(vqvae, POINTS)

    def field(points):  # a plane at x = 0.25
        return points[..., 0] - 0.25

    points = loss._points(field, 2, torch.zeros(3))
    uniform, near = points.split(POINTS // 2, dim=1)
    assert points.shape == (2, POINTS, 3) and points.abs().max() <= 1
    assert field(near).abs().max() < field(uniform).abs().median()


def test_points_fill_the_cube_evenly_and_move_with_the_shift():
    points = spread_points(512, torch.zeros(3))
    octants = ((points > 0).long() * torch.tensor([1, 2, 4])).sum(1).bincount(minlength=8)
    assert octants.min() > 50 and octants.max() < 80
    moved = spread_points(512, torch.tensor([0.5, 0.0, 0.25]))
    turns = (moved - points) / 2 - torch.tensor([0.5, 0, 0.25])  # whole ones
    assert torch.allclose(turns, turns.round(), atol=1e-5)


def test_it_teaches_the_encoder_and_the_code_predictor_and_leaves_the_tokenizer_alone(vqvae):
    config, objective = objective_of(vqvae)
    batch = random_rows(config, 4)
    tokens = batch["tokens"]
    losses = objective(
        tokens, tokens[:2, :-1], batch["condition"], torch.zeros(2, dtype=torch.bool)
    )
    expected = losses["nll"] + 0.5 * losses["code_distance"] + 2 * losses["occupancy"]
    assert torch.allclose(objective.total(losses), expected)
    losses["occupancy"].backward()
    for part in (objective.model.conditioner, objective.model.gpt.code_predictor.mlp):
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in part.parameters())
    assert all(p.grad is None for p in vqvae.parameters())
    assert not any("occupancy" in name for name in objective.state_dict())


def test_a_step_is_the_same_however_it_is_split(vqvae):
    config, objective = objective_of(vqvae, "train.stage=code_predictor")
    batch = random_rows(config, 8)
    tokens, shift = batch["tokens"], torch.rand(3)

    def loss(rows: slice) -> torch.Tensor:
        condition = {name: values[rows] for name, values in batch["condition"].items()}
        turns = range(8)[rows]
        dropped = torch.zeros(len(turns), dtype=torch.bool)
        part = tokens[rows]
        return objective(part, part[:, :-1], condition, dropped, turns, shift)["occupancy"]

    whole = loss(slice(0, 8))
    split = torch.stack([loss(slice(k, k + 2)) for k in range(0, 8, 2)])
    single = torch.stack([loss(slice(k, k + 1)) for k in range(8)])
    assert torch.allclose(split.mean(), whole) and torch.allclose(single.mean(), whole)
    assert (single[1::EVERY] == 0).all() and (single[::EVERY] > 0).all()


def test_only_a_training_that_compares_fields_draws_points():
    off, on = configuration.GPTTrainConfig(), configuration.GPTTrainConfig(occupancy_weight=1.0)
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    assert draw_shift(off, generator) is None and torch.equal(before, generator.get_state())
    assert draw_shift(on, generator).shape == (3,)
