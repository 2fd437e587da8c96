"""Errors that a training expects of its machines and its numbers, each explained in one sentence.

The sentence says what happened, which state is safe and what to do: after a signal, full memory or
a full disk, a worker or process that died, a loss that is not finite.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from typing import TYPE_CHECKING

import torch

from tar3d.training.state import SaveError

if TYPE_CHECKING:
    from pathlib import Path

MOST_ITEMS = 20  # listed in a message
DRY_RUN = "this was a dry run, of which nothing is kept"


class Stopped(Exception):
    """The run was asked to stop by a signal, after `step`.

    `folder` holds its saved states; None after a dry run.
    """

    def __init__(self, signum: int, step: int, folder: Path | None) -> None:
        saved = (
            f"the state is saved in {folder}: "
            "the same command with --resume auto goes on from there"
            if folder
            else f"no state was saved: {DRY_RUN}"
        )
        super().__init__(f"stopped by {signal.Signals(signum).name} after step {step}; {saved}")
        self.signum, self.step = signum, step
        self.exit_code = 128 + signum


class NotFinite(FloatingPointError):
    """The loss or gradient `name` became `value` at `step`; the weights did not move.

    `items` are those of the step, and the file `state` repeats it (None after a dry run). `found`
    is the message without the remedy.
    """

    def __init__(
        self, name: str, value: float, step: int, items: list[str], state: Path | None
    ) -> None:
        self.details = name, value, step, items
        repeat = f"--resume {state} repeats the step" if state else f"no state was saved: {DRY_RUN}"
        more = f" and {len(items) - MOST_ITEMS} more" if len(items) > MOST_ITEMS else ""
        self.found = (
            f"the {name.replace('_', ' ')} became {value} at step {step}; the weights did not "
            f"move, and {repeat}. Its items: {', '.join(items[:MOST_ITEMS])}{more}"
        )
        super().__init__(
            f"{self.found}. Lower optim.muon_lr and optim.adamw_lr, look at these items, or let a "
            "number of such steps pass with train.skip_nonfinite=N"
        )


def explain(error: BaseException) -> str | None:
    """One sentence for an error that a training expects; None for a mistake in this program."""
    whole = str(error)
    text = whole.strip().splitlines()[0] if whole.strip() else type(error).__name__
    if isinstance(error, (ValueError, NotFinite, Stopped, SaveError)):
        return whole
    state = "The last saved state is as it was: continue with --resume auto"
    if isinstance(error, torch.OutOfMemoryError):
        return (
            f"the GPU ran out of memory ({text}). Lower train.micro_batch_size (the result stays "
            "the same), set train.activation_checkpointing=cheap or blocks, or choose a smaller "
            f"model; --dry-run says what a step needs. {state}"
        )
    if isinstance(error, MemoryError) or "can't allocate memory" in whole:
        return (
            f"this machine ran out of memory ({text}). Lower train.micro_batch_size (the result "
            "stays the same) or train.num_workers, or set "
            f"train.activation_checkpointing=cheap or blocks. {state}"
        )
    alone = int(os.environ.get("WORLD_SIZE", "1")) == 1
    if "DataLoader worker" in whole or (alone and isinstance(error, (ConnectionError, EOFError))):
        return (
            f"a process that reads data died ({text}). Often memory ran out, so try fewer "
            "train.num_workers; with train.num_workers=0 its error is shown where it happens. "
            f"{state}"
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        name = error.filename or "a file of the run"
        return f"{name} could not be written ({error.strerror}). Free space on that disk. {state}"
    if isinstance(error, OSError):
        return f"{error}. {state}"
    if isinstance(error, torch.distributed.DistBackendError) or any(
        sign in whole for sign in _LOST_PEER
    ):
        return (
            f"process {os.environ.get('RANK', '0')} lost another process of this job ({text}). "
            f"Its own message, further up or in its log, says why it ended. {state}"
        )
    return None


_LOST_PEER = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Timed out waiting",
    "Broken pipe",
    "Application timeout caused pair closure",
)


def print_error(error: Exception) -> int:
    """Prints the sentence of an expected error and returns the script's exit code.

    Raises the error again if it is not an expected one.
    """
    sentence = explain(error)
    if sentence is None:
        raise error
    print(sentence, file=sys.stderr, flush=True)
    return getattr(error, "exit_code", 2)
