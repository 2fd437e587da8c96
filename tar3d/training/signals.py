"""Signals that ask a training to stop: it finishes its step, saves and ends."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import sys
import threading
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

    from lightning_fabric import Fabric

# Slurm sends SIGTERM, or what --signal names (USR1 by custom), before it takes the node away;
# Ctrl-C is SIGINT.
STOPPING = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name)
)


@contextlib.contextmanager
def catch_signals() -> Iterator[list[int]]:
    """Collects stopping signals in a list instead of ending the process.

    A second Ctrl-C ends it at once. In any thread but the main one no signal arrives, and the list
    stays empty.
    """
    received: list[int] = []

    def note(signum: int, _frame: FrameType | None) -> None:
        if received and signum == signal.SIGINT:
            _end_at_once()
        received.append(signum)
        print(
            f"\n{signal.Signals(signum).name}: stopping after this step "
            "(Ctrl-C stops at once, without saving)",
            file=sys.stderr,
            flush=True,
        )

    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    before = {signum: signal.signal(signum, note) for signum in STOPPING}
    try:
        yield received
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _end_at_once() -> None:
    """Ends this process as an unhandled Ctrl-C would, and those that read data for it.

    A KeyboardInterrupt could wait for ever on its way out: for a worker, which ignores SIGTERM, or
    for a lock that the interrupted code holds.
    """
    end_workers()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.raise_signal(signal.SIGINT)


def end_workers() -> None:
    """Ends the processes that read data for this one.

    They ignore SIGTERM, by which Python ends them at its exit, and it would wait for them for ever.
    """
    if hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would raise an error
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()


class SignalAgreement:
    """Tells every process of a job which signal any of them has received: all stop together.

    With several processes the answer is what they had received a step ago: that has long arrived,
    so no process waits for it.
    """

    def __init__(self, fabric: Fabric) -> None:
        self._fabric = fabric
        self._before: torch.Tensor | None = None

    def __call__(self, received: int) -> int:
        """The signal to act on, 0 for none; to be called once a step by every process."""
        if self._fabric.world_size == 1:
            return received
        before = self._before
        self._before = torch.tensor(float(received), device=self._fabric.device)
        torch.distributed.all_reduce(self._before, op=torch.distributed.ReduceOp.MAX)
        return 0 if before is None else int(before)


def ignore_signals(_worker: int = 0) -> None:
    """Ignores stopping signals, in a worker that reads data.

    Ctrl-C and Slurm signal every process of a job, and the training still needs its batches. A
    worker ends with the process it works for.
    """
    for signum in STOPPING:
        signal.signal(signum, signal.SIG_IGN)
