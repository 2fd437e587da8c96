"""The folder of a run: made for a new one, or holding the state that a resumed one starts from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from tar3d import config as configuration
from tar3d.folders import probe_output
from tar3d.io import write_json
from tar3d.runtime import command_line
from tar3d.training.state import STATES, check_state, newest_state, saved_steps

if TYPE_CHECKING:
    from lightning_fabric import Fabric

AUTO = "auto"
RECORD = "run.json"


def prepare_folder(fabric: Fabric, folder: Path, resume: str | None) -> Path | None:
    """Makes the folder of a new run; returns the state to resume from, if any.

    Every process gets the same answer; the first one has checked the state, so the others need not
    read it for that. `resume` is "auto" (the newest good state, if there is any) or the file of a
    state. Nothing is written to the folder of a run that resumes: `write_record` does, once its
    first step is done.

    Raises ValueError where a new run would overwrite an old one, and where the state is damaged or
    missing.
    """
    state = None
    if fabric.is_global_zero:
        state = _find_state(folder, resume)
        probe_output(folder, "--out")
        if state is None:
            folder.mkdir(parents=True, exist_ok=True)
    return fabric.broadcast(state)


def write_record(folder: Path, config: object, resumed: dict, chosen: dict) -> None:
    """Writes run.json: command and configuration in force, and where the run was resumed.

    `chosen` are the values of keys for which the configuration may have "auto". `resumed` is empty
    for a run from its beginning; else "step", and "changed": the configuration keys that have other
    values since then, each with its old and new one.
    """
    path = folder / RECORD
    record: dict = {
        "command": command_line(),
        "config": configuration.to_mapping(config),
        "chosen": chosen,
    }
    if resumed:
        earlier = _earlier_resumes(path, resumed["step"])
        record["resumed"] = [*earlier, {"command": record["command"], **resumed}]
    write_json(path, record)


def _earlier_resumes(path: Path, step: int) -> list[dict]:
    """The resumes at steps before `step` that run.json lists; those after it were given up."""
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))["resumed"]
        return [resumed for resumed in listed if resumed["step"] < step]
    except (OSError, ValueError, KeyError, TypeError):
        return []  # not resumed before, or not this version's


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
