"""The decoding kernels compiled for a GPU ahead of time, on a machine that need not have one.

`compile_all` fills a folder as Triton's cache; `put_in_place` copies one to where it is used. A
kernel is compiled by Triton's own launch, up to the point where the GPU would be needed, so that it
is found again under the name that Triton gives it. That name is made of the kernel's source, the
types, constants and divisibility of its arguments, its options, and the files of Triton and ptxas
themselves: a cache serves one version of Triton for one version of Python.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import ModuleType

# Shared memory in KiB that one program can have, by compute capability: CUDA C++ Programming Guide,
# table "Technical specifications per compute capability".
SHARED = {75: 64, 80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}
# Each filter, and no filter: what the kernel that draws tokens is compiled for.
SAMPLINGS = ({}, {"temperature": 0}, {"top_k": 9, "top_p": 0.9, "min_p": 0.1})
# (rows, shapes) of what a session decodes: a shape has two rows with guidance, else one.
DECODED = ((1, 1), (2, 1), (4, 2), (8, 4), (16, 8), (32, 16))
KERNELS = {
    "decode_triton": ("_linear_kernel",),
    "triton_attention": ("_linear_attend_kernel", "_attend_kernel", "_combine_kernel"),
    "triton_sampling": ("_draw_kernel",),
}
ROOT = Path(__file__).resolve().parents[1]


class Launch(NamedTuple):
    """A kernel and what it is launched with."""

    kernel: Any
    arguments: tuple[Any, ...]
    constants: dict[str, Any]


def make(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """A tensor without data."""
    return torch.empty(shape, dtype=dtype, device="meta")


def layers(
    ops: ModuleType,
    dtype: torch.dtype,
    *,
    rows: int,
    width: int,
    hidden: int,
    heads: int,
    slots: int,
) -> None:
    """One call of each operation, as the two kinds of layer make them on tensors without data."""
    d = width // heads
    rotary = make(d), make(d)
    state = make(rows, heads, d, d)
    ops.norm_linear(make(rows, width), make(width), make(4 * width, width, dtype=dtype))
    ops.linear_attend(
        make(rows, 4 * width, dtype=dtype), *rotary, make(2, d), make(heads), make(d), state
    )
    caches = (make(rows, heads, slots, d, dtype=dtype) for _ in range(2))
    ops.full_attend(
        make(rows, 3 * width, dtype=dtype),
        *rotary,
        make(2, d),
        *caches,
        make(1, dtype=torch.int64),
        make(rows, 1, 1, slots, dtype=torch.bool),
        slots,
    )
    ops.norm_swiglu(make(rows, width), make(width), make(2 * hidden, width, dtype=dtype))
    ops.linear_add(
        make(rows, hidden, dtype=dtype), make(width, hidden, dtype=dtype), make(rows, width)
    )


def draws(ops: ModuleType, *, shapes: int, codes: int, tokens: int) -> None:
    """Draws of a token from logits without data, with each of SAMPLINGS."""
    from tar3d.config import SamplingConfig

    for options in SAMPLINGS:
        ops.draw_token(
            make(shapes, codes),
            SamplingConfig(**options),
            make(shapes, tokens),
            make(1, dtype=torch.int64),
            make(shapes),
            make(shapes, tokens, dtype=torch.int64),
        )


class _Kernel:
    """Stands in for a kernel: `launched` gets what it would be launched with."""

    def __init__(self, kernel: Any, launched: Callable[[Launch], None]) -> None:
        self.kernel, self.launched = kernel, launched

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return lambda *arguments, **constants: self.launched(
            Launch(self.kernel, arguments, constants)
        )


@contextlib.contextmanager
def recorded_launches(capability: int) -> Iterator[list[Launch]]:
    """Within it kernels are not launched but listed, as for a GPU of this compute capability.

    The operations of `decode_triton` then take tensors without data.
    """
    from tar3d.gpt import decode_triton, triton_attention, triton_inputs, triton_sampling

    launches: list[Launch] = []
    with contextlib.ExitStack() as stack:
        for module in (decode_triton, triton_attention, triton_sampling):
            for name in KERNELS[module.__name__.rpartition(".")[2]]:
                stand_in = _Kernel(getattr(module, name), launches.append)
                stack.enter_context(mock.patch.object(module, name, stand_in))
        stack.enter_context(mock.patch.object(triton_inputs, "INTERPRETED", new=True))
        shared = mock.patch.object(
            decode_triton, "shared_memory", return_value=SHARED[capability] * 1024
        )
        stack.enter_context(shared)
        yield launches


def compile_launch(capability: int, launch: Launch) -> Any:
    """The kernel of a recorded launch, compiled or taken from Triton's cache, and not loaded."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime.driver import DriverConfig

    driver = SimpleNamespace(
        get_current_target=lambda: GPUTarget("cuda", capability, 32),
        get_current_device=lambda: -capability,  # by which Triton also keeps kernels in memory
        get_current_stream=lambda device: 0,  # noqa: ARG005
    )
    with mock.patch.object(DriverConfig, "active", driver):
        return launch.kernel.warmup(*launch.arguments, grid=(1,), **launch.constants)


def session_launches(capability: int) -> list[Launch]:
    """The launches of a session in bfloat16: of the shipped GPT, GPT-B and GPT-L."""
    from tar3d.checkpoint import read_config
    from tar3d.config import GPTRunConfig, gpt_config
    from tar3d.gpt import decode_triton, kernel_check
    from tar3d.gpt.blocks import mlp_width

    dtype = torch.bfloat16
    shipped = read_config(ROOT / "pretrained/tiny/gpt_any", GPTRunConfig).gpt
    with recorded_launches(capability) as launches:
        for config in (shipped, gpt_config("GPT-B"), gpt_config("GPT-L")):
            D, codes = config.width, config.codebook_size
            sizes = {"width": D, "hidden": mlp_width(D), "heads": config.num_heads}
            capacity = config.condition_tokens + config.num_steps - 1
            for rows in kernel_check.ROWS:
                layers(decode_triton, dtype, rows=rows, slots=kernel_check.SLOTS, **sizes)
            draws(decode_triton, shapes=kernel_check.DRAWS, codes=codes, tokens=2)
            for rows, shapes in DECODED:
                layers(decode_triton, dtype, rows=rows, slots=capacity, **sizes)
                draws(decode_triton, shapes=shapes, codes=codes, tokens=config.num_tokens)
                # q, k and v of a layer without a gate; the end of attention; the head.
                x, weight = make(rows, D), make(3 * D, D, dtype=dtype)
                decode_triton.norm_linear(x, make(D), weight)
                for count, outputs in ((rows, D), (shapes, codes)):
                    x, weight = make(count, D, dtype=dtype), make(outputs, D, dtype=dtype)
                    decode_triton.linear_add(x, weight, make(count, outputs))
    return launches


def compile_all(cache: Path, capability: int) -> None:
    """Compiles what a session launches into the folder `cache`, a cache of Triton's.

    Raises ValueError for a compute capability (times 10) that is not known, ImportError without
    Triton.
    """
    if capability not in SHARED:
        allowed = ", ".join(map(str, SHARED))
        raise ValueError(f"--capability is {capability}, allowed are {allowed}")
    os.environ["TRITON_CACHE_DIR"] = str(cache.resolve())
    os.environ["TRITON_STORE_BINARY_ONLY"] = "1"
    import triton

    launches = session_launches(capability)
    for number, launch in enumerate(launches, start=1):
        compile_launch(capability, launch)
        if number % 50 == 0 or number == len(launches):
            print(f"{number} of {len(launches)} launches", file=sys.stderr, flush=True)
    print(
        f"{len(kernels_in(cache))} kernels for compute capability {capability / 10} in {cache}, "
        f"for triton {triton.__version__} and Python {sys.version_info[0]}.{sys.version_info[1]}"
    )


def kernels_in(cache: Path) -> set[str]:
    """The folders of a cache that hold a compiled decoding kernel, by name."""
    names = [name for kernels in KERNELS.values() for name in kernels]
    return {path.parent.name for name in names for path in cache.glob(f"*/{name}.cubin")}


def put_in_place(cache: Path, place: Path) -> None:
    """Copies a cache to where it is used.

    Triton lists the files of a kernel by their whole paths, so these lists are written anew.
    """
    shutil.copytree(cache, place, dirs_exist_ok=True)
    for path in place.glob("*/__grp__*"):
        listed = json.loads(path.read_text(encoding="utf-8"))
        listed["child_paths"] = {name: str(path.parent / name) for name in listed["child_paths"]}
        path.write_text(json.dumps(listed), encoding="utf-8")
