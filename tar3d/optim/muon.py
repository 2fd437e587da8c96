"""Muon for many matrices at a time: momentum, orthogonalised by Newton-Schulz.

It is `torch.optim.Muon` with Nesterov momentum and "match_rms_adamw" (arXiv 2502.16982), which
gives its rate AdamW's scale.
"""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, TypeGuard

import torch
from torch import Tensor, optim

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from torch.distributed.tensor import DTensor

# Most entries of matrices that go through Newton-Schulz together: 32 of 1,024 x 1,024, 64 MiB in
# bfloat16.
STACKED = 1 << 25


class Muon(optim.Muon):
    """`torch.optim.Muon`, but all matrices of one shape go through Newton-Schulz as one batch.

    A GPT-L has 192 of them, for which torch's loop launches some 4,000 small operations a step.
    Where a CPU only emulates bfloat16 this one multiplies in float32, many times faster. The state
    is torch's: either can continue from the other's.
    """

    def __init__(
        self, params: Iterable, *, lr: float, weight_decay: float, momentum: float
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            weight_decay=weight_decay,
            momentum=momentum,
            nesterov=True,
            adjust_lr_fn="match_rms_adamw",
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override] # torch declares it as two overloads
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters:
                self._move(parameters, group)
        return loss

    def _move(self, parameters: list[Tensor], group: dict) -> None:
        gradients = [p.grad for p in parameters if p.grad is not None]
        for p, gradient in zip(parameters, gradients, strict=True):
            if "momentum_buffer" not in self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(gradient)
        momenta = [self.state[p]["momentum_buffer"] for p in parameters]
        torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
        if is_sharded(gradients[0]):  # torch 2.11 has no _foreach_lerp for DTensor
            directions = [
                g.lerp(m, group["momentum"]) for g, m in zip(gradients, momenta, strict=True)
            ]
        else:
            directions = list(torch._foreach_lerp(gradients, momenta, group["momentum"]))
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        dtype = _product_dtype(parameters[0].device)
        for members in _batches(parameters):
            shape = len(members), *parameters[members[0]].shape
            stacked = torch.empty(shape, dtype=dtype, device=parameters[0].device)
            # One reading of the float32 directions, which stacking them first would copy.
            torch._foreach_copy_(stacked.unbind(), [_whole(directions[i]) for i in members])
            update = orthogonalise(
                stacked,
                group["ns_coefficients"],
                group["ns_steps"],
                group["eps"],
            )
            scale = 0.2 * math.sqrt(max(update.shape[1:]))  # arXiv 2502.16982, "match_rms_adamw"
            updates = [
                held_part(u, parameters[i])
                for i, u in zip(members, update.to(parameters[0].dtype).unbind(), strict=True)
            ]
            torch._foreach_add_(
                [parameters[i] for i in members], updates, alpha=-group["lr"] * scale
            )


def is_sharded(tensor: object) -> TypeGuard[DTensor]:
    """Whether a tensor is spread over processes (FSDP2).

    Where nothing has loaded torch's DTensor, which takes half a second, there is none.
    """
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def _whole(tensor: Tensor) -> Tensor:
    """A matrix gathered from the processes that each hold some rows of it (FSDP2).

    Newton-Schulz needs the whole of it.
    """
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def held_part(tensor: Tensor, parameter: Tensor) -> Tensor:
    """The part of a whole `tensor` that this process holds of `parameter`, which has its shape.

    It is all of it where the parameter is whole.
    """
    if not is_sharded(parameter):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(
        tensor.to(parameter.device), parameter.device_mesh, parameter.placements, src_data_rank=None
    )


def _batches(parameters: list[Tensor]) -> Iterator[list[int]]:
    """Indices of matrices of one shape, whose stack has at most `STACKED` entries (or is one)."""
    shapes: dict[torch.Size, list[int]] = {}
    for index, parameter in enumerate(parameters):
        shapes.setdefault(parameter.shape, []).append(index)
    for shape, members in shapes.items():
        size = max(1, STACKED // shape.numel())
        yield from (members[i : i + size] for i in range(0, len(members), size))


def _product_dtype(device: torch.device) -> torch.dtype:
    emulated = device.type == "cpu" and not torch.cpu._is_avx512_bf16_supported()
    return torch.float32 if emulated else torch.bfloat16


def orthogonalise(
    matrices: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float
) -> Tensor:
    """Newton-Schulz with Muon's quintic on matrices (n, rows, columns), in their dtype.

    The result has the same singular vectors, and singular values near 1.
    """
    a, b, c = coefficients
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x
