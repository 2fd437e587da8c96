"""Exponential moving average of the weights (`train.ema`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.optim.swa_utils import AveragedModel

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

    Tensors = tuple[Tensor, ...] | list[Tensor]


def moving_average(module: nn.Module, decay: float) -> AveragedModel:
    """A copy of `module` whose `update_parameters(module)` averages weights and copies buffers."""
    return AveragedModel(module, multi_avg_fn=_update(decay))


def _update(decay: float) -> Callable[[Tensors, Tensors, Tensor | int], None]:
    """The update of an average, with a smaller decay in the first steps.

    An average of decay 0.999 over 50 steps would otherwise stay close to the initial weights.
    """

    def update(average: Tensors, current: Tensors, count: Tensor | int) -> None:
        now = min(decay, (1.0 + int(count)) / (10.0 + int(count)))
        torch._foreach_lerp_(average, current, 1.0 - now)

    return update
