"""What a benchmark case is, and how one is timed in the present process: warm-up, repeats, median,
memory, roofline.

Nothing here asserts a time. Every call is followed by a device synchronisation, so a kernel's time
is its own call's.

What is compared with each other is timed in turn, A B C A B C ..., so that a machine that is slow
for a while is slow for all of them; the first is the baseline, and `speedup` is its time per item
over another's, pair by pair.

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

from tar3d.runtime import COMPUTE_DTYPES, peak_resident_bytes
from tar3d.throughput import best_seconds, find_peak, matmul_rate, synchronize

if TYPE_CHECKING:
    from collections.abc import Callable

SIZES = ("tiny", "full")
# What a goal can be of: the field of a record, whether more of it is better, and how it is printed.
GOALS = {
    "seconds": ("median_seconds", False, "{:.3g} s"),
    "speedup": ("speedup", True, "{:.2f} times the baseline's speed"),
    "mfu": ("mfu", True, "MFU {:.1%}"),
    "gpu_mib": ("peak_gpu_mib", False, "{:,.0f} MiB of GPU memory"),
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, **COMPUTE_DTYPES}
# Of the ceilings, by device: float32 elements that no cache holds, the side of a matrix product,
# calls between two looks at the clock (a launch costs a GPU more than looking at it does).
PROBE_SIZES = {"cpu": (1 << 26, 1536, 1), "cuda": (1 << 29, 8192, 10)}
PROBE_ROWS = 1 << 12


@dataclass(frozen=True)
class Work:
    """A built case: `call` does the work once and returns what is worth noting of it, `items`
    counts what one call makes.

    `settings` are the sizes a reader needs to repeat it; `reduced` says in words what is smaller
    than the config has it. `bytes_moved` are the fewest bytes of memory that a call can do with,
    inputs that stay in a cache aside: weights and caches read once, states read and written once.
    `flops` are the fewest operations. None: nobody has counted them. `goals` are wanted of the
    record, by one of the names in `GOALS`. `whole_run` are the items of a whole training: their
    hours at the rate measured go into the notes as `estimated_hours`.
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
    """`build(device)` makes the models and inputs, untimed. `repeats` and `warmup` suit the CPU;
    `--repeats` overrides.

    It gives one work, or several by name that are compared, the first being the baseline. Words
    instead of a work say why this machine cannot run it.
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
    """What this machine was seen to do, the best of a few calls.

    Three ways to move bytes, because none is the fastest everywhere: a copy (bytes read and
    written), a sum and a matrix-vector product (bytes read). A processor may read a line before it
    writes it, so that a copy understates what decoding, which hardly writes, could have. The
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
    """Runs the case and returns a record (plain values) for each of its works.

    The peak memories of a work that is alone in its case are those of this process so far, models
    and inputs included: call it once in a fresh process. Of several works in one process nobody can
    tell, and they are None.
    """
    built = case.build(device)
    alone = not isinstance(built, dict)
    variants = {"": built} if alone else built
    refused = {name: {"left_out": work} for name, work in variants.items() if isinstance(work, str)}
    for name, work in variants.items():
        if name in refused:
            continue
        try:
            for _ in range(case.warmup):
                work.call()
            synchronize(device)
        except (
            Exception
        ) as e:  # whatever a kernel library raises: what it is compared with goes on without it
            if alone:
                raise
            # A ValueError is this project's way to say that it cannot, the rest is a failure.
            refused[name] = (
                {"left_out": str(e)}
                if isinstance(e, ValueError)
                else {"error": f"{type(e).__name__}: {e}".splitlines()[0]}
            )
    works = {name: work for name, work in variants.items() if name not in refused}
    seconds, notes = {name: [] for name in works}, {}
    for _ in range(repeats or case.repeats):
        for name, work in works.items():
            synchronize(device)
            start = time.perf_counter()
            notes[name] = work.call()
            synchronize(device)
            seconds[name].append(time.perf_counter() - start)
    # Read before the probes of the ceilings, which take a good deal of memory.
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
        }
        record["notes"] = notes[name] or {}
        if work.whole_run is not None:
            record["notes"]["estimated_hours"] = work.whole_run / record["per_second"] / 3600
        if not alone and baseline in works:
            record["speedup"] = _speedup(works[baseline], seconds[baseline], work, seconds[name])
        if work.bytes_moved is not None or work.flops is not None:
            record |= roofline(
                work, record["median_seconds"], measure_ceilings(device, DTYPES[work.dtype])
            )
            if work.flops is not None and device.type == "cuda":
                record["mfu"] = (
                    work.flops
                    / record["median_seconds"]
                    / find_peak(device, DTYPES[work.dtype]).flops_per_second
                )
        records.append(record)
    return records


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
    """How many times faster per item than the baseline, from calls that followed each other."""
    pairs = [
        (b / base.items) / (s / work.items) for b, s in zip(base_seconds, seconds, strict=True)
    ]
    return {"median": statistics.median(pairs), "min": min(pairs), "max": max(pairs)}


def speedup_text(record: dict) -> str:
    """Median, least and greatest of a record's speedup; nothing where it is compared with none."""
    return (
        "{median:.2f} ({min:.2f}-{max:.2f})".format(**record["speedup"])
        if "speedup" in record
        else ""
    )


def roofline(work: Work, seconds: float, ceilings: Ceilings) -> dict[str, object]:
    """`fraction` of the machine's limit that a call of `seconds` reaches, and which limit that is.
    Where all that a call touches fits a cache the fraction may pass 1: the limit is memory's."""
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
    """What became of each goal of a record; what this machine has no figure for is no goal here."""
    lines = []
    for name, wanted in record.get("goals", {}).items():
        key, more, form = GOALS[name]
        found = record.get(key)
        if found is not None:
            found = found["median"] if isinstance(found, dict) else found
            reached = found >= wanted if more else found <= wanted
            lines.append(
                f"{form.format(wanted)} {'' if reached else 'not '}reached, {form.format(found)}"
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
