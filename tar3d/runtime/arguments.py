"""The parser of a command, arguments about devices, and `positive_int`, an argparse type."""

from __future__ import annotations

import argparse
from typing import Any

import tar3d

PRECISIONS = ("auto", "32-true", "bf16-mixed", "16-mixed")  # of matrix products


def command_parser(description: str | None, prog: str | None = None) -> argparse.ArgumentParser:
    """The parser of a command: shows its docstring as it is written, and has --version."""
    parser = argparse.ArgumentParser(
        prog=prog, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--version", action=_ShowVersion, nargs=0, help="show version and commit, and exit"
    )
    return parser


class _ShowVersion(argparse.Action):
    """Prints version and commit, and ends the program."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from tar3d.runtime.machine import commit

        print(f"tar3d-efficient {tar3d.__version__}, commit {commit()}")
        parser.exit()


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


# Cells along an axis of an extraction, at most: up to 1,024 are measured in docs/speed.md.
MOST_CELLS = 2048


def cell_count(text: str) -> int:
    """The argparse type of the cells along each axis of an extraction."""
    value = positive_int(text)
    if value > MOST_CELLS:
        raise argparse.ArgumentTypeError(
            f"must be at most {MOST_CELLS:,}, got {value:,}: memory grows with its square"
        )
    return value


def positive_int(text: str) -> int:
    """The argparse type of a count."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value
