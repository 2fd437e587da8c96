"""Which device a model is on, and when; and the seconds that a step takes there."""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from tar3d.contracts import Triplane

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True)
class Placement:
    """Where models are: on `device`, or with `low_vram` there only while they work.

    In between they are in main memory then, and feature planes are float16.
    """

    device: torch.device
    low_vram: bool = False

    @contextmanager
    def on_device(self, *modules: torch.nn.Module) -> Iterator[None]:
        """Has the modules on the device within the block."""
        if not self.low_vram:
            yield
            return
        try:
            _move(modules, self.device)
            yield
        finally:
            _move(modules, torch.device("cpu"))

    def to_stored_dtype(self, triplane: Triplane) -> Triplane:
        """The feature planes in the precision in which they wait for their queries."""
        return Triplane(triplane.planes.half()) if self.low_vram else triplane

    @contextmanager
    def timed(self, seconds: dict[str, float], name: str) -> Iterator[None]:
        """Adds the seconds of a block to `seconds[name]`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            if self.device.type == "cuda":
                # Without this, a kernel's time is booked where its result is first needed.
                torch.cuda.synchronize(self.device)
            seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - start


@torch.inference_mode(False)  # weights moved in inference mode could not be trained afterwards
def _move(modules: tuple[torch.nn.Module, ...], device: torch.device) -> None:
    for module in modules:
        module.to(device)
