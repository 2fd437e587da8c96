"""Processes of a training and what each of them runs on, set up by Lightning Fabric."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Literal, cast

from tar3d.runtime.arguments import PRECISIONS
from tar3d.runtime.blocks import shard_blocks
from tar3d.runtime.devices import make_cublas_deterministic, resolve_precision
from tar3d.runtime.unusable_gpu import warn_of_unusable_gpu

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from lightning_fabric.plugins.precision import Precision


def start_fabric(
    gpus: str | None,
    num_nodes: int,
    precision: str,
    *,
    shard: bool = False,
    deterministic: bool = False,
) -> Fabric:
    """A launched Fabric.

    Under torchrun it joins that job; otherwise it is one process, or one for each of `gpus`. With
    `shard` each process holds its part of weights, gradients and optimizer states (FSDP2), instead
    of all of them (DDP). With `deterministic` cuBLAS is prepared for deterministic steps.

    Raises ValueError when the devices asked for are not there, or the precision is unknown.
    """
    import torch
    from lightning_fabric import Fabric  # seconds to import, and only training needs it
    from lightning_fabric.strategies import DDPStrategy, ModelParallelStrategy

    if deterministic:
        make_cublas_deterministic()
    if precision not in PRECISIONS:
        raise ValueError(f"precision is {precision!r}, allowed are {', '.join(PRECISIONS)}")
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    under_torchrun = "LOCAL_WORLD_SIZE" in os.environ
    devices = _choose_devices(gpus, found)
    if num_nodes < 1 or (num_nodes > 1 and not under_torchrun):
        raise ValueError(
            f"--num_nodes {num_nodes}: start one process group over several machines with torchrun "
            "--nnodes N --nproc_per_node M, and give the same number here; alone, write "
            "--num_nodes 1"
        )
    if not found:
        warn_of_unusable_gpu()
    accelerator = "cuda" if found else "cpu"
    strategy: Any = "auto"
    if num_nodes > 1 or len(devices) > 1:
        strategy = (
            ModelParallelStrategy(shard_blocks, num_nodes * len(devices), 1)
            if shard
            else DDPStrategy()
        )
    fabric = Fabric(
        accelerator=accelerator,
        devices=devices if accelerator == "cuda" else len(devices),
        num_nodes=num_nodes,
        strategy=strategy,
        plugins=_precision_plugin(resolve_precision(precision, accelerator), accelerator),
    )
    fabric.launch()
    return fabric


def _choose_devices(gpus: str | None, found: int) -> list[int]:
    """The devices that --gpus names, those of a torchrun job, or one; `found` GPUs are there."""
    if gpus is None:
        return list(range(int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
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
    return devices


def _parse_gpus(text: str) -> list[int]:
    try:
        devices = [int(d) for d in text.split(",") if d.strip()]
    except ValueError as e:
        raise ValueError(f'--gpus takes device numbers, as in "0" or "0,1", got {text!r}') from e
    if not devices or min(devices) < 0 or len(set(devices)) != len(devices):
        raise ValueError(f'--gpus takes different device numbers, as in "0" or "0,1", got {text!r}')
    return devices


def _precision_plugin(precision: str, accelerator: str) -> Precision:
    import torch
    from lightning_fabric.plugins.precision import MixedPrecision, Precision

    class Autocast(MixedPrecision):
        """Autocast that leaves the inputs of a model as they are.

        Fabric's own rounds them too: coordinates to 1/256, while labels hold for the exact ones.
        """

        def convert_input(self, data: object) -> object:
            return data

    if precision == "32-true":
        return Precision()
    # Under float16 the training scales the loss itself: Fabric's scaler is for one optimizer.
    unscaled = torch.amp.GradScaler(accelerator, enabled=False) if precision == "16-mixed" else None
    return Autocast(cast("Literal['16-mixed', 'bf16-mixed']", precision), accelerator, unscaled)
