"""Command-line arguments about devices, and `positive_int`, an argparse type."""

from __future__ import annotations

import argparse


def add_device_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds --gpus and --num_nodes, as `start_fabric` takes them."""
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
