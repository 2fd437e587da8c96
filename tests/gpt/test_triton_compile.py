"""The Triton kernels compiled for NVIDIA architectures, ahead of time and without a GPU.

Every kernel fits the shared memory of the device that it is compiled for, at every number of rows
and every named size of GPT. The ordinary run compiles a few; `-m soak` compiles all.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tar3d.config import SamplingConfig
from tar3d.config.gpt import GPT_SIZES
from tar3d.gpt.blocks import mlp_width

# Shared memory in KiB that one program can have, by compute capability: CUDA C++ Programming Guide,
# table "Technical specifications per compute capability".
SHARED = {75: 64, 80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}
ROWS = (1, 2, 4, 8, 16, 32, 64)


# Each filter, and no filter: what the kernel that draws tokens is compiled for.
SAMPLINGS = ({}, {"temperature": 0}, {"top_k": 9, "top_p": 0.9, "min_p": 0.1})


def layers(
    ops,
    make: Callable[..., Tensor],
    dtype: torch.dtype,
    *,
    B: int,
    D: int,
    F: int,
    H: int,
    C: int,
    V: int,
) -> None:
    """One call of each operation, as the two kinds of layer and the head make them."""
    d = D // H
    rotary = make(d), make(d)
    ops.norm_linear(make(B, D), make(D), make(4 * D, D, dtype=dtype))
    ops.linear_attend(
        make(B, 4 * D, dtype=dtype), *rotary, make(2, d), make(H), make(d), make(B, H, d, d)
    )
    caches = make(B, H, C, d, dtype=dtype), make(B, H, C, d, dtype=dtype)
    ops.full_attend(
        make(B, 3 * D, dtype=dtype),
        *rotary,
        make(2, d),
        *caches,
        make(1, dtype=torch.int64),
        make(B, 1, 1, C, dtype=torch.bool),
        C,
    )
    ops.norm_swiglu(make(B, D), make(D), make(2 * F, D, dtype=dtype))
    ops.linear_add(make(B, F, dtype=dtype), make(D, F, dtype=dtype), make(B, D))
    for options in SAMPLINGS:
        ops.draw_token(
            make(B, V),
            SamplingConfig(**options),
            make(B, 3072),
            make(1, dtype=torch.int64),
            make(B),
            make(B, 3072, dtype=torch.int64),
        )


class Recorder:
    """Stands in for a kernel and keeps what it would have been launched with."""

    def __init__(self, kernel, launches: list) -> None:
        self.kernel, self.launches = kernel, launches

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return lambda *arguments, **constants: self.launches.append(
            (self.kernel, arguments, constants)
        )


def compile_for(capability: int, kernel, arguments: tuple, constants: dict):
    """A recorded launch, compiled for a compute capability."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    types = {
        torch.float32: "*fp32",
        torch.bfloat16: "*bf16",
        torch.float16: "*fp16",
        torch.int64: "*i64",
        torch.bool: "*i1",
    }
    constants = dict(constants)
    options = {name: constants.pop(name) for name in ("num_warps", "enable_fp_fusion")}
    given = dict(zip(kernel.arg_names, arguments, strict=False)) | constants
    signature, values, attributes = {}, {}, {}
    for place, name in enumerate(kernel.arg_names):
        value = given[name]
        if name in constants or value is None:
            signature[name], values[place,] = "constexpr", value
            continue
        number = "fp32" if isinstance(value, float) else "i32"
        signature[name] = types[value.dtype] if isinstance(value, Tensor) else number
        if isinstance(value, Tensor) or (number == "i32" and value % 16 == 0):
            attributes[place,] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, values, attributes)
    return triton.compile(source, GPUTarget("cuda", capability, 32), options)


def resources(compiled, folder: Path) -> dict[str, int]:
    """Registers and bytes of stack (spilled registers) of a thread, read from the machine code."""
    import triton

    (folder / "kernel.cubin").write_bytes(compiled.asm["cubin"])
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    report = subprocess.run(
        [tool, "--dump-resource-usage", folder / "kernel.cubin"],
        capture_output=True,
        text=True,
        check=True,
    )
    return {name: int(value) for name, value in re.findall(r"(REG|STACK):(\d+)", report.stdout)}


@pytest.fixture
def launches(monkeypatch, tmp_path):
    """A function: launches (kernel, arguments, constants) of a layer of each kind on a device."""
    pytest.importorskip("triton")
    if os.environ.get("TRITON_INTERPRET"):
        pytest.skip("Triton is interpreted in this process")
    from tar3d.gpt import decode_triton, triton_attention, triton_inputs, triton_sampling

    found: list = []
    for module, names in (
        (decode_triton, ("_linear_kernel",)),
        (triton_attention, ("_linear_attend_kernel", "_attend_kernel", "_combine_kernel")),
        (triton_sampling, ("_draw_kernel",)),
    ):
        for name in names:
            monkeypatch.setattr(module, name, Recorder(getattr(module, name), found))
    monkeypatch.setattr(triton_inputs, "INTERPRETED", True)  # takes tensors that are not on a GPU
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))

    def make(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    def launch(capability: int, rows: int, size: str = "GPT-L", codes: int = 16384) -> list:
        shared = SHARED[capability] * 1024
        monkeypatch.setattr(decode_triton, "shared_memory", lambda device: shared)
        # Compute capability 7.5 has no bfloat16.
        dtype = torch.bfloat16 if capability >= 80 else torch.float16
        _, D, H = GPT_SIZES[size]
        found.clear()
        layers(decode_triton, make, dtype, B=rows, D=D, F=mlp_width(D), H=H, C=3328, V=codes)
        assert len(found) == 6 + len(SAMPLINGS)
        return list(found)

    return launch


@pytest.mark.parametrize(
    "B, names",
    [
        (
            2,
            {
                "_linear_kernel",
                "_linear_attend_kernel",
                "_attend_kernel",
                "_combine_kernel",
                "_draw_kernel",
            },
        ),
        (32, {"_linear_kernel"}),
    ],
)
def test_kernels_compile_for_hopper(launches, tmp_path, B, names):
    """GPT-L in bfloat16: they fit the registers and the shared memory, and weights go straight from
    memory to the sums."""
    for kernel, arguments, constants in launches(90, B):
        if kernel.__name__ not in names:
            continue
        compiled = compile_for(90, kernel, arguments, constants)
        used = resources(compiled, tmp_path)
        assert used["STACK"] == 0, (kernel.__name__, used)
        assert compiled.metadata.shared <= SHARED[90] * 1024, kernel.__name__
        if constants.get("DOT") is False:
            sizes = re.findall(r"convert_layout .*: tensor<(\d+)x(\d+)x", compiled.asm["ttgir"])
            assert all(int(rows) * int(columns) <= 64 for rows, columns in sizes), sizes


def test_products_of_many_rows_fit_a_consumer_card(launches):
    """The largest programs, at 64 rows, fit the 99 KiB of compute capability 8.6."""
    stages = []
    for kernel, arguments, constants in launches(86, 64):
        if kernel.__name__ == "_linear_kernel":
            compiled = compile_for(86, kernel, arguments, constants)
            assert compiled.metadata.shared <= SHARED[86] * 1024, constants
            stages.append(constants["STAGES"])
    assert stages == [3, 2, 4]  # norm_linear, norm_swiglu, linear_add: as many as fit


@pytest.mark.soak
@pytest.mark.parametrize("codes", [32, 16384, 32768])
@pytest.mark.parametrize("capability", SHARED)
def test_the_draw_fits_every_device(launches, capability, codes):
    for kernel, arguments, constants in launches(capability, 2, codes=codes):
        if kernel.__name__ == "_draw_kernel":
            compiled = compile_for(capability, kernel, arguments, constants)
            assert compiled.metadata.shared <= SHARED[capability] * 1024, constants


@pytest.mark.soak
@pytest.mark.parametrize("size", GPT_SIZES)
@pytest.mark.parametrize("capability", SHARED)
def test_every_kernel_fits_every_device(launches, capability, size):
    for rows in ROWS:
        for kernel, arguments, constants in launches(capability, rows, size):
            compiled = compile_for(capability, kernel, arguments, constants)
            assert compiled.metadata.shared <= SHARED[capability] * 1024, (rows, constants)
