"""Experiment trackers: where the figures and images of a run go besides its CSV files.

A tracker is a class with `log`, `image` and `close`, and a line in `TRACKERS`, which makes a flag
of the training scripts of it.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from pathlib import Path


class Tracker(Protocol):
    """The interface that a run calls, on its first process only."""

    def log(self, step: int, values: dict[str, float]) -> None:
        """Figures of a step, by names such as "train/loss"."""

    def image(self, step: int, name: str, path: Path) -> None:
        """A PNG file that the run wrote."""

    def close(self) -> None:
        """Ends the run, after its last step or when it stops."""


class TensorBoard:
    """Event files under <run folder>/tensorboard; those after `start_step` are replaced."""

    def __init__(self, folder: Path, start_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=start_step + 1)

    def log(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def image(self, step: int, name: str, path: Path) -> None:
        import numpy as np
        from PIL import Image

        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
        self._writer.add_image(name, pixels, step, dataformats="HWC")

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A run of the Weights & Biases project `name` (offline with WANDB_MODE=offline).

    A resumed training continues the same run. Raises ValueError where the package is missing, or
    where the service refuses.
    """

    def __init__(self, name: str, folder: Path, config: dict) -> None:
        try:
            import wandb
        except ImportError as e:
            raise ValueError(
                "--wandb needs the package wandb: python -m pip install wandb, or leave the flag "
                "out (CSV files and TensorBoard are always written)"
            ) from e
        record = folder / "wandb.json"
        known = json.loads(record.read_text(encoding="utf-8"))["id"] if record.is_file() else None
        try:
            self._run: Any = wandb.init(
                project=name,
                name=folder.name,
                dir=str(folder),
                config=config,
                id=known,
                resume="allow",
            )
        except wandb.Error as e:  # not logged in, no network, no such project
            raise ValueError(
                f"Weights & Biases did not start ({str(e).splitlines()[0]}). Log in with: wandb "
                "login, or write on this disk alone with the environment variable "
                "WANDB_MODE=offline and upload later with: wandb sync"
            ) from e
        record.write_text(
            json.dumps({"project": name, "id": self._run.id}) + "\n", encoding="utf-8"
        )
        self._new_image = wandb.Image

    def log(self, step: int, values: dict[str, float]) -> None:
        self._run.log(values, step=step)

    def image(self, step: int, name: str, path: Path) -> None:
        self._run.log({name: self._new_image(str(path))}, step=step)

    def close(self) -> None:
        self._run.finish()


# Trackers to choose: name of the flag -> (class, metavar of the flag, its help). The class is
# called with the flag's value, the run folder and the run's configuration.
TRACKERS = {
    "wandb": (
        WeightsAndBiases,
        "PROJECT",
        "log to Weights & Biases too (CSV and TensorBoard are always written)",
    ),
}
