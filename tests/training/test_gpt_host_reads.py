"""A training step of the GPT reads one tensor from the device: the values that `Run` logs.

Shown on the device "meta", which has no values that could be read.
"""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch.optim import optimizer as of_torch

from tar3d.condition.conditioner import Conditioner
from tar3d.config import GPTConfig, GPTTrainConfig, OptimConfig
from tar3d.gpt.model import GPT
from tar3d.optim.groups import new_optimizers
from tar3d.training.gpt_objective import GPTObjective
from tar3d.training.gradients import clip_gradients
from tar3d.training.moving_average import MovingAverage

ROWS, WORDS, E = 4, 6, 8


class _Texts(torch.nn.Module):
    """An encoder of captions of different length, given as embeddings, and of images."""

    frozen, width, num_tokens = True, E, WORDS


def objective(code_predictor: int) -> GPTObjective:
    config = GPTConfig(
        num_layers=4,
        width=32,
        num_heads=2,
        grid_size=2,
        codebook_size=16,
        condition_tokens=WORDS,
        condition_width=E,
        code_predictor_dim=code_predictor,
    )
    conditioner = Conditioner({"image": _Texts(), "text": _Texts()}, WORDS, E)
    model = torch.nn.Module()
    model.gpt, model.conditioner = GPT(config), conditioner
    model.condition = lambda inputs, _, turns: conditioner(inputs, turns)
    train = GPTTrainConfig(code_predictor_weight=float(bool(code_predictor)))
    return GPTObjective(model, torch.randn(16, 4), train)


def whole_step(module: GPTObjective, device: str) -> None:
    """Two steps with all that moves weights, as train_gpt.py makes them."""
    T = module.model.gpt.config.num_tokens
    optimizers, average = new_optimizers(module, OptimConfig()), MovingAverage(module, 0.9)
    average.to(device)
    tokens = torch.randint(16, (ROWS, T), device=device)
    embeddings = torch.randn(ROWS, WORDS, E, device=device)
    dropped = torch.zeros(ROWS, dtype=torch.bool, device=device)
    for _ in range(2):
        losses = module(
            tokens, tokens[:, :-1], {"image": embeddings, "text": embeddings}, dropped, range(ROWS)
        )
        module.total(losses).backward()
        clip_gradients(module, 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        average.update_parameters(module)


@pytest.mark.parametrize("code_predictor", [0, 4])
def test_a_step_of_the_gpt_waits_for_nothing(code_predictor, monkeypatch):
    # not there
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: nullcontext())
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda _: False)
    monkeypatch.setattr(of_torch, "_get_fused_kernels_supported_devices", lambda: ["meta"])
    module = objective(code_predictor).to("meta")
    whole_step(module, "meta")
    for read in (
        lambda: int(module.codes[0, 0]),
        lambda: bool((module.codes > 0).all()),
        lambda: module.codes.cpu(),
        lambda: module.codes[module.codes > 0],
    ):
        with pytest.raises((RuntimeError, NotImplementedError)):
            read()
