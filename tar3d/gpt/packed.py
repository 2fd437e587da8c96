"""The blocks of a GPT as the engine runs them: packed, or plain where a layer has no packed form.

Both kinds have the same three calls: a cache, filling it from a prefill, one step. A block is
packed if its attention and its MLP are of the very classes that define a packed form; a subclass
that does not define its own is run by its own `decode`, on its own cache.

Letters: G rows, D width.
"""

from __future__ import annotations

import types
import warnings
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from tar3d.config import DECODING_BACKENDS
from tar3d.gpt import decode_ops
from tar3d.gpt.blocks import Block, MLPWeights
from tar3d.gpt.kernel_check import kernel_fault

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    from tar3d.gpt.layers.base import DecodePosition, LayerCache, StaticCache
    from tar3d.gpt.model import GPT


class BlockWeights(NamedTuple):
    attention: Any  # for the layer's `packed_step`
    mlp: MLPWeights


class Operations:
    """The operations of packed blocks: `decode_ops`, plain or compiled, or `decode_triton`.

    Raises ValueError for a backend that this device does not have.
    """

    def __init__(self, backend: str, device: torch.device, dtype: torch.dtype) -> None:
        if backend not in DECODING_BACKENDS:
            raise ValueError(
                f"the decoding backend is {backend!r}, allowed are {', '.join(DECODING_BACKENDS)}"
            )
        self.backend = backend
        self.device, self.dtype = device, dtype
        self.module = _operations_module(self.backend, device)
        self._compiled: dict[tuple[Callable, ...], Callable[..., Tensor]] = {}

    def pack(self, *linears: nn.Linear) -> Tensor:
        """The matrices of one or more linear maps of one input, in one.

        Unless operations are compiled it is in the layout that eager ones read fastest.
        """
        weight = torch.cat([linear.weight for linear in linears]).to(self.dtype)
        return weight if self.backend == "compiled" else decode_ops.pack(weight)

    def mlp_step(self, mlp: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """(x, weights) -> x, by a packed form of an MLP."""
        ops = self.module

        def step(x: Tensor, weights: MLPWeights) -> Tensor:
            return mlp(ops, weights, x)

        return self._once((mlp,), step)

    def block_step(
        self, attention: Callable[..., Tensor], mlp: Callable[..., Tensor]
    ) -> Callable[..., Tensor]:
        """(x, weights, position, cache) -> x, by packed forms of an attention layer and an MLP."""
        ops = self.module

        def step(
            x: Tensor, weights: BlockWeights, position: DecodePosition, cache: StaticCache
        ) -> Tensor:
            x = attention(ops, weights.attention, x, position, cache)
            return mlp(ops, weights.mlp, x)

        return self._once((attention, mlp), step)

    def _once(
        self, forms: tuple[Callable, ...], step: Callable[..., Tensor]
    ) -> Callable[..., Tensor]:
        """One function for all blocks of the same forms, so that it is compiled once.

        It has code of its own: torch counts compilations by code, and runs what was compiled too
        often as it stands. From the second number of rows on that number is dynamic.
        """
        if forms not in self._compiled:
            if self.backend == "compiled":
                own = types.FunctionType(
                    step.__code__.replace(), step.__globals__, closure=step.__closure__
                )
                step = torch.compile(own)
            self._compiled[forms] = step
        return self._compiled[forms]


class PackedBlock:
    """A block by the packed forms of its layers: a few operations on static caches."""

    def __init__(self, block: Block, operations: Operations) -> None:
        self.attention, self.operations = block.attention, operations
        self.weights = BlockWeights(
            block.attention.pack(block.attention_norm.weight, operations.pack),
            block.mlp.pack(block.mlp_norm.weight, operations.pack),
        )
        self._step = operations.block_step(block.attention.packed_step, block.mlp.packed_step)

    def new_cache(self, rows: int, capacity: int) -> StaticCache:
        return self.attention.new_static_cache(rows, capacity, self.operations.dtype)

    def fill(self, cache: StaticCache, prefilled: LayerCache, rows: Tensor) -> StaticCache:
        """Copies `rows` (G,) int64 of a prefill's cache; returns the cache to go on with."""
        self.attention.fill_static_cache(cache, prefilled, rows)
        return cache

    def step(self, x: Tensor, position: DecodePosition, cache: StaticCache) -> Tensor:
        """x (G, D) -> (G, D) float32, one position; the cache is changed in place."""
        return self._step(x, self.weights, position, cache)


class PlainBlock:
    """A block by its own `decode`, on the cache that its own prefill leaves.

    It reads the weights of the GPT itself, and a CUDA graph cannot hold it.
    """

    def __init__(self, block: Block, operations: Operations) -> None:
        self.block, self.operations = block, operations
        self.weight_dtype = block.attention_norm.weight.dtype

    def new_cache(self, rows: int, capacity: int) -> StaticCache:  # noqa: ARG002  `fill` has it
        return ()

    def fill(self, cache: object, prefilled: LayerCache, rows: Tensor) -> LayerCache:  # noqa: ARG002
        return prefilled.select(rows)

    def step(self, x: Tensor, position: DecodePosition, cache: LayerCache) -> Tensor:
        kind, dtype = self.operations.device.type, self.operations.dtype
        rotary = position.cos[None], position.sin[None]
        with torch.autocast(kind, dtype, enabled=dtype != self.weight_dtype):
            x = self.block.decode(x[:, None].to(self.weight_dtype), rotary, cache)
        return x[:, 0].float()


def pack_block(block: Block, operations: Operations) -> PackedBlock | PlainBlock:
    """The packed form of a block, or the plain one where a layer has none.

    Raises ValueError where the backend has no operations for a layer.
    """
    layers: tuple[nn.Module, ...] = block.attention, block.mlp
    plain: list[type] = [type(layer) for layer in layers if not has_packed_form(layer)]
    if type(block).decode is not Block.decode:
        plain.append(type(block))
    if plain and operations.backend != "plain":
        raise ValueError(
            f"the decoding backend {operations.backend} runs packed forms of layers, and "
            f"{plain[0].__name__} has none of its own: choose plain or auto"
        )
    if plain:
        return PlainBlock(block, operations)
    if operations.backend not in block.attention.packed_backends:
        raise ValueError(
            f"the decoding backend {operations.backend} has no operations for "
            f"{type(block.attention).__name__}: choose plain or auto"
        )
    return PackedBlock(block, operations)


def fastest_backend(gpt: GPT, dtype: torch.dtype) -> str:
    """The backend that `auto` stands for: `triton` on a GPU where its kernels are right, or plain.

    Warns where they are not. A GPT with layers that have no kernels is `plain` without a word.
    """
    device = gpt.head.weight.device
    layers = [layer for block in gpt.blocks for layer in (block.attention, block.mlp)]
    if device.type != "cuda" or not all(map(has_packed_form, layers)):
        return "plain"
    if not all(type(block).decode is Block.decode for block in gpt.blocks):
        return "plain"
    if not all("triton" in block.attention.packed_backends for block in gpt.blocks):
        return "plain"
    if reason := kernel_fault(gpt.config, device, dtype):
        warnings.warn(
            f"decoding runs PyTorch's operations instead of the Triton kernels: {reason}. "
            "The decoding backend plain asks for the former and is silent",
            stacklevel=2,
        )
        return "plain"
    return "triton"


def has_packed_form(layer: nn.Module) -> bool:
    """True for the very class that defines a packed form.

    An inherited form would not know what a subclass overrides.
    """
    return "packed_step" in vars(type(layer))


def _operations_module(backend: str, device: torch.device) -> ModuleType:
    if backend != "triton":
        return decode_ops
    if device.type != "cuda":
        raise ValueError(
            f"the decoding backend triton needs a CUDA GPU, the model is on {device}: "
            "choose plain or auto"
        )
    try:
        from tar3d.gpt import decode_triton
    except ImportError as e:
        raise ValueError(
            f"the decoding backend triton needs the package triton ({e}): "
            "install it, or choose plain"
        ) from e
    return decode_triton
