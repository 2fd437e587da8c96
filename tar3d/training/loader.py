"""The loader of training data: worker processes that read ahead of the training."""

from __future__ import annotations

import atexit
from typing import TYPE_CHECKING, cast

from torch.utils.data import DataLoader, Dataset, Sampler

from tar3d.data.datasets.sampler import TrainingOrder
from tar3d.training.signals import end_workers, ignore_signals

if TYPE_CHECKING:
    from lightning_fabric import Fabric

PREFETCHED_BATCHES = 4  # per worker


def training_loader(
    dataset: Dataset, order: Sampler, num_workers: int, fabric: Fabric
) -> DataLoader:
    """Batches of `order` on the device of this process.

    Workers read ahead of the training, and copies to a GPU overlap with its computing. They end
    with the program, also where an error ends it.
    """
    atexit.unregister(end_workers)
    atexit.register(end_workers)
    loader = DataLoader(
        dataset,
        batch_sampler=order,
        num_workers=num_workers,
        pin_memory=fabric.device.type == "cuda",
        prefetch_factor=PREFETCHED_BATCHES if num_workers else None,
        worker_init_fn=ignore_signals if num_workers else None,
    )
    return cast("DataLoader", fabric.setup_dataloaders(loader, use_distributed_sampler=False))


def training_order(
    items: int, batch_size: int, seed: int, start: int, stop: int, fabric: Fabric
) -> TrainingOrder:
    """The items that this process reads in the steps from `start` to before `stop`.

    `batch_size` is that of a step over all processes.
    """
    return TrainingOrder(
        items,
        batch_size,
        seed=seed,
        start=start,
        stop=stop,
        rank=fabric.global_rank,
        world=fabric.world_size,
    )
