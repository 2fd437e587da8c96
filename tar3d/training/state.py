"""Training states on disk: states/<step>.pt, and beside each a .json with its size and SHA-256.

The .json is written last, and the state before the newest is kept. So whenever a run is killed,
and whatever the disk does to a file afterwards, there is a good state and it is known which one
that is. A state holds tensors and plain values only and loads with weights_only=True: one from
elsewhere cannot run code.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
from datetime import datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from tar3d.training.sharding import sharded_like
from tar3d.upgrade import upgrade_parameters

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch.optim import Optimizer

KEPT = 2  # newest states of a run
STATES = "states"  # folder of a run


class SaveError(Exception):
    """A state could not be written; those that were there are as they were."""


class _Hashing:
    """A file that is written from front to back, and hashes what is written."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.sha256, self.bytes = file, hashlib.sha256(), 0
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            self.file.write(data)
        except OSError as e:
            self.error = e  # torch turns it into a RuntimeError about positions in an archive
            raise
        self.sha256.update(data)
        self.bytes += len(data)
        return len(data)

    def flush(self) -> None:
        self.file.flush()


def save_state(
    folder: str | Path, step: int, state: dict, about: dict | None = None, keep: int = KEPT
) -> Path:
    """Writes the state of a step into `folder`; `about` goes into the .json.

    Then deletes all but the `keep` newest states up to that step (later ones are of a run that was
    given up). Raises SaveError when it cannot be written (a full disk); then nothing that was there
    has changed.
    """
    folder = Path(folder)
    path = folder / f"{step:08d}.pt"
    parts = [path.with_suffix(".pt.part"), path.with_suffix(".json.part")]
    written = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with parts[0].open("wb") as f:
            written = _Hashing(f)
            torch.save(state, cast("IO[bytes]", written))
            f.flush()
            os.fsync(f.fileno())
        record = {
            "step": step,
            "bytes": written.bytes,
            "sha256": written.sha256.hexdigest(),
            "saved": datetime.now().astimezone().isoformat(timespec="seconds"),
            **(about or {}),
        }
        with parts[1].open("w", encoding="utf-8") as f:
            f.write(json.dumps(record, indent=1) + "\n")
            f.flush()
            os.fsync(f.fileno())
        # The .json of an older state of this step would not fit the new one.
        path.with_suffix(".json").unlink(missing_ok=True)
        parts[0].replace(path)
        parts[1].replace(path.with_suffix(".json"))
        _sync_folder(folder)
    except (OSError, RuntimeError) as e:
        for part in parts:
            part.unlink(missing_ok=True)
        reason = written.error if written is not None and written.error is not None else e
        before = saved_steps(folder)
        there = (
            f"the last good state is that of step {before[-1]}"
            if before
            else "no state was saved before"
        )
        raise SaveError(
            f"the training state of step {step} could not be written to {folder} "
            f"({str(reason).splitlines()[0]}); {there}. Free space on that disk, then continue "
            "with --resume auto"
        ) from e
    _delete_old(folder, step, keep)
    return path


def _delete_old(folder: Path, step: int, keep: int) -> None:
    """Deletes all states but the `keep` newest up to `step`, and parts of killed saves."""
    newest = {f"{s:08d}" for s in [s for s in saved_steps(folder) if s <= step][-keep:]}
    # Without its .json a state does not count, so that goes first.
    for suffix in (".json", ".pt", ".part"):
        for old in folder.glob(f"*{suffix}"):
            if old.stem not in newest:
                old.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Makes the renames last through a power failure, where the system can (not on Windows)."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def saved_steps(folder: str | Path) -> list[int]:
    """Steps whose states were completely written to `folder`, from old to new."""
    return sorted(
        int(p.stem)
        for p in Path(folder).glob("*.json")
        if p.stem.isdigit() and p.with_suffix(".pt").is_file()
    )


def newest_state(folder: str | Path) -> tuple[Path | None, list[str]]:
    """The newest good state in `folder`, and a sentence for each newer one that is damaged.

    The state is None where none was ever written. Raises ValueError when there are states and all
    of them are damaged.
    """
    damaged: list[str] = []
    for step in reversed(saved_steps(folder)):
        path = Path(folder) / f"{step:08d}.pt"
        try:
            check_state(path)
            return path, damaged
        except ValueError as e:
            damaged.append(str(e))
    if damaged:
        raise ValueError(
            f"no state in {folder} is good: {'; '.join(damaged)}. Start again in another --out, "
            "with --init and the last model of this run if there is one"
        )
    return None, []


def check_state(path: Path) -> None:
    """Raises ValueError if a state is not, to the bit, what was saved by the .json beside it."""
    record = path.with_suffix(".json")
    try:
        expected = json.loads(record.read_text(encoding="utf-8"))
        size, digest, saved = expected["bytes"], expected["sha256"], expected["saved"]
    except (ValueError, KeyError, TypeError) as e:
        raise ValueError(f"{record} is damaged, so nothing is known of the state beside it") from e
    with path.open("rb") as f:
        found = hashlib.file_digest(f, "sha256").hexdigest()
    if (path.stat().st_size, found) != (size, digest):
        raise ValueError(
            f"{path} is damaged: it is not what was saved at {saved} (size or SHA-256 differ)"
        )


def load_state(path: str | Path, *, lazily: bool = False) -> dict:
    """The state in a file, on the CPU; it is not checked against its .json (`check_state`).

    With `lazily` the values of its tensors are read only where they are used. Raises ValueError
    when there is none, when it cannot be read, and when it holds more than tensors and plain
    values.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no training state at {path}")
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=lazily)
    except (OSError, RuntimeError, EOFError, KeyError, pickle.UnpicklingError) as e:
        raise ValueError(
            f"{path} is not a readable training state ({type(e).__name__}: "
            f"{(str(e) or 'no content').splitlines()[0]})"
        ) from e


def load_module(module: nn.Module, saved: dict[str, Tensor]) -> None:
    """`load_state_dict` for a module that may be sharded, of whole tensors."""
    mine = module.state_dict()
    module.load_state_dict(
        {
            name: sharded_like(value, mine.get(name))
            for name, value in upgrade_parameters(saved).items()
        }
    )


def restore(state: dict, module: nn.Module, optimizers: Sequence[Optimizer]) -> None:
    """Fills `module` and `optimizers` from state["model"] and state["optimizers"].

    Rates, decay and momenta of the optimizers stay as they are: those of the run that resumes, not
    those that were saved. Raises ValueError when model or optimizers do not fit.
    """
    try:
        load_module(module, state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            values = {
                index: {
                    name: sharded_like(value, parameters[index]) for name, value in of_one.items()
                }
                for index, of_one in saved["state"].items()
                if index < len(parameters)
            }
            options = [
                {name: value for name, value in group.items() if name != "params"}
                for group in optimizer.param_groups
            ]
            optimizer.load_state_dict(saved | {"state": values})
            for group, own in zip(optimizer.param_groups, options, strict=True):
                group.update(own)
    except (RuntimeError, ValueError) as e:
        raise ValueError(
            "the saved training state is that of another model or optimizer: "
            f"{str(e).splitlines()[0]} Resume with the configuration the run was started with "
            "(run.json beside it)"
        ) from e
