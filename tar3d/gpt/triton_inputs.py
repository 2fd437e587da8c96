"""Checks of the inputs of the decoding kernels, before they are launched."""

from __future__ import annotations

import torch
import triton
from torch import Tensor
from triton.compiler.compiler import max_shared_mem

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MOST_HEAD_DIM = 128  # a state of 128 x 128 still fits the registers of one program
# A product and its sum are one instruction; no longer Triton's default from 3.10 on.
OPTIONS = {"enable_fp_fusion": True}


@triton.jit
def _kernel():
    pass


# Under TRITON_INTERPRET=1 kernels are run by Python, on the CPU.
INTERPRETED = not isinstance(_kernel, triton.JITFunction)


def shared_memory(device: torch.device) -> int:
    """Shared memory in bytes that one program can have on a CUDA device, as Triton checks it.

    CUDA C++ Programming Guide, table "Technical specifications per compute capability": 64 KiB on
    7.5, 163 on 8.0, 99 on 8.6, 8.9 and 12.0, 227 on 9.0 and 10.0. The interpreter has any amount.
    """
    return 1 << 30 if device.type != "cuda" else max_shared_mem(device.index or 0)


def check(*tensors: Tensor) -> None:
    for tensor in tensors:
        if tensor.dtype not in (*DTYPES, torch.int64, torch.bool):
            raise ValueError(
                f"decoding with Triton takes float32, bfloat16 and float16, got {tensor.dtype}"
            )
        if not tensor.is_contiguous():
            shape, strides = tuple(tensor.shape), tensor.stride()
            raise ValueError(
                f"decoding with Triton takes contiguous tensors, got {shape} with strides {strides}"
            )
        if not (tensor.is_cuda or INTERPRETED):
            raise ValueError(
                f"decoding with Triton needs tensors on a CUDA device, got one on {tensor.device}"
            )


def check_heads(projected: Tensor, head_dim: int, rows: int, widths: tuple[int, ...]) -> None:
    if head_dim % 2 or head_dim > MOST_HEAD_DIM:
        raise ValueError(
            f"decoding with Triton takes even head dimensions up to {MOST_HEAD_DIM}, got {head_dim}"
        )
    if len(projected) != rows or projected.shape[1] not in widths:
        raise ValueError(
            f"projected must be ({rows}, {' or '.join(map(str, widths))}), "
            f"got {tuple(projected.shape)}"
        )
