"""The average of the weights is torch's `AveragedModel`, which reads its count from the device."""

from __future__ import annotations

import copy

import torch
from torch.optim.swa_utils import AveragedModel

from tar3d.training.moving_average import MovingAverage

DECAY = 0.3


def torchs(module: torch.nn.Module) -> AveragedModel:
    def update(average, current, count):
        now = min(DECAY, (1.0 + int(count)) / (10.0 + int(count)))
        torch._foreach_lerp_(average, current, 1.0 - now)

    return AveragedModel(module, multi_avg_fn=update)


def test_it_is_torchs_average_and_goes_on_from_a_state():
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    mine, theirs = MovingAverage(module, DECAY), torchs(module)
    for step in range(8):  # from the fifth on the decay is DECAY
        for tensor in (*module.parameters(), *module.buffers()):
            tensor.data = torch.randn(tensor.shape).to(tensor.dtype)
        mine.update_parameters(module)
        theirs.update_parameters(module)
        ours = mine.state_dict()
        assert ours.keys() == theirs.state_dict().keys() and ours["n_averaged"] == step + 1
        for name, value in theirs.state_dict().items():
            assert torch.equal(ours[name], value), (step, name)
        if step == 2:
            state = copy.deepcopy(ours)
            mine = MovingAverage(module, DECAY)
            mine.load_state_dict(state)
