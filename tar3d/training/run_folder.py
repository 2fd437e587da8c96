"""The folder of a run: made for a new one, or holding the state that a resumed one starts from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from tar3d import config as configuration
from tar3d.runtime import command_line
from tar3d.training.state import STATES, check_state, newest_state, saved_steps

if TYPE_CHECKING:
    from lightning_fabric import Fabric

AUTO = "auto"


def prepare_folder(fabric: Fabric, folder: Path, resume: str | None, config: object) -> Path | None:
    """Makes the run folder and writes run.json; returns the state to resume from, if any.

    Every process gets the same answer; the first one has checked the state, so the others need not
    read it for that. `resume` is "auto" (the newest good state, if there is any) or the file of a
    state.

    Raises ValueError where a new run would overwrite an old one, and where the state is damaged or
    missing.
    """
    state = None
    if fabric.is_global_zero:
        state = _find_state(folder, resume)
        folder.mkdir(parents=True, exist_ok=True)
        record = {"command": command_line(), "config": configuration.to_mapping(config)}
        (folder / "run.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return fabric.broadcast(state)


def _find_state(folder: Path, resume: str | None) -> Path | None:
    states = folder / STATES
    if resume is None:
        if saved_steps(states):
            raise ValueError(
                f"{folder} already holds a run: continue it with --resume auto, or choose another "
                "--out"
            )
        return None
    if resume == AUTO:
        state, damaged = newest_state(states)
        for sentence in damaged:
            print(f"passed over: {sentence}", flush=True)
        print(
            f"continues from {state}"
            if state
            else f"no state in {states}: starts from the beginning",
            flush=True,
        )
        return state
    state = Path(resume)
    if not state.is_file():
        raise ValueError(
            f"--resume {resume}: there is no such state; write --resume auto for the newest one in "
            "--out"
        )
    if state.with_suffix(".json").is_file():
        check_state(state)
    return state
