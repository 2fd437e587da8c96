"""The memory that a training step needs, found without computing it.

A step is run on tensors without data, and the bytes of those alive at a time are followed. It takes
seconds for any size of model: of a deep GPT only a few layers are run. What a GPU's context, its
allocator and its kernels need comes on top (`with_margin`).
"""

from __future__ import annotations

import weakref
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tar3d.contracts import Condition
from tar3d.gpt import loss
from tar3d.gpt.model import GPT
from tar3d.optim.groups import new_optimizers
from tar3d.runtime import prepare_blocks
from tar3d.tokenizer.vqvae import VQVAE

if TYPE_CHECKING:
    from collections.abc import Callable

    from tar3d.config import GPTConfig, OptimConfig, VQVAEConfig

CONTEXT = 2**30  # bytes of a GPU that its context and kernels take
# What a GPU's allocator cannot use, and the workspaces of kernels, as a share of what is counted.
ALLOCATOR = 0.1
# Bytes alive for a logit of the part of the positions that the loss works on: itself in float32,
# and its softmax, or itself and its gradient in 16 bits.
LOGIT_BYTES = 8


def with_margin(counted: int) -> int:
    """Bytes of a GPU in which a step of so many counted ones fits."""
    return counted + round(ALLOCATOR * counted) + CONTEXT


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


class StepBytes(NamedTuple):
    """Most bytes alive in the parts of a step."""

    passes: int  # forward and backward, without optimizer states
    states: int  # of the optimizers
    update: int  # the optimizers' step, with their states

    @property
    def peak(self) -> int:
        """Most bytes alive in a step that is not the first."""
        return max(self.passes + self.states, self.update)


def step_bytes(
    make: Callable[[], tuple[nn.Module, Callable[[], Tensor]]],
    optim: OptimConfig,
    activation_checkpointing: str,
    autocast: bool = True,
) -> StepBytes:
    """Most bytes alive in a step, in 16 bits with `autocast` and in float32 without.

    They are those of weights, gradients, optimizer states and what is kept for the backward pass.
    `make` gives a module and what computes its loss, both made of tensors without data.
    """
    with FakeTensorMode(allow_non_fake_inputs=True), LiveTensors() as live:
        module, loss = make()
        prepare_blocks(module, activation_checkpointing, compile=False)
        optimizers = new_optimizers(module, optim)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            value = loss()
        value.backward()
        nn.utils.clip_grad_norm_(module.parameters(), optim.grad_clip or float("inf"))
        passes, before = live.peak, live.now
        live.peak = 0
        for optimizer in optimizers:
            optimizer.step()
        return StepBytes(passes, live.now - before, live.peak)


def counted_depths(config: GPTConfig) -> tuple[int, int, int]:
    """Two numbers of layers, and how often their difference comes on top of the first.

    All repetitions of the layer pattern but the first are alike, so a count of two depths tells
    that of any. A shallow GPT is counted whole, without repeats.
    """
    period = len(config.layer_pattern)
    few = period + config.num_layers % period
    if config.num_layers <= few + period:
        return config.num_layers, config.num_layers, 0
    return few, few + period, (config.num_layers - few) // period


def gpt_step_bytes(
    config: GPTConfig,
    optim: OptimConfig,
    rows: int,
    activation_checkpointing: str,
    autocast: bool = True,
) -> int:
    """Peak bytes of a training step of the GPT on CUDA over `rows` rows at a time.

    Image and text encoders and the data are not counted.
    """

    def count(num_layers: int) -> StepBytes:
        def make() -> tuple[nn.Module, Callable[[], Tensor]]:
            gpt = GPT(replace(config, num_layers=num_layers)).train()
            tokens = torch.randint(config.codebook_size, (rows, config.num_tokens))
            condition = Condition.of(
                torch.randn(rows, config.condition_tokens, config.condition_width)
            )
            dropped = torch.zeros(rows, dtype=torch.bool)
            return gpt, lambda: loss.cross_entropy(
                gpt.hidden(tokens[:, :-1], condition, dropped), gpt.head.weight, tokens
            )

        return step_bytes(make, optim, activation_checkpointing, autocast)

    few, more, repeats = counted_depths(config)
    counted = count(few)
    if repeats:
        pairs = zip(counted, count(more), strict=True)
        counted = StepBytes(*(a + (b - a) * repeats for a, b in pairs))
    logits = rows * config.num_tokens * config.codebook_size
    there = min(logits, loss.LOGITS_AT_ONCE * loss.ON_CUDA)
    more_logits = LOGIT_BYTES * (there - min(logits, loss.LOGITS_AT_ONCE))
    return counted._replace(passes=counted.passes + more_logits).peak


def tokenizer_step_bytes(
    config: VQVAEConfig, shapes: int, activation_checkpointing: str, autocast: bool = True
) -> int:
    """Peak bytes of a training step of the tokenizer over `shapes` shapes at a time.

    It is a step of the autoencoder stage; comparing with the codebook needs little beside it.
    """
    t = config.train

    def make() -> tuple[nn.Module, Callable[[], Tensor]]:
        vqvae = VQVAE(config.tokenizer).train()
        surface = torch.rand(shapes, t.surface_points, 6) * 2 - 1
        points = torch.rand(shapes, t.volume_points + t.near_points, 3) * 2 - 1
        return vqvae, lambda: vqvae(surface, points, False).logits.float().mean()

    return step_bytes(make, config.optim, activation_checkpointing, autocast).peak
