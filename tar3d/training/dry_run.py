"""What a training needs, found by doing a little of it: steps of each kind, a validation and a
save, in a folder of its own."""

from __future__ import annotations

import copy
import csv
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from tar3d.config import GPTRunConfig, VQVAEConfig
from tar3d.runtime import peak_memory
from tar3d.throughput import clock
from tar3d.training.state import KEPT, STATES

if TYPE_CHECKING:
    from collections.abc import Callable

    from lightning_fabric import Fabric

STEPS = 2  # of each kind: the first is slower than all that follow


def shortened(config: VQVAEConfig | GPTRunConfig) -> VQVAEConfig | GPTRunConfig:
    """The same training with so few steps that it ends in seconds."""
    short = copy.deepcopy(config)
    t = short.train
    if isinstance(config, VQVAEConfig):
        t.autoencoder_steps, t.codebook_steps = min(STEPS, t.autoencoder_steps), STEPS
    else:
        t.steps = STEPS
    t.log_every, t.validate_every, t.save_every = 1, t.steps, t.steps
    t.validation_shapes, t.preview_shapes = min(2, t.validation_shapes), min(1, t.preview_shapes)
    return short


def dry_run(
    train: Callable[[VQVAEConfig | GPTRunConfig, Path], object],
    config: VQVAEConfig | GPTRunConfig,
    fabric: Fabric,
) -> None:
    """Calls `train` with a shortened `config` and a run folder of its own, then prints what the
    whole would need."""
    with tempfile.TemporaryDirectory() as name:
        folder = fabric.broadcast(Path(name))
        short = shortened(config)
        train(short, folder)
        if not fabric.is_global_zero:
            return
        with open(folder / "speed.csv", newline="") as f:
            seconds = [1 / float(row["steps_per_second"]) for row in csv.DictReader(f)]
        state = sum(p.stat().st_size for p in (folder / STATES).glob("*.pt"))
        model = sum(p.stat().st_size for p in (folder / "model").rglob("*") if p.is_file())
    t = config.train
    if isinstance(config, VQVAEConfig) and t.stage == "both" and t.autoencoder_steps:
        parts = [
            ("autoencoder", t.autoencoder_steps, seconds[min(STEPS, t.autoencoder_steps) - 1]),
            ("codebook", t.codebook_steps, seconds[-1]),
        ]
    else:
        parts = [("", t.steps, seconds[-1])]
    total = sum(steps * each for _, steps, each in parts)
    steps = " and ".join(
        f"{steps:,} {kind} steps of {each:.2f} s".replace("  ", " ") for kind, steps, each in parts
    )
    print(
        f"\ndry run: nothing was kept. {steps}: {clock(total)} in all, by the last of {STEPS} steps each, without validation\n"
        f"  memory so far: {peak_memory(fabric.device)}; python -m tar3d.doctor says what steps of other sizes need\n"
        f"  disk: {state / 2**20:,.1f} MiB a state, {KEPT} are kept; {model / 2**20:,.1f} MiB a model"
    )
