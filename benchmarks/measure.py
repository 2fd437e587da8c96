"""A benchmark case, and how it is timed: warm-up, repeats, median, memory, roofline.

Nothing here asserts a time. Every call is followed by a device synchronisation, so that a kernel's
time counts for the call that launched it.

The variants of a case are timed in turn, A B C A B C ..., so that a machine that is slow for a
while is slow for all of them. The first is the baseline, and `speedup` is its time per item over
another's, pair by pair.

A roofline is the least time that the bytes and the operations of a call can take on this machine:
bytes over bandwidth or operations over rate, whichever is longer, both ceilings measured here
(`Ceilings`), not a vendor's.
"""

from __future__ import annotations

import functools
import statistics
import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

import torch

from benchmarks.common import SIZES
from tar3d.runtime import PRECISIONS, compute_dtype, peak_resident_bytes
from tar3d.throughput import best_seconds, find_peak, matmul_rate, synchronize

if TYPE_CHECKING:
    from collections.abc import Callable

# Goals by name: the field of a record, whether more of it is better, and how it is printed.
GOALS = {
    "seconds": ("median_seconds", False, "{:.3g} s"),
    "speedup": ("speedup", True, "{:.2f} times the baseline's speed"),
    "mfu": ("mfu", True, "MFU {:.1%}"),
    "gpu_mib": ("peak_gpu_mib", False, "{:,.0f} MiB of GPU memory"),
}
DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    **{name: compute_dtype(name) for name in PRECISIONS if name != "auto"},
}
# Sizes for measuring ceilings, by device: float32 elements that no cache holds, the side of
# a matrix product, calls between two readings of the clock (a launch costs a GPU more than that).
PROBE_SIZES = {"cpu": (1 << 26, 1536, 1), "cuda": (1 << 29, 8192, 10)}
PROBE_ROWS = 1 << 12


@dataclass(frozen=True)
class Work:
    """A built case or a variant of one.

    `call` does the work once and returns notes for the record; one call makes `items` items.
    `settings` are the sizes that a reader needs to repeat it; `reduced` says in words what is
    smaller than in the config. `bytes_moved` is the least number of bytes of memory that a call
    moves, without inputs that stay in a cache: weights and caches read once, states read and
    written once. `flops` is the least number of operations. Both are None where they are not
    counted. `goals` are values to reach, by names of `GOALS`. `whole_run` is the number of items of
    a whole training: its hours at the rate measured go into the notes as `estimated_hours`.
    """

    call: Callable[[], dict[str, float | int] | None]
    items: int
    dtype: str
    settings: dict[str, object] = field(default_factory=dict)
    reduced: str = ""
    bytes_moved: float | None = None
    flops: float | None = None
    goals: dict[str, float] = field(default_factory=dict)
    whole_run: int | None = None


@dataclass(frozen=True)
class Case:
    """A benchmark case by name and size.

    `build(device)` makes the models and inputs, untimed. It returns one work, or several variants
    by name, the first being the baseline; a text instead of a work says why this machine cannot run
    it. `repeats` and `warmup` suit the CPU; `--repeats` overrides the first.
    """

    name: str
    size: str
    unit: str  # what the rate counts, in the plural
    build: Callable[[torch.device], Work | str | dict[str, Work | str]]
    repeats: int = 3
    warmup: int = 1
    devices: tuple[str, ...] = ("cpu", "cuda")

    def __post_init__(self) -> None:
        if self.size not in SIZES:
            raise ValueError(
                f"case {self.name}: size is {self.size!r}, allowed are {', '.join(SIZES)}"
            )

    @property
    def id(self) -> str:
        return f"{self.size}/{self.name}"


@dataclass(frozen=True)
class Ceilings:
    """The measured limits of this machine, the best of a few calls.

    Bytes are moved in three ways, because none is the fastest everywhere: a copy (bytes read and
    written), a sum and a matrix-vector product (bytes read). A processor may read a line before it
    writes it, so that a copy understates the bandwidth of decoding, which hardly writes. The
    fastest of the three is the bandwidth of the roofline.
    """

    copy_bytes_per_second: float
    sum_bytes_per_second: float
    product_bytes_per_second: float
    flops_per_second: float  # a large square matrix product in the work's dtype

    @property
    def bytes_per_second(self) -> float:
        return max(
            self.copy_bytes_per_second, self.sum_bytes_per_second, self.product_bytes_per_second
        )


def measure(
    case: Case, device: torch.device, repeats: int | None = None
) -> list[dict[str, object]]:
    """Runs the case and returns a record (plain values) for each of its variants.

    The peak memories of a case with one work are those of this process so far, with models and
    inputs: call it once in a fresh process. With several variants in one process they are None.
    """
    built = case.build(device)
    alone = not isinstance(built, dict)
    variants = {"": built} if alone else built
    refused = _warm_up(variants, case.warmup, device, alone)
    works = {name: work for name, work in variants.items() if name not in refused}
    seconds: dict[str, list[float]] = {name: [] for name in works}
    notes: dict[str, dict] = {}
    for _ in range(repeats or case.repeats):
        for name, work in works.items():
            synchronize(device)
            start = time.perf_counter()
            noted = work.call()
            synchronize(device)
            seconds[name].append(time.perf_counter() - start)
            notes[name] = noted or {}
    # Read before the ceilings are measured, which takes a good deal of memory.
    memory = _peak_memory(device) if alone else {"peak_resident_mib": None, "peak_gpu_mib": None}
    baseline = next(iter(variants))
    records = []
    for name in variants:
        record: dict[str, object] = {"case": case.id, "variant": name}
        if name in refused:
            records.append(record | refused[name])
            continue
        work = works[name]
        record |= {
            **_figures(work, seconds[name]),
            **memory,
            "warmup": case.warmup,
            "unit": case.unit,
            "notes": notes[name] | _whole_run(work, seconds[name]),
        }
        if not alone and baseline in works:
            record["speedup"] = _speedup(works[baseline], seconds[baseline], work, seconds[name])
        records.append(record | _limits(work, seconds[name], device))
    return records


def _warm_up(
    variants: dict[str, Work | str], calls: int, device: torch.device, alone: bool
) -> dict[str, dict[str, str]]:
    """Calls each variant, and returns the reasons of those that do not run, by name.

    An error of a variant that is alone is raised.
    """
    refused: dict[str, dict[str, str]] = {}
    for name, work in variants.items():
        if isinstance(work, str):
            refused[name] = {"left_out": work}
            continue
        try:
            for _ in range(calls):
                work.call()
            synchronize(device)
        except ValueError as e:  # the way in which this project refuses what it cannot do
            if alone:
                raise
            refused[name] = {"left_out": str(e)}
        except Exception as e:
            if alone:
                raise
            refused[name] = {"error": f"{type(e).__name__}: {e}".splitlines()[0]}
    return refused


def _whole_run(work: Work, seconds: list[float]) -> dict[str, float]:
    if work.whole_run is None:
        return {}
    return {"estimated_hours": work.whole_run / (work.items / statistics.median(seconds)) / 3600}


def _limits(work: Work, seconds: list[float], device: torch.device) -> dict[str, object]:
    """The roofline of a work whose bytes or operations are counted, and its MFU on a GPU."""
    if work.bytes_moved is None and work.flops is None:
        return {}
    median, dtype = statistics.median(seconds), DTYPES[work.dtype]
    limits = roofline(work, median, measure_ceilings(device, dtype))
    if work.flops is not None and device.type == "cuda":
        limits["mfu"] = work.flops / median / find_peak(device, dtype).flops_per_second
    return limits


def _figures(work: Work, seconds: list[float]) -> dict[str, object]:
    median = statistics.median(seconds)
    return {
        "median_seconds": median,
        "min_seconds": min(seconds),
        "seconds": seconds,
        "repeats": len(seconds),
        "items": work.items,
        "per_second": work.items / median,
        "ms_per_item": 1000 * median / work.items,
        "goals": work.goals,
        "dtype": work.dtype,
        "threads": torch.get_num_threads(),
        "settings": work.settings,
        "reduced": work.reduced,
    }


def _speedup(
    base: Work, base_seconds: list[float], work: Work, seconds: list[float]
) -> dict[str, float]:
    """Speed per item relative to the baseline, from pairs of calls that followed each other."""
    pairs = [
        (b / base.items) / (s / work.items) for b, s in zip(base_seconds, seconds, strict=True)
    ]
    return {"median": statistics.median(pairs), "min": min(pairs), "max": max(pairs)}


def roofline(work: Work, seconds: float, ceilings: Ceilings) -> dict[str, object]:
    """The `fraction` of the machine's limit that a call of `seconds` reaches, and which limit.

    It may exceed 1 where everything that a call touches fits a cache, because the limit is that of
    memory.
    """
    moving = (work.bytes_moved or 0) / ceilings.bytes_per_second
    computing = (work.flops or 0) / ceilings.flops_per_second
    least = max(moving, computing)
    return {
        "bytes_moved": work.bytes_moved,
        "flops": work.flops,
        "roofline_seconds": least,
        "fraction": least / seconds,
        "bound": "memory" if moving >= computing else "arithmetic",
        "ceilings": asdict(ceilings),
    }


def goal_lines(record: dict) -> list[str]:
    """A line for each goal of a record: reached or not. Goals without a figure are left out."""
    lines = []
    for name, goal in record.get("goals", {}).items():
        key, more, form = GOALS[name]
        found = record.get(key)
        if found is not None:
            found = found["median"] if isinstance(found, dict) else found
            reached = found >= goal if more else found <= goal
            lines.append(
                f"{form.format(goal)} {'' if reached else 'not '}reached, {form.format(found)}"
            )
    return lines


@functools.cache
def measure_ceilings(device: torch.device, dtype: torch.dtype) -> Ceilings:
    """On random data: with zeros a GPU runs faster than it ever will."""
    numbers, side, calls = PROBE_SIZES[device.type]
    source, target = torch.rand(numbers, device=device), torch.empty(numbers, device=device)
    copying = best_seconds(lambda: target.copy_(source), device, calls)
    matrix, vector = source.view(PROBE_ROWS, -1), torch.rand(numbers // PROBE_ROWS, device=device)
    adding = best_seconds(source.sum, device, calls)
    reading = best_seconds(lambda: torch.mv(matrix, vector), device, calls)
    size = 4 * numbers
    return Ceilings(
        2 * size / copying, size / adding, size / reading, matmul_rate(device, dtype, side, calls)
    )


def _peak_memory(device: torch.device) -> dict[str, float | None]:
    resident = peak_resident_bytes()
    return {
        "peak_resident_mib": None if resident is None else round(resident / 2**20, 1),
        "peak_gpu_mib": round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
        if device.type == "cuda"
        else None,
    }
