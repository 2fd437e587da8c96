"""Training states on disk: states/<step>.pt, and beside each a .json that says how long it is and
what its SHA-256 is.

The .json is written last, and the state before the newest is kept. So whenever a run is killed,
whatever the disk does to a file afterwards, there is a good state and it is known which one that
is. A state holds tensors and plain values only and loads with weights_only=True: one from elsewhere
cannot run code.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils._pytree import tree_map

from tar3d.optim.groups import held_part
from tar3d.upgrade import upgrade_parameters

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch.optim import Optimizer

T = TypeVar("T")

KEPT = 2  # newest states of a run
STATES = "states"  # folder of a run


class SaveError(Exception):
    """A state could not be written; those that were there are as they were."""


class _Hashing:
    """A file that is written from front to back, and hashes what it is given."""

    def __init__(self, file) -> None:
        self.file, self.sha256, self.bytes, self.error = file, hashlib.sha256(), 0, None

    def write(self, data) -> int:
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
    """Writes the state of a step into `folder`, then deletes all but the `keep` newest up to that
    step; later ones are of a run that was given up. `about` goes into the .json.

    Raises SaveError when it cannot be written (a full disk); then nothing that was there has
    changed.
    """
    folder = Path(folder)
    path = folder / f"{step:08d}.pt"
    parts = [path.with_suffix(".pt.part"), path.with_suffix(".json.part")]
    written = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open(parts[0], "wb") as f:
            written = _Hashing(f)
            torch.save(state, written)
            f.flush()
            os.fsync(f.fileno())
        record = {
            "step": step,
            "bytes": written.bytes,
            "sha256": written.sha256.hexdigest(),
            "saved": datetime.now().astimezone().isoformat(timespec="seconds"),
            **(about or {}),
        }
        with open(parts[1], "w", encoding="utf-8") as f:
            f.write(json.dumps(record, indent=1) + "\n")
            f.flush()
            os.fsync(f.fileno())
        path.with_suffix(".json").unlink(
            missing_ok=True
        )  # of a state of this step that was there: it would not fit the new one
        os.replace(parts[0], path)
        os.replace(parts[1], path.with_suffix(".json"))
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
            f"the training state of step {step} could not be written to {folder} ({str(reason).splitlines()[0]}); "
            f"{there}. Free space on that disk, then continue with --resume auto"
        ) from e
    kept = {f"{s:08d}" for s in [s for s in saved_steps(folder) if s <= step][-keep:]}
    for suffix in (
        ".json",
        ".pt",
        ".part",
    ):  # without its .json a state is none, so that goes first; parts are of killed saves
        for old in folder.glob(f"*{suffix}"):
            if old.stem not in kept:
                old.unlink(missing_ok=True)
    return path


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
    """The newest good state in `folder`, or None where none was ever written; and a sentence for
    each newer one that is damaged.

    Raises ValueError when there are states and all of them are damaged.
    """
    passed = []
    for step in reversed(saved_steps(folder)):
        path = Path(folder) / f"{step:08d}.pt"
        try:
            check_state(path)
            return path, passed
        except ValueError as e:
            passed.append(str(e))
    if passed:
        raise ValueError(
            f"no state in {folder} is good: {'; '.join(passed)}. Begin anew in another --out, with --init and the "
            "last model of this run if there is one"
        )
    return None, []


def check_state(path: Path) -> None:
    """ValueError where a state is not, to the bit, what the .json beside it says was saved."""
    record = path.with_suffix(".json")
    try:
        expected = json.loads(record.read_text(encoding="utf-8"))
        size, digest, saved = expected["bytes"], expected["sha256"], expected["saved"]
    except (ValueError, KeyError, TypeError) as e:
        raise ValueError(f"{record} is damaged, so nothing is known of the state beside it") from e
    with open(path, "rb") as f:
        found = hashlib.file_digest(f, "sha256").hexdigest()
    if (path.stat().st_size, found) != (size, digest):
        raise ValueError(
            f"{path} is damaged: it is not what was saved at {saved} (size or SHA-256 differ)"
        )


def load_state(path: str | Path) -> dict:
    """A ValueError when there is none, when it cannot be read, and when it holds more than tensors
    and plain values. Whether it is what was written, `check_state` says."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no training state at {path}")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, KeyError, pickle.UnpicklingError) as e:
        raise ValueError(
            f"{path} is not a readable training state ({type(e).__name__}: "
            f"{(str(e) or 'no content').splitlines()[0]})"
        ) from e


def gathered(tree: T) -> T:
    """A state dict whose sharded tensors (FSDP2) are whole and on the CPU. Every process has to
    call it."""
    return tree_map(lambda x: x.full_tensor().cpu() if isinstance(x, DTensor) else x, tree)


def _sharded(value: object, like: object) -> object:
    """A whole tensor as the part that this process holds of one of its shape, `like`; anything else
    as it is."""
    fits = isinstance(value, Tensor) and isinstance(like, Tensor) and value.shape == like.shape
    return held_part(value, like) if fits else value


def load_module(module: nn.Module, saved: dict[str, Tensor]) -> None:
    """`load_state_dict` for a module that may be sharded, of whole tensors."""
    mine = module.state_dict()
    module.load_state_dict(
        {name: _sharded(value, mine.get(name)) for name, value in upgrade_parameters(saved).items()}
    )


def restore(state: dict, module: nn.Module, optimizers: Sequence[Optimizer]) -> None:
    """Fills `module` and `optimizers` from state["model"] and state["optimizers"]; a ValueError
    when they do not fit."""
    try:
        load_module(module, state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            values = {
                index: {name: _sharded(value, parameters[index]) for name, value in of_one.items()}
                for index, of_one in saved["state"].items()
                if index < len(parameters)
            }
            optimizer.load_state_dict(saved | {"state": values})
    except (RuntimeError, ValueError) as e:
        raise ValueError(
            f"the saved training state is that of another model or optimizer: {str(e).splitlines()[0]} "
            "Resume with the configuration the run was started with (run.json beside it)"
        ) from e
