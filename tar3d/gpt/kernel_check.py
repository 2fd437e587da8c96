"""A check of the decoding kernels against `decode_ops`, on the GPU and at the sizes of a model."""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tar3d.gpt import decode_ops
from tar3d.gpt.blocks import mlp_width

if TYPE_CHECKING:
    from types import ModuleType

    from tar3d.config import GPTConfig

# Largest relative error between two results that are rounded to the dtype.
BOUNDS = {torch.float32: 1e-4, torch.float16: 4e-3, torch.bfloat16: 3e-2}
# One row on each of the two ways in which kernels multiply, and a cache that takes a few programs.
ROWS, SLOTS, SLOT = (2, 8), 320, 200


def kernel_fault(config: GPTConfig, device: torch.device, dtype: torch.dtype) -> str:
    """Why `decode_triton` cannot decode this GPT on this GPU, or "".

    Every kernel is compiled and compared with its plain form. The answer is kept for the process.
    """
    try:
        from tar3d.gpt import decode_triton
    except ImportError as e:
        return f"the package triton cannot be loaded ({e})"
    return _compared(decode_triton, device, dtype, config.width, config.num_heads)


@functools.cache
def _compared(
    kernels: ModuleType, device: torch.device, dtype: torch.dtype, width: int, heads: int
) -> str:
    if dtype not in BOUNDS:
        return f"they do not compute {dtype}"
    for rows in ROWS:
        for name, arguments in _calls(device, dtype, rows, width, heads).items():
            results = []
            for operations in (kernels, decode_ops):
                own = [x.clone() if isinstance(x, Tensor) else x for x in arguments]
                try:
                    out = getattr(operations, name)(*own)
                except Exception as e:  # noqa: BLE001 - whatever a compiler or a driver raises
                    return f"{name} of {rows} rows: {type(e).__name__}: {_first_line(e)}"
                # The caches that it changes in place are results as well.
                results.append([out, *(x for x in own if isinstance(x, Tensor))])
            error = max(map(_error, *results))
            if not error <= BOUNDS[dtype]:  # NaN too
                return f"{name} of {rows} rows is off by {error:.1e} from its plain form"
    return ""


def _calls(
    device: torch.device, dtype: torch.dtype, rows: int, width: int, heads: int
) -> dict[str, tuple[Any, ...]]:
    """Arguments for each operation of `decode_ops`, by its name."""
    generator = torch.Generator().manual_seed(0)
    hidden, head_dim = mlp_width(width), width // heads

    def draw(*shape: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> Tensor:
        return (scale * torch.randn(shape, generator=generator)).to(device, dtype)

    def matrix(outputs: int, inputs: int) -> Tensor:
        return draw(outputs, inputs, dtype=dtype, scale=1 / math.sqrt(inputs))

    angle = draw(head_dim // 2)
    rotary = torch.cat([angle.cos()] * 2), torch.cat([-angle.sin(), angle.sin()])
    qk_gain, cache = 1 + 0.1 * draw(2, head_dim), (rows, heads, SLOTS, head_dim)
    valid = torch.arange(SLOTS, device=device).expand(rows, 1, 1, SLOTS) <= SLOT
    return {
        "norm_linear": (draw(rows, width), draw(width), matrix(4 * width, width)),
        "linear_attend": (
            draw(rows, 4 * width, dtype=dtype),
            *rotary,
            qk_gain,
            draw(heads).sigmoid(),
            draw(head_dim),
            draw(rows, heads, head_dim, head_dim),
        ),
        "full_attend": (
            draw(rows, 3 * width, dtype=dtype),
            *rotary,
            qk_gain,
            draw(*cache, dtype=dtype),
            draw(*cache, dtype=dtype),
            torch.tensor([SLOT], device=device),
            valid.contiguous(),
            SLOTS,
        ),
        "linear_add": (draw(rows, hidden, dtype=dtype), matrix(width, hidden), draw(rows, width)),
        "norm_swiglu": (draw(rows, width), draw(width), matrix(2 * hidden, width)),
    }


def _error(found: Tensor, expected: Tensor) -> float:
    return ((found.double() - expected.double()).norm() / expected.double().norm()).item()


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0]
