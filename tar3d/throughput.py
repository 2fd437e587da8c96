"""Throughput of a training: rate, remaining time, model FLOP/s, MFU, and time spent on data.

MFU is model FLOPs over the device's peak (PaLM, arXiv 2204.02311, appendix B): only what the model
needs counts, nothing that is computed twice (`train.activation_checkpointing`), and nothing of the
optimizer. The models count their own FLOPs (`GPT.flops`, `VQVAE.flops`).
"""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

T = TypeVar("T")

# Dense bfloat16 FLOP/s with float32 sums, from NVIDIA's data sheets, by a part of the device's
# name; the first that fits counts.
VENDOR_PEAKS = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "RTX A6000": 155e12,
    "RTX 5090": 209e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}
SLOWER = "Laptop"  # a card of the same name in a laptop has another peak
# Sides of the square matrices that are multiplied where no data sheet helps.
PROBE_SIDES = {"cpu": 1024, "cuda": 8192}
SLOW_PROBE_SIDE = 256  # of float16 on a CPU, which takes seconds for the product above
PROBES = 3


@dataclass(frozen=True)
class Peak:
    """The device's greatest FLOP/s, and the source of that figure."""

    flops_per_second: float
    source: str


@functools.cache
def find_peak(device: torch.device, dtype: torch.dtype) -> Peak:
    """The peak of a device for matrix products of a dtype.

    The data sheet's for a known GPU in bfloat16, else what a large matrix product reaches here now
    (a second at most, once a process).
    """
    if device.type == "cuda" and dtype == torch.bfloat16:
        name = torch.cuda.get_device_name(device)
        for part, flops in VENDOR_PEAKS.items():
            if part in name and SLOWER not in name:
                return Peak(flops, f"{flops / 1e12:.0f} TFLOP/s, {part}'s data sheet")
    slow = device.type == "cpu" and dtype == torch.float16
    measured = matmul_rate(device, dtype, SLOW_PROBE_SIDE if slow else PROBE_SIDES[device.type])
    return Peak(
        measured,
        f"{_flops(measured)}, a {str(dtype).removeprefix('torch.')} matrix product measured here",
    )


def matmul_rate(device: torch.device, dtype: torch.dtype, side: int, calls: int = 1) -> float:
    """FLOP/s of the best of a few products of two `side` x `side` matrices.

    Random ones, as a GPU multiplies zeros faster than anything else.
    """
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return 2 * side**3 / best_seconds(lambda: a @ b, device, calls)


def best_seconds(call: Callable[[], object], device: torch.device, calls: int = 1) -> float:
    """Seconds of a call: the best of a few series of `calls` calls, after one to warm up."""
    call()
    seconds = []
    for _ in range(PROBES):
        synchronize(device)
        start = time.perf_counter()
        for _ in range(calls):
            call()
        synchronize(device)
        seconds.append((time.perf_counter() - start) / calls)
    return min(seconds)


def synchronize(device: torch.device) -> None:
    """Waits until a GPU has finished; a CPU always has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Meter:
    """Times a training loop of `total` steps that begins at step `start`.

    `items` (in `unit`s) and `flops` are those of one step on one device, whose peak is `peak`. Time
    between `pause` and `resume` is not counted: validation, previews, saving.
    """

    def __init__(
        self, start: int, total: int, *, items: int, unit: str, flops: float, peak: Peak
    ) -> None:
        self.total, self.items, self.unit, self.flops, self.peak = total, items, unit, flops, peak
        self._step = self._first = start
        # Seconds of training so far, and at the last reading.
        self._busy = self._read_at = 0.0
        self._waited = 0.0  # seconds since the last reading
        self._since = time.perf_counter()

    def batches(self, loader: Iterable[T]) -> Iterator[T]:
        """The batches of the loader; the time until it yields one counts as waiting."""
        iterator = iter(loader)
        while True:
            start = time.perf_counter()
            try:
                batch = next(iterator)
            except StopIteration:
                return
            self._waited += time.perf_counter() - start
            yield batch

    def pause(self) -> None:
        """Stops the clock."""
        self._busy += time.perf_counter() - self._since

    def resume(self) -> None:
        """Starts the clock again."""
        self._since = time.perf_counter()

    def read(self, step: int) -> dict[str, float]:
        """Figures of the steps since the last reading; there must have been at least one step.

        Steps and items a second, FLOP/s, MFU, and the share of time spent waiting for data.
        """
        self.pause()
        self.resume()
        seconds, steps = max(self._busy - self._read_at, 1e-9), step - self._step
        rate = steps / seconds
        figures = {
            "steps_per_second": rate,
            f"{self.unit}_per_second": rate * self.items,
            "model_flops_per_second": rate * self.flops,
            "mfu": rate * self.flops / self.peak.flops_per_second,
            "waiting_share": self._waited / seconds,
        }
        self._step, self._read_at, self._waited = step, self._busy, 0.0
        return figures

    def line(self, figures: dict[str, float]) -> str:
        """The figures of `read` as text."""
        return (
            f"{figures[self.unit + '_per_second']:,.0f} {self.unit}/s, "
            f"{_flops(figures['model_flops_per_second'])}, MFU {figures['mfu']:.1%}, "
            f"waiting {figures['waiting_share']:.1%}"
        )

    def progress(self, step: int) -> str:
        """Rate since the start and remaining time at the last pause, after `step` steps."""
        rate = (step - self._first) / max(self._busy, 1e-9)
        remaining = (self.total - step) / max(rate, 1e-9)
        return f"{rate:.2f} steps/s, {clock(self._busy)} of training, ETA {clock(remaining)}"


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    seconds = round(seconds)
    return f"{seconds // 3600}:{seconds % 3600 // 60:02d}:{seconds % 60:02d}"


def _flops(rate: float) -> str:
    return f"{rate / 1e12:.1f} TFLOP/s" if rate >= 1e12 else f"{rate / 1e9:.1f} GFLOP/s"
