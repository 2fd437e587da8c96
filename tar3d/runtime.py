"""Devices, precision and processes, set up once for a script (Lightning Fabric underneath), and
what a figure needs beside it."""

from __future__ import annotations

import argparse
import functools
import os
import platform
import shlex
import subprocess
import sys
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from lightning_fabric import Fabric
    from torch.distributed.device_mesh import DeviceMesh

# Of matrix products, by precision.
COMPUTE_DTYPES = {"32-true": torch.float32, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
PRECISIONS = ("auto", *COMPUTE_DTYPES)


def add_device_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--gpus",
        metavar="LIST",
        help='CUDA devices, as in "0,1" (default: the first GPU if there is one, else the CPU)',
    )
    parser.add_argument(
        "--num_nodes", type=int, default=1, help="machines of a torchrun job (default: 1)"
    )


def positive_int(text: str) -> int:
    """The argparse type of a count."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def start_fabric(
    gpus: str | None, num_nodes: int, precision: str, *, shard: bool = False
) -> Fabric:
    """A launched Fabric. Under torchrun it joins that job; otherwise it is one process, or one for
    each of `gpus`. `shard`: of weights, gradients and optimizer states each process holds its part
    (FSDP2), instead of all (DDP).

    Raises ValueError when the devices asked for are not there, or the precision is unknown.
    """
    from lightning_fabric import Fabric  # seconds to import, and only training needs it
    from lightning_fabric.plugins.precision import MixedPrecision, Precision
    from lightning_fabric.strategies import DDPStrategy, ModelParallelStrategy

    class Autocast(MixedPrecision):
        """Fabric's own also rounds what a model is given: coordinates to 1/256, while labels hold
        for the exact ones."""

        def convert_input(self, data: object) -> object:
            return data

    if precision not in PRECISIONS:
        raise ValueError(f"precision is {precision!r}, allowed are {', '.join(PRECISIONS)}")
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    under_torchrun = "LOCAL_WORLD_SIZE" in os.environ
    if gpus is not None:
        devices = _parse_gpus(gpus)
        missing = [d for d in devices if d >= found]
        if missing:
            there = ",".join(map(str, range(found)))
            have = (
                f"it has GPU {there}: write --gpus {there}"
                if found
                else "it has none: leave --gpus out to train on the CPU"
            )
            raise ValueError(
                f"--gpus {gpus} asks for GPU {','.join(map(str, missing))}, "
                f"which this machine does not have; {have}"
            )
    elif under_torchrun:
        devices = list(range(int(os.environ["LOCAL_WORLD_SIZE"])))
    else:
        devices = [0]
    accelerator = "cuda" if found else "cpu"
    if num_nodes < 1 or (num_nodes > 1 and not under_torchrun):
        raise ValueError(
            f"--num_nodes {num_nodes}: start one process group over several machines with torchrun "
            "--nnodes N --nproc_per_node M, and give the same number here; alone, write --num_nodes 1"
        )
    distributed = num_nodes > 1 or len(devices) > 1
    chosen = resolve_precision(precision, accelerator)
    # Under float16 the training scales the loss itself: Fabric's scaler is for one optimizer.
    unscaled = torch.amp.GradScaler(accelerator, enabled=False) if chosen == "16-mixed" else None
    fabric = Fabric(
        accelerator=accelerator,
        devices=devices if accelerator == "cuda" else len(devices),
        num_nodes=num_nodes,
        strategy="auto"
        if not distributed
        else DDPStrategy()
        if not shard
        else ModelParallelStrategy(shard_blocks, num_nodes * len(devices), 1),
        plugins=Precision() if chosen == "32-true" else Autocast(chosen, accelerator, unscaled),
    )
    fabric.launch()
    return fabric


def shard_blocks(module: torch.nn.Module, mesh: DeviceMesh) -> torch.nn.Module:
    """FSDP2: each repeated block is gathered when it is used, and let go after; what is left over
    belongs to the whole."""
    from torch.distributed.fsdp import fully_shard

    for block in repeated_blocks(module):
        fully_shard(block, mesh=mesh["data_parallel"])
    return fully_shard(module, mesh=mesh["data_parallel"])


def _parse_gpus(text: str) -> list[int]:
    try:
        devices = [int(d) for d in text.split(",") if d.strip()]
    except ValueError as e:
        raise ValueError(f'--gpus takes device numbers, as in "0" or "0,1", got {text!r}') from e
    if not devices or min(devices) < 0 or len(set(devices)) != len(devices):
        raise ValueError(f'--gpus takes different device numbers, as in "0" or "0,1", got {text!r}')
    return devices


def resolve_precision(precision: str, accelerator: str) -> str:
    """ "auto" is bfloat16 autocast where the hardware computes it natively, else float32."""
    if precision != "auto":
        return precision
    if accelerator == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = torch.cpu._is_avx512_bf16_supported()
    return "bf16-mixed" if native else "32-true"


def choose_device(name: str | None, low_vram: bool = False) -> torch.device:
    """The device of an inference script: `name`, or a GPU if there is one. ValueError when it is
    not there, or when it is a CPU, where `low_vram` has nothing to save."""
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as e:
        raise ValueError(f"--device is {name!r}; write cpu, cuda or cuda:N") from e
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"--device {name}: this machine has {torch.cuda.device_count()} CUDA devices; write --device cpu"
        )
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"--device is {name!r}; this project runs on cpu and cuda")
    if low_vram and device.type == "cpu":
        raise ValueError(
            "--low-vram keeps models off the GPU while they do not work, but this runs on the CPU: there is no GPU "
            "memory to save, leave it out"
        )
    return device


def prepare_blocks(module: torch.nn.Module, activation_checkpointing: str, compile: bool) -> None:
    """What a training does to each repeated block (child of an nn.ModuleList) by itself, in place,
    so that names in a checkpoint stay as they are.

    `activation_checkpointing` (activation checkpointing): "none" keeps for the backward pass whatever it needs;
    "cheap" keeps the inputs of blocks and the results of matrix products and attention, and works
    out the rest again, which is elementwise; "blocks" keeps the inputs of blocks alone, for a third
    more computing. `compile` is torch.compile: of blocks, because that takes a fifth of the whole
    model's time, and has most of the gain. What a compiled block keeps is as little as with "cheap"
    anyway.
    """
    for block in repeated_blocks(module):
        if activation_checkpointing == "blocks" or (
            activation_checkpointing == "cheap" and not compile
        ):
            block.forward = _recomputed(
                block.forward, cheap_only=activation_checkpointing == "cheap"
            )
        if compile:
            block.compile()


def repeated_blocks(module: torch.nn.Module) -> list[torch.nn.Module]:
    return [
        block
        for child in module.modules()
        if isinstance(child, torch.nn.ModuleList)
        for block in child
    ]


def _recomputed(forward: Callable, cheap_only: bool) -> Callable:
    from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

    aten = torch.ops.aten
    costly = [
        aten.mm,
        aten.addmm,
        aten.bmm,
        aten.baddbmm,
        aten.convolution,
        aten._scaled_dot_product_flash_attention,
        aten._scaled_dot_product_efficient_attention,
        aten._scaled_dot_product_cudnn_attention,
        aten._scaled_dot_product_flash_attention_for_cpu,
    ]
    contexts = functools.partial(
        create_selective_checkpoint_contexts, [op.default for op in costly]
    )
    how = {"context_fn": contexts} if cheap_only else {}

    def call(*args):
        if not torch.is_grad_enabled():
            return forward(*args)
        # No block draws a random number, so there is no state of a generator to restore.
        return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **how)

    return call


def uncompiled() -> AbstractContextManager:
    """Within it compiled blocks run as they are written: validation and generation have other
    shapes, and would compile anew for each."""
    return torch.compiler.set_stance("force_eager")


@contextmanager
def deterministic(on: bool = True) -> Iterator[None]:
    """Within it the same bits in every run on a GPU too, where some sums are otherwise made in
    whatever order threads arrive; an operation that cannot is a RuntimeError. With `on` False,
    within that, whatever is at hand again."""
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    if on:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # stays: cuBLAS reads it once
        torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(on)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.backends.cudnn.benchmark = before[1]


@contextmanager
def extraction_bar(name: str) -> Iterator[Callable[[int, int], None]]:
    """The `progress` of an extraction, as a bar for each lattice with its rate and the time that is
    left."""
    from tqdm import tqdm

    bar = None

    def show(done: int, total: int) -> None:
        nonlocal bar
        if bar is None or total != bar.total or done < bar.n:
            if bar is not None:
                bar.close()
            bar = tqdm(total=total, unit="cell", unit_scale=True, desc=name, leave=False)
        bar.update(done - bar.n)

    try:
        yield show
    finally:
        if bar is not None:
            bar.close()


def peak_memory(device: torch.device) -> str:
    """Largest resident memory of this process so far, and of the GPU where there is one."""
    resident = peak_resident_bytes()
    text = "unknown on Windows" if resident is None else f"{resident / 2**30:.2f} GiB"
    return text + (
        f", GPU {torch.cuda.max_memory_allocated(device) / 2**30:.2f} GiB"
        if device.type == "cuda"
        else ""
    )


def peak_resident_bytes() -> int | None:
    """Largest resident memory of this process so far; None on Windows.

    On Linux from /proc, because ru_maxrss of a new process starts at what its parent held when it
    was forked.
    """
    if sys.platform == "win32":
        return None
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is bytes on macOS, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def describe_machine(device: torch.device) -> dict[str, str]:
    """What a measured figure needs beside it: machine, versions, commit."""
    name = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{os.cpu_count()} x {_cpu_name()}"
    )
    return {
        "machine": name,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": commit(),
    }


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def commit() -> str:
    """The commit of the code that runs, with "+changes" when the tree differs from it; "unknown"
    outside a checkout."""
    root = Path(__file__).resolve().parent.parent
    try:
        git = ["git", "-C", str(root)]
        head = subprocess.run(
            [*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip()
        changed = subprocess.run(
            [*git, "status", "--porcelain", "--untracked-files=no"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head + ("+changes" if changed else "")


def command_line() -> str:
    """What started this program, as one would type it again in this folder."""
    module = sys.modules["__main__"].__spec__  # of python -m; None of a script
    program = ["-m", module.name.removesuffix(".__main__")] if module else [sys.argv[0]]
    return shlex.join(["python", *program, *sys.argv[1:]])
