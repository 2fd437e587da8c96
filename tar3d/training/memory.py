"""The memory that a training step needs, found without computing it.

A step is run on tensors without data, and the bytes of those alive at a time are followed. It takes
seconds for any size of model; what a GPU's context, its allocator and its kernels need comes on top
(about 1 GiB).
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tar3d.optim.groups import new_optimizers
from tar3d.runtime import prepare_blocks

if TYPE_CHECKING:
    from collections.abc import Callable

    from tar3d.config import OptimConfig


class LiveTensors(TorchDispatchMode):
    """Follows the bytes of tensors made within it that are still alive.

    `now` is their sum, `peak` the most so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._alive: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        results = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(results):
            if isinstance(tensor, Tensor):
                self._add(tensor.untyped_storage())
        return results

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()
        if key not in self._alive:
            self._alive[key] = weakref.ref(storage, lambda _: self._remove(key, size))
            self.now += size
            self.peak = max(self.peak, self.now)

    def _remove(self, key: int, size: int) -> None:
        del self._alive[key]
        self.now -= size


def step_bytes(
    make: Callable[[], tuple[nn.Module, Callable[[], Tensor]]],
    optim: OptimConfig,
    activation_checkpointing: str,
) -> int:
    """Most bytes alive in a step in bfloat16 autocast.

    They are those of weights, gradients, optimizer states and what is kept for the backward pass.
    `make` gives a module and what computes its loss, both made of tensors without data.
    """
    with FakeTensorMode(allow_non_fake_inputs=True), LiveTensors() as live:
        module, loss = make()
        prepare_blocks(module, activation_checkpointing, compile=False)
        optimizers = new_optimizers(module, optim)
        for _ in range(2):  # the first makes the optimizers' states
            with torch.autocast("cpu", torch.bfloat16):
                value = loss()
            value.backward()
            nn.utils.clip_grad_norm_(module.parameters(), optim.grad_clip or float("inf"))
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            del value
    return live.peak
