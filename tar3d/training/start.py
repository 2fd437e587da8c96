"""What both training scripts read from the command line besides their own, and how their data reach
them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from torch.utils.data import DataLoader, Dataset, Sampler

from tar3d.runtime import add_device_arguments, positive_int
from tar3d.training.faults import ignore_stopping

if TYPE_CHECKING:
    import argparse

    from lightning_fabric import Fabric

PREFETCHED_BATCHES = 4  # of each worker


def add_run_arguments(parser: argparse.ArgumentParser, out: str) -> None:
    parser.add_argument(
        "--out", type=Path, default=Path(out), help="run folder (default: %(default)s)"
    )
    parser.add_argument(
        "--resume",
        metavar="auto|STATE",
        help="auto: go on from the newest good state in --out, or begin if there is none; or from a state's file",
    )
    parser.add_argument(
        "--init", metavar="MODEL", help="start from the weights of a model directory or Hub id"
    )
    parser.add_argument(
        "--wandb",
        metavar="PROJECT",
        help="log to Weights & Biases too (CSV and TensorBoard are always written)",
    )
    trial = parser.add_mutually_exclusive_group()
    trial.add_argument(
        "--dry-run",
        action="store_true",
        help="two steps of each kind, a validation and a save, in a folder that is thrown away: says what the "
        "training needs of time, memory and disk",
    )
    trial.add_argument(
        "--overfit",
        type=positive_int,
        metavar="N",
        help="learn N training shapes by heart, without augmentation or noise, and say PASS or FAIL "
        "(exit status 1)",
    )
    add_device_arguments(parser)
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="config values, as in train.save_every=100",
    )


def print_verdict(what: str, found: float, bar: float) -> int:
    """Says whether a training could learn a few shapes by heart, and returns the exit status."""
    passed = found >= bar
    print(
        f"{'PASS' if passed else 'FAIL'}: {what} {found:.4f}, at least {bar} is asked for"
        + ("" if passed else "; give it more steps before looking for a fault")
    )
    return 0 if passed else 1


def training_loader(
    dataset: Dataset, order: Sampler, num_workers: int, fabric: Fabric
) -> DataLoader:
    """Batches of `order` on the device of this process: workers run ahead of the training, and
    copies to a GPU beside it."""
    on_gpu = fabric.device.type == "cuda"
    loader = DataLoader(
        dataset,
        batch_sampler=order,
        num_workers=num_workers,
        pin_memory=on_gpu,
        prefetch_factor=PREFETCHED_BATCHES if num_workers else None,
        worker_init_fn=ignore_stopping if num_workers else None,
    )
    return fabric.setup_dataloaders(loader, use_distributed_sampler=False)
