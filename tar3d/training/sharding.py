"""Tensors that are spread over the processes of a job (FSDP2), for messages and saved states."""

from __future__ import annotations

from typing import TypeVar

from torch import Tensor, nn
from torch.utils._pytree import tree_map

from tar3d.optim.muon import held_part, is_sharded

T = TypeVar("T")


def gathered(tree: T) -> T:
    """A state dict with sharded tensors made whole, on the CPU. Every process has to call it."""
    return tree_map(lambda x: x.full_tensor().cpu() if is_sharded(x) else x, tree)


def sharded_like(value: object, like: object) -> object:
    """The part of a whole tensor that this process holds of `like`, if that has its shape.

    Any other value is returned as it is.
    """
    if isinstance(value, Tensor) and isinstance(like, Tensor) and value.shape == like.shape:
        return held_part(value, like)
    return value


def describe_shard(module: nn.Module) -> str:
    """One line on how much of a sharded module this process holds."""
    parameters = list(module.parameters())
    held = sum((p.to_local() if is_sharded(p) else p).numel() for p in parameters)
    whole = sum(p.numel() for p in parameters)
    return (
        f"sharded: this process holds {held:,} of {whole:,} parameters, and of their gradients "
        "and states"
    )
