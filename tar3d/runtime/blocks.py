"""Compiling, activation checkpointing and sharding of the repeated blocks of a model.

A repeated block is a child of an nn.ModuleList. Each is changed in place, so that names in a
checkpoint stay as they are.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    import torch
    from torch.distributed.device_mesh import DeviceMesh


def repeated_blocks(module: torch.nn.Module) -> list[torch.nn.Module]:
    """The blocks of all module lists within `module`."""
    import torch

    return [
        block
        for child in module.modules()
        if isinstance(child, torch.nn.ModuleList)
        for block in child
    ]


def prepare_blocks(module: torch.nn.Module, activation_checkpointing: str, compile: bool) -> None:
    """Prepares each repeated block for training, in place.

    `activation_checkpointing`: "none" keeps for the backward pass whatever it needs; "cheap" keeps
    the inputs of blocks and the results of matrix products and attention, and recomputes the rest,
    which is elementwise; "blocks" keeps the inputs of blocks alone, for a third more computing.

    `compile` is torch.compile of each block, which takes a fifth of the time that compiling the
    whole model takes, and has most of the gain. A compiled block keeps little more than with
    "cheap" by itself, and takes no notice of it.
    """
    for block in repeated_blocks(module):
        if activation_checkpointing == "blocks" or (
            activation_checkpointing == "cheap" and not compile
        ):
            cheap_only = activation_checkpointing == "cheap"
            block.forward = _recomputed(block.forward, cheap_only)  # type: ignore[method-assign]
        if compile:
            block.compile()


def _recomputed(forward: Callable, cheap_only: bool) -> Callable:
    """`forward` under activation checkpointing; `cheap_only` keeps the results of products."""
    import torch
    from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

    aten = torch.ops.aten
    costly = [
        aten.mm,
        aten.addmm,
        aten.bmm,
        aten.baddbmm,
        aten.convolution,
        aten._scaled_dot_product_flash_attention,
        aten._scaled_dot_product_efficient_attention,
        aten._scaled_dot_product_cudnn_attention,
        aten._scaled_dot_product_flash_attention_for_cpu,
    ]
    contexts = functools.partial(
        create_selective_checkpoint_contexts, [op.default for op in costly]
    )
    how: dict[str, Any] = {"context_fn": contexts} if cheap_only else {}

    def call(*args: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args)
        # No block draws a random number, so there is no state of a generator to restore.
        return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **how)

    return call


def shard_blocks(module: torch.nn.Module, mesh: DeviceMesh) -> torch.nn.Module:
    """Shards weights over processes (FSDP2).

    Each repeated block is gathered when it is used and freed after; what is left over belongs to
    the whole.
    """
    from torch.distributed.fsdp import fully_shard

    for block in repeated_blocks(module):
        fully_shard(block, mesh=mesh["data_parallel"])
    fully_shard(module, mesh=mesh["data_parallel"])  # in place
    return module


def uncompiled() -> AbstractContextManager:
    """Context in which compiled blocks run as they are written.

    Validation and generation have other shapes, and would compile again for each of them.
    """
    import torch

    return torch.compiler.set_stance("force_eager")
