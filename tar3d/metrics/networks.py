"""Helpers of the networks that score images: exact convolutions and the identity of weights."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import AbstractContextManager

    from torch import Tensor


def full_precision() -> AbstractContextManager:
    """A context in which convolutions on a GPU use no TF32 and deterministic algorithms.

    So a score repeats. It changes nothing on a CPU.
    """
    return torch.backends.cudnn.flags(
        enabled=True, benchmark=False, deterministic=True, allow_tf32=False
    )


def weights_digest(weights: Mapping[str, Tensor]) -> str:
    """First 16 hex digits of the SHA-256 over names, shapes and values."""
    digest = hashlib.sha256()
    for name, value in sorted(weights.items()):
        digest.update(f"{name} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def first_line(error: Exception) -> str:
    """The first line of an error's message, without its full stop, to stand inside a sentence."""
    return str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
