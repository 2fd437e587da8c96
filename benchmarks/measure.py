"""What a benchmark case is, and how one is timed in the present process: warm-up, repeats, median, memory.

Nothing here asserts a time. Every call is followed by a device synchronisation, so a kernel's time is its own call's.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from tar3d.runtime import peak_resident_bytes

SIZES = ("tiny", "full")


@dataclass(frozen=True)
class Work:
    """A built case: `call` does the work once and returns what is worth noting of it, `items` counts what one call makes.

    `settings` are the sizes a reader needs to repeat it; `reduced` says in words what is smaller than the config has it.
    """

    call: Callable[[], dict[str, float | int] | None]
    items: int
    dtype: str
    settings: dict[str, object] = field(default_factory=dict)
    reduced: str = ""


@dataclass(frozen=True)
class Case:
    """`build(device)` makes the models and inputs, untimed. `repeats` and `warmup` suit the CPU; `--repeats` overrides."""

    name: str
    size: str
    unit: str  # what the rate counts, in the plural
    build: Callable[[torch.device], Work]
    repeats: int = 3
    warmup: int = 1
    devices: tuple[str, ...] = ("cpu", "cuda")

    def __post_init__(self) -> None:
        if self.size not in SIZES:
            raise ValueError(f"case {self.name}: size is {self.size!r}, allowed are {', '.join(SIZES)}")

    @property
    def id(self) -> str:
        return f"{self.size}/{self.name}"


def measure(case: Case, device: torch.device, repeats: int | None = None) -> dict[str, object]:
    """Runs the case and returns its record (plain values). The peak memories are those of this process so far, models and
    inputs included: call it once in a fresh process."""
    work = case.build(device)
    for _ in range(case.warmup):
        work.call()
    seconds, notes = [], None
    for _ in range(repeats or case.repeats):
        _synchronize(device)
        start = time.perf_counter()
        notes = work.call()
        _synchronize(device)
        seconds.append(time.perf_counter() - start)
    median = statistics.median(seconds)
    resident = peak_resident_bytes()
    return {
        "case": case.id, "median_seconds": median, "min_seconds": min(seconds), "seconds": seconds, "repeats": len(seconds),
        "warmup": case.warmup, "items": work.items, "unit": case.unit, "per_second": work.items / median,
        "ms_per_item": 1000 * median / work.items, "dtype": work.dtype, "threads": torch.get_num_threads(),
        "peak_resident_mib": None if resident is None else round(resident / 2**20, 1),
        "peak_gpu_mib": round(torch.cuda.max_memory_allocated(device) / 2**20, 1) if device.type == "cuda" else None,
        "settings": work.settings, "reduced": work.reduced, "notes": notes or {},
    }


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
