"""A check of the decoding kernels against `decode_ops`, on the GPU and at the sizes of a model."""

from __future__ import annotations

import functools
import math
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tar3d.config import SamplingConfig
from tar3d.gpt import decode_ops
from tar3d.gpt.blocks import mlp_width
from tar3d.gpt.sampling import draw_misses

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

    from tar3d.config import GPTConfig

# Largest relative error between two results that are rounded to the dtype.
BOUNDS = {torch.float32: 1e-4, torch.float16: 4e-3, torch.bfloat16: 3e-2}
# Largest distance of a draw from its token's part of the cumulated probabilities, and ways to draw.
MOST_MISSED, DRAWS = 1e-5, 32
SAMPLINGS = (
    SamplingConfig(),
    SamplingConfig(temperature=0),
    SamplingConfig(temperature=0.8, top_k=50, top_p=0.9, min_p=0.01),
)
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
    sizes = config.width, config.num_heads, config.codebook_size
    return _compared(decode_triton, device, dtype, *sizes)


@functools.cache
def _compared(
    kernels: ModuleType,
    device: torch.device,
    dtype: torch.dtype,
    width: int,
    heads: int,
    codes: int,
) -> str:
    if dtype not in BOUNDS:
        return f"they do not compute {dtype}"
    with announced(
        "compiling the Triton kernels that decode and comparing them with PyTorch (Triton keeps "
        "them for later runs, by default in ~/.triton/cache)"
    ):
        return _layer_fault(kernels, device, dtype, width, heads) or _draw_fault(
            kernels, device, codes
        )


@contextmanager
def announced(work: str) -> Iterator[None]:
    """Says on stderr what is worked at, and afterwards how long that took."""
    start = time.perf_counter()
    print(f"{work} ...", file=sys.stderr, flush=True)
    yield
    print(f"... took {time.perf_counter() - start:.1f} s", file=sys.stderr, flush=True)


def _layer_fault(
    kernels: ModuleType, device: torch.device, dtype: torch.dtype, width: int, heads: int
) -> str:
    """Why an operation of a layer is wrong, or ""."""
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


def _draw_fault(kernels: ModuleType, device: torch.device, codes: int) -> str:
    """Why `draw_token` is wrong: its tokens are not those of the draws, or not what it stores."""
    generator = torch.Generator().manual_seed(0)
    logits = (4 * torch.randn(DRAWS, codes, generator=generator)).to(device)
    draws = torch.rand(DRAWS, 2, generator=generator).to(device)
    position = torch.tensor([1], device=device)
    for sampling in SAMPLINGS:
        sums, ids = torch.zeros(DRAWS, device=device), torch.zeros_like(draws, dtype=torch.int64)
        try:
            tokens = kernels.draw_token(logits, sampling, draws, position, sums, ids)
        except Exception as e:  # noqa: BLE001 - whatever a compiler or a driver raises
            return f"draw_token: {type(e).__name__}: {_first_line(e)}"
        if not (ids[:, 1].equal(tokens) and bool(((tokens >= 0) & (tokens < codes)).all())):
            return "draw_token does not store the tokens that it draws"
        miss = draw_misses(logits, sampling, draws[:, 1], tokens).max().item()
        if not miss <= MOST_MISSED:
            return f"draw_token misses its draws by {miss:.1e} with {sampling}"
        error = _error(sums, logits.sum(1))
        if not error <= BOUNDS[torch.float32]:
            return f"draw_token sums logits with an error of {error:.1e}"
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
