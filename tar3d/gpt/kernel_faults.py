"""Kernels that are known to compute wrongly on some GPUs with some versions of Triton."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.torch_version import TorchVersion

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True)
class Fault:
    """A backend that computes wrongly on some GPUs with some versions of Triton.

    `auto` avoids it. Asked for by name it is refused where the fault is `proven` for the kernels
    that are called here, not where it is only known of their kind.
    """

    backend: str
    capabilities: tuple[int, ...]  # major compute capabilities
    first: str  # the first version of Triton that has it, and the one that is rid of it
    fixed: str
    gradients_only: bool
    proven: bool
    reason: str


FAULTS = (
    # The product with a transposed matrix in `chunk_bwd_dqkwg` spoils the gradient of k:
    # https://github.com/fla-org/flash-linear-attention/issues/640. fla 0.6.0 refuses to run its
    # gated forms there; the one with fixed decays has the same product, and is not refused.
    Fault(
        "fla",
        (9,),
        "3.4",
        "3.7.1",
        gradients_only=True,
        proven=True,
        reason="compiles its backward wrongly for Hopper GPUs",
    ),
    # fla 0.6.0 drops configurations of 8 warps in common/chunk_o.py for this reason ("Triton<3.8
    # races at 8 warps on Blackwell", its pull request 1229), and keeps them in common/chunk_h.py,
    # which its kernels with decays run.
    Fault(
        "fla",
        (10, 12),
        "0",
        "3.8",
        gradients_only=False,
        proven=False,
        reason="may let 8 warps race in its kernels on Blackwell GPUs",
    ),
)


def constant(function: Callable) -> Callable:
    """Marks a function whose result is a constant for compiled blocks, found while tracing.

    Sets the mark that `torch.compiler.assume_constant_result` sets, which would load the compiler
    (2 s, 150 MB) for all who never compile.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]  # torch's own name
    return function


@constant
def known_fault(name: str, gradients: bool, suspected: bool = False) -> str:
    """The rule of `FAULTS` by which a backend computes wrongly on the current GPU, or "".

    `suspected` includes rules that are not proven for this project's calls.
    """
    if not torch.cuda.is_available():
        return ""
    import triton

    found, version = torch.cuda.get_device_capability()[0], TorchVersion(triton.__version__)
    for fault in FAULTS:
        applies = fault.backend == name and found in fault.capabilities
        applies = applies and fault.first <= version < fault.fixed
        if applies and (gradients or not fault.gradients_only) and (suspected or fault.proven):
            return f"Triton {version} {fault.reason}, {fault.fixed} or later does not"
    return ""
