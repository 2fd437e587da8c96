"""What happens to machines during a training: signals that ask it to stop, memory and disks that
are full, workers and processes that die, losses that are not finite. Each ends in one sentence that
says what is safe and what to do."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import threading
from typing import TYPE_CHECKING

import torch

from tar3d.training.state import SaveError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

# Slurm sends SIGTERM, or what --signal names (USR1 by custom), before it takes the node away;
# Ctrl-C is SIGINT.
STOPPING = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name)
)


class Stopped(Exception):
    """The run was asked to stop and has saved its state."""

    def __init__(self, signum: int, step: int, folder: object) -> None:
        super().__init__(
            f"stopped by {signal.Signals(signum).name} after step {step}; the state is saved in {folder}: "
            "the same command with --resume auto goes on from there"
        )
        self.exit_status = 128 + signum


class NotFinite(FloatingPointError):
    """A loss or gradient that must not move the weights."""


@contextlib.contextmanager
def catch_signals() -> Iterator[list[int]]:
    """Within it a stopping signal is put down in the list instead of ending the process; a second
    Ctrl-C ends it at once.

    In another than the main thread no signal arrives, and the list stays empty.
    """
    received: list[int] = []

    def note(signum: int, frame: FrameType | None) -> None:
        if received and signum == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(signum)
        print(
            f"\n{signal.Signals(signum).name}: saving after this step, then stopping (Ctrl-C stops at once, without saving)",
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


def ignore_stopping(worker: int = 0) -> None:
    """For workers that read data: Ctrl-C and Slurm signal every process of a job, and the training
    still needs its batches. A worker ends with the process it works for."""
    for signum in STOPPING:
        signal.signal(signum, signal.SIG_IGN)


def explain(error: BaseException) -> str | None:
    """One sentence for a fault that a training expects of machines; None for what is a mistake in
    this program."""
    text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    whole = str(error)
    if isinstance(error, (ValueError, NotFinite, Stopped, SaveError)):
        return whole
    kept = "The last saved state is as it was: continue with --resume auto"
    if isinstance(error, torch.OutOfMemoryError):
        return (
            f"the GPU ran out of memory ({text}). Lower train.micro_batch_size (the result stays the same), set "
            f"train.activation_checkpointing=cheap or blocks, or choose a smaller model; --dry-run says what a step needs. {kept}"
        )
    if isinstance(error, MemoryError) or "can't allocate memory" in whole:
        return (
            f"this machine ran out of memory ({text}). Lower train.micro_batch_size (the result stays the same) or "
            f"train.num_workers, or set train.activation_checkpointing=cheap or blocks. {kept}"
        )
    alone = int(os.environ.get("WORLD_SIZE", "1")) == 1
    if "DataLoader worker" in whole or (alone and isinstance(error, (ConnectionError, EOFError))):
        return (
            f"a process that reads data died ({text}). Often memory ran out, so try fewer train.num_workers; with "
            f"train.num_workers=0 its error is shown where it happens. {kept}"
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"{error.filename or 'a file of the run'} could not be written ({error.strerror}). Free space on that disk. {kept}"
    if isinstance(error, OSError):
        return f"{error}. {kept}"
    if isinstance(error, torch.distributed.DistBackendError) or any(
        sign in whole for sign in _LOST_PEER
    ):
        return (
            f"process {os.environ.get('RANK', '0')} lost another process of this job ({text}). Its own message, further up "
            f"or in its log, says why it ended. {kept}"
        )
    return None


_LOST_PEER = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Timed out waiting",
    "Broken pipe",
    "Application timeout caused pair closure",
)


def report(error: Exception) -> int:
    """Prints the sentence of a fault and returns the script's exit status; raises the error again
    where it is none."""
    sentence = explain(error)
    if sentence is None:
        raise error
    print(sentence, file=sys.stderr, flush=True)
    return getattr(error, "exit_status", 2)
