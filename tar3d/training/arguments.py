"""Command-line arguments that both training scripts share, and the result of --overfit."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tar3d.config import GPTTrainConfig
from tar3d.runtime import add_device_arguments, model_source, positive_int, start_fabric
from tar3d.training.trackers import TRACKERS

if TYPE_CHECKING:
    import argparse

    from lightning_fabric import Fabric

    from tar3d.config import TrainConfig


def add_run_arguments(parser: argparse.ArgumentParser, out: str) -> None:
    """Adds the arguments of a run; `out` is the default run folder."""
    parser.add_argument(
        "--out", type=Path, default=Path(out), help="run folder (default: %(default)s)"
    )
    parser.add_argument(
        "--resume",
        metavar="auto|STATE",
        help="auto: continue from the newest good state in --out, or begin if there is none; "
        "or the file of a state",
    )
    parser.add_argument(
        "--init",
        type=model_source,
        metavar="MODEL",
        help="start from the weights of a model directory or Hub id",
    )
    for flag, (_, metavar, text) in TRACKERS.items():
        parser.add_argument(f"--{flag}", dest=_destination(flag), metavar=metavar, help=text)
    trial = parser.add_mutually_exclusive_group()
    trial.add_argument(
        "--dry-run",
        action="store_true",
        help="find out what the training needs of time, memory and disk: two steps of each kind, "
        "a validation and a save, in a folder that is deleted",
    )
    trial.add_argument(
        "--overfit",
        type=positive_int,
        metavar="N",
        help="check that the model can learn N training shapes by heart, without augmentation or "
        "noise: prints PASS or FAIL (exit code 1)",
    )
    add_device_arguments(parser)
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="config values, as in train.save_every=100",
    )


def _destination(flag: str) -> str:
    return flag.replace("-", "_")


def start_processes(args: argparse.Namespace, config: TrainConfig) -> Fabric:
    """The launched processes of a training; raises ValueError as `start_fabric` does."""
    return start_fabric(
        args.gpus,
        args.num_nodes,
        config.precision,
        shard=isinstance(config, GPTTrainConfig) and config.strategy == "fsdp",
        deterministic=config.deterministic,
    )


def chosen_trackers(args: argparse.Namespace) -> dict[str, str]:
    """The trackers that were asked for: flag -> its value."""
    values = {flag: getattr(args, _destination(flag)) for flag in TRACKERS}
    return {flag: value for flag, value in values.items() if value}


def print_overfit_result(metric: str, value: float, least: float) -> int:
    """Prints whether a training could learn a few shapes by heart, and returns the exit code."""
    passed = value >= least
    print(
        f"{'PASS' if passed else 'FAIL'}: {metric} {value:.4f}, at least {least} is asked for"
        + ("" if passed else "; give it more steps before looking for a fault")
    )
    return 0 if passed else 1
