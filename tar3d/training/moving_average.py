"""Exponential moving average of the weights (`train.ema`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.optim.swa_utils import AveragedModel

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor, nn


class MovingAverage(AveragedModel):
    """A copy of `module` whose `update_parameters(module)` averages weights and copies buffers.

    The decay is smaller in the first updates: an average of decay 0.999 over 50 steps would
    otherwise stay close to the initial weights. The first update copies.

    `AveragedModel` reads its count from the device at every update; here the host keeps it too. The
    state is the same.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        super().__init__(module)
        self.decay = decay
        self._count: int | None = 0  # of updates; None: as `n_averaged` says

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        self._count = None
        return super().load_state_dict(*args, **kwargs)

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        count = int(self.n_averaged) if self._count is None else self._count
        average: list[Tensor] = list(self.module.parameters())
        current: list[Tensor] = list(model.parameters())
        if count == 0:
            copy_all(average, current)
        else:
            decay = min(self.decay, (1.0 + count) / (10.0 + count))
            torch._foreach_lerp_(average, current, 1.0 - decay)
        copy_all(self.module.buffers(), model.buffers())
        self.n_averaged += 1
        self._count = count + 1


def copy_all(to: Iterable[Tensor], of: Iterable[Tensor]) -> None:
    """Copies each tensor of `of` into that of `to`."""
    for a, b in zip(to, of, strict=True):
        a.copy_(b)
