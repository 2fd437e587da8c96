"""Estimates the time, memory and disk of a training by doing a little of it.

A few steps of each phase, a validation and a save, in a folder that is deleted.
"""

from __future__ import annotations

import contextlib
import copy
import tempfile
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from tar3d.config import GPTRunConfig, VQVAEConfig
from tar3d.data.formats.tables import read_rows
from tar3d.runtime import peak_memory
from tar3d.throughput import clock
from tar3d.training.errors import NotFinite, Stopped
from tar3d.training.state import KEPT, STATES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from lightning_fabric import Fabric

VALIDATION_ROWS = 16  # most shapes that a validation takes at a time
STEPS = 2  # per phase: the first step is slower than all that follow

ConfigT = TypeVar("ConfigT", VQVAEConfig, GPTRunConfig)


def shortened(config: ConfigT, phases: Sequence[str]) -> ConfigT:
    """The same training with so few steps of each phase that it ends in seconds."""
    short = copy.deepcopy(config)
    t = short.train
    for name in phases:
        setattr(t, name, min(STEPS, getattr(t, name)))
    t.log_every, t.validate_every, t.save_every = 1, t.steps, t.steps
    # As many shapes as a validation takes at a time: it needs the memory of the whole one.
    t.validation_shapes = min(VALIDATION_ROWS, t.validation_shapes)
    t.preview_shapes = min(1, t.preview_shapes)
    return short


@contextlib.contextmanager
def scratch_folder(fabric: Fabric, wanted: bool) -> Iterator[Path | None]:
    """A folder for a dry run, the same in every process, that is deleted at the end.

    None unless it is `wanted`.
    """
    if not wanted:
        yield None
        return
    with tempfile.TemporaryDirectory() as name:
        yield fabric.broadcast(Path(name))


def dry_run(
    train: Callable[[ConfigT, Path], object],
    config: ConfigT,
    phases: Sequence[str],
    fabric: Fabric,
    scratch: Path,
) -> None:
    """Runs a shortened training in the folder `scratch`, and prints what the whole one needs.

    `phases` names the fields of `config.train` that count the steps of each phase, in order. Raises
    Stopped or NotFinite, as a training does, but they promise no state.
    """
    folder = scratch / "run"
    try:
        train(shortened(config, phases), folder)
    except Stopped as e:
        raise Stopped(e.signum, e.step, None) from e
    except NotFinite as e:
        raise NotFinite(*e.details, None) from e
    if not fabric.is_global_zero:
        return
    rows = read_rows(folder / "speed.csv", "steps_per_second")
    seconds = [1 / float(row["steps_per_second"]) for _, row in rows]
    state = sum(p.stat().st_size for p in (folder / STATES).glob("*.pt"))
    model = sum(p.stat().st_size for p in (folder / "model").rglob("*") if p.is_file())
    counts = [getattr(config.train, phase) for phase in phases]
    last = [end - 1 for end in accumulate(min(STEPS, count) for count in counts)]
    total = sum(count * seconds[step] for count, step in zip(counts, last, strict=True))
    steps = " and ".join(
        f"{count:,} {phase.replace('_', ' ')} of {seconds[step]:.2f} s"
        for phase, count, step in zip(phases, counts, last, strict=True)
    )
    print(
        f"\ndry run: nothing was kept. {steps}: {clock(total)} in all, by the last of {STEPS} "
        "steps each, without validation\n"
        f"  memory so far: {peak_memory(fabric.device)}; python -m tar3d.doctor says what steps "
        "of other sizes need\n"
        f"  disk: {state / 2**20:,.1f} MiB a state, {KEPT} are kept; {model / 2**20:,.1f} MiB a "
        "model"
    )
