"""The Triton kernels compiled for NVIDIA architectures, ahead of time and without a GPU.

Every kernel fits the shared memory of the device that it is compiled for, at every number of rows
and every named size of GPT. The ordinary run compiles a few; `-m soak` compiles all.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from benchmarks.kernel_cache import (
    SAMPLINGS,
    SHARED,
    compile_launch,
    draws,
    kernels_in,
    layers,
    put_in_place,
    recorded_launches,
)
from tar3d.config.gpt import GPT_SIZES
from tar3d.gpt.blocks import mlp_width

ROWS = (1, 2, 4, 8, 16, 32, 64)


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
    """A function: the launches of a layer of each kind, and of draws, on a device."""
    pytest.importorskip("triton")
    if os.environ.get("TRITON_INTERPRET"):
        pytest.skip("Triton is interpreted in this process")
    from tar3d.gpt import decode_triton

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))

    def launch(capability: int, rows: int, size: str = "GPT-L", codes: int = 16384) -> list:
        # Compute capability 7.5 has no bfloat16.
        dtype = torch.bfloat16 if capability >= 80 else torch.float16
        _, width, heads = GPT_SIZES[size]
        with recorded_launches(capability) as found:
            layers(
                decode_triton,
                dtype,
                rows=rows,
                width=width,
                hidden=mlp_width(width),
                heads=heads,
                slots=3328,
            )
            draws(decode_triton, shapes=rows, codes=codes, tokens=3072)
        assert len(found) == 6 + len(SAMPLINGS)
        return found

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
    for launch in launches(90, B):
        name = launch.kernel.__name__
        if name not in names:
            continue
        compiled = compile_launch(90, launch)
        used = resources(compiled, tmp_path)
        assert used["STACK"] == 0, (name, used)
        assert compiled.metadata.shared <= SHARED[90] * 1024, name
        if launch.constants.get("DOT") is False:
            sizes = re.findall(r"convert_layout .*: tensor<(\d+)x(\d+)x", compiled.asm["ttgir"])
            assert all(int(rows) * int(columns) <= 64 for rows, columns in sizes), sizes


def test_products_of_many_rows_fit_a_consumer_card(launches):
    """The largest programs, at 64 rows, fit the 99 KiB of compute capability 8.6."""
    stages = []
    for launch in launches(86, 64):
        if launch.kernel.__name__ == "_linear_kernel":
            compiled = compile_launch(86, launch)
            assert compiled.metadata.shared <= SHARED[86] * 1024, launch.constants
            stages.append(launch.constants["STAGES"])
    assert stages == [3, 2, 4]  # norm_linear, norm_swiglu, linear_add: as many as fit


def test_a_cache_is_found_where_it_is_copied_to(launches, tmp_path, monkeypatch):
    """What a session compiles beforehand is what the check of the kernels launches."""
    from tar3d.gpt import decode_triton, kernel_check

    made, place = tmp_path / "made", tmp_path / "place"
    monkeypatch.setenv("TRITON_CACHE_DIR", str(made))
    _, width, heads = GPT_SIZES["GPT-tiny"]
    sizes = {"width": width, "hidden": mlp_width(width), "heads": heads}
    rows = kernel_check.ROWS[0]
    with recorded_launches(90) as found:
        layers(decode_triton, torch.bfloat16, rows=rows, slots=kernel_check.SLOTS, **sizes)
    for launch in found:
        compile_launch(90, launch)
        launch.kernel.device_caches.clear()  # what the process has in memory
    put_in_place(made, place)
    shutil.rmtree(made)
    before = kernels_in(place)
    assert len(before) == len(found)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(place))
    meta = torch.device("meta")
    with recorded_launches(90) as found:
        calls = kernel_check._calls(meta, torch.bfloat16, rows, width, heads)
        for name, arguments in calls.items():
            getattr(decode_triton, name)(*arguments)
    for launch in found:
        compile_launch(90, launch)
    assert kernels_in(place) == before and not made.exists()


@pytest.mark.soak
@pytest.mark.parametrize("codes", [32, 16384, 32768])
@pytest.mark.parametrize("capability", SHARED)
def test_the_draw_fits_every_device(launches, capability, codes):
    for launch in launches(capability, 2, codes=codes):
        if launch.kernel.__name__ == "_draw_kernel":
            compiled = compile_launch(capability, launch)
            assert compiled.metadata.shared <= SHARED[capability] * 1024, launch.constants


@pytest.mark.soak
@pytest.mark.parametrize("size", GPT_SIZES)
@pytest.mark.parametrize("capability", SHARED)
def test_every_kernel_fits_every_device(launches, capability, size):
    for rows in ROWS:
        for launch in launches(capability, rows, size):
            compiled = compile_launch(capability, launch)
            assert compiled.metadata.shared <= SHARED[capability] * 1024, (rows, launch.constants)
