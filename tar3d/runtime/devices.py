"""The device of a script, the precision of its matrix products, and deterministic algorithms."""

from __future__ import annotations

import os
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tar3d.runtime.arguments import PRECISIONS
from tar3d.runtime.unusable_gpu import warn_of_unusable_gpu

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch


def compute_dtype(precision: str) -> torch.dtype:
    """The dtype of matrix products under `precision`, which is not "auto"."""
    import torch

    dtypes = {"32-true": torch.float32, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
    return dtypes[precision]


def resolve_precision(precision: str, accelerator: str) -> str:
    """The precision of a training: "auto" is bfloat16 autocast where the hardware computes it.

    Elsewhere it is float32. A trained model takes `inference_precision`.
    """
    if precision != "auto":
        return precision
    import torch

    if accelerator == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = torch.cpu._is_avx512_bf16_supported()
    return "bf16-mixed" if native else "32-true"


def inference_precision(precision: str, device: torch.device) -> str:
    """The precision in which a trained model works on `device`: `precision`, or what "auto" is.

    "auto" is bfloat16 autocast on a GPU that computes it (compute capability from 8.0), else
    float32: a CPU gives the same results whichever it is. Raises ValueError for an unknown name.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision is {precision!r}, allowed are {', '.join(PRECISIONS)}")
    if precision != "auto":
        return precision
    import torch

    native = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    return "bf16-mixed" if native else "32-true"


def choose_device(name: str | None, low_vram: bool = False) -> torch.device:
    """The device of an inference script: `name`, or by default a GPU if there is one.

    A GPU becomes the current device, on which kernels are launched and graphs captured. Raises
    ValueError when it is not there, or when it is a CPU, where `low_vram` has nothing to save.
    """
    import torch

    if name is None:
        warn_of_unusable_gpu()
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as e:
        raise ValueError(f"--device is {name!r}; write cpu, cuda, cuda:N or mps") from e
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"--device {name}: this machine has {torch.cuda.device_count()} CUDA devices; "
            "write --device cpu"
        )
    if device.type not in ("cpu", "cuda", "mps"):
        raise ValueError(f"--device is {name!r}; this project runs on cpu, cuda and mps")
    if device.type == "mps":
        if not torch.backends.mps.is_available():
            raise ValueError(f"--device {name}: this machine has no MPS; write --device cpu")
        warnings.warn("--device mps: this project has not been tried on MPS", stacklevel=2)
    if low_vram and device.type == "cpu":
        raise ValueError(
            "--low-vram keeps models off the GPU while they do not work, but this runs on the CPU: "
            "there is no GPU memory to save, leave it out"
        )
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


def make_cublas_deterministic() -> None:
    """Has cuBLAS give the same bits in every run, if it has not computed anything yet.

    It reads the variable once, at its first product (CUDA documentation, cuBLAS, "Results
    reproducibility").
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@contextmanager
def deterministic(on: bool = True) -> Iterator[None]:
    """Context in which every run gives the same bits on a GPU too.

    Some sums are otherwise made in whatever order threads arrive. An operation that has no
    deterministic algorithm raises RuntimeError. With `on` False, inside such a context, any
    algorithm is allowed again.
    """
    import torch

    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    if on:
        make_cublas_deterministic()
        torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(on)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.backends.cudnn.benchmark = before[1]
