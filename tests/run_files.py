"""What tests read of a run: files of its folder, its exit code."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import torch


def rows(path: Path) -> list[dict]:
    with path.open(newline="") as f:
        return list(csv.DictReader(f))


def equal(a, b) -> bool:
    """Nested equality of training states, tensors bit for bit."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a if k != "seconds")
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def exit_code(main: Callable[[list[str]], int], argv: list[str]) -> int | str | None:
    """The exit code of a command, whether its parser or its main function ends it."""
    try:
        return main(argv)
    except SystemExit as stop:
        return stop.code
