"""What a run writes down as it goes: a CSV file for each kind of row, TensorBoard, and Weights &
Biases where it is asked for."""

from __future__ import annotations

import csv
import json
from typing import TYPE_CHECKING

from tar3d.io import atomic_write, write_csv

if TYPE_CHECKING:
    from pathlib import Path


class RunLog:
    """Metrics of a run: <kind>.csv for each kind of row ("train", "validation", "speed"),
    TensorBoard under tensorboard/, and if `wandb_project` is given the same figures and pictures
    there (offline with WANDB_MODE=offline).

    A resumed run drops the rows after the step it resumes from, so no step stands twice, and a row
    that a kill cut short.
    """

    def __init__(
        self,
        folder: Path,
        start_step: int,
        wandb_project: str | None = None,
        config: dict | None = None,
    ) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.folder = folder
        self._columns: dict[str, list[str]] = {}  # of the file of each kind
        self._tensorboard = SummaryWriter(
            str(folder / "tensorboard"), purge_step=start_step or None
        )
        self._wandb = _start_wandb(wandb_project, folder, config or {}) if wandb_project else None
        for path in folder.glob("*.csv"):
            _drop_after(path, start_step)

    def write(self, kind: str, step: int, values: dict[str, float]) -> None:
        path = self.folder / f"{kind}.csv"
        row = {"step": step, **values}
        if not row.keys() <= set(self._columns.get(kind, ())):
            self._columns[kind] = _with_columns(path, list(row))
        with open(path, "a", encoding="utf-8", newline="") as f:
            writer = csv.DictWriter(f, self._columns[kind], lineterminator="\n")
            writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})
        for name, value in values.items():
            self._tensorboard.add_scalar(f"{kind}/{name}", value, step)
        if self._wandb:
            self._wandb.log({f"{kind}/{name}": value for name, value in values.items()}, step=step)

    def picture(self, name: str, step: int, path: Path) -> None:
        """A PNG file that the run wrote."""
        import numpy as np
        from PIL import Image

        if not path.is_file():  # nothing was asked to be shown
            return
        with Image.open(path) as image:
            self._tensorboard.add_image(
                name, np.asarray(image.convert("RGB")), step, dataformats="HWC"
            )
        if self._wandb:
            import wandb

            self._wandb.log({name: wandb.Image(str(path))}, step=step)

    def close(self) -> None:
        self._tensorboard.close()
        if self._wandb:
            self._wandb.finish()


def _start_wandb(project: str, folder: Path, config: dict):
    """A run of Weights & Biases; a resumed training goes on in the same one."""
    try:
        import wandb
    except ImportError as e:
        raise ValueError(
            "--wandb needs the package wandb: python -m pip install wandb, or leave the flag out "
            "(CSV files and TensorBoard are always written)"
        ) from e
    record = folder / "wandb.json"
    known = json.loads(record.read_text(encoding="utf-8"))["id"] if record.is_file() else None
    try:
        run = wandb.init(
            project=project,
            name=folder.name,
            dir=str(folder),
            config=config,
            id=known,
            resume="allow",
        )
    except wandb.Error as e:  # not logged in, no network, no such project
        raise ValueError(
            f"Weights & Biases did not start ({str(e).splitlines()[0]}). Log in with: wandb login, or write on this "
            "disk alone with the environment variable WANDB_MODE=offline and upload later with: wandb sync"
        ) from e
    record.write_text(json.dumps({"project": project, "id": run.id}) + "\n", encoding="utf-8")
    return run


def _with_columns(path: Path, wanted: list[str]) -> list[str]:
    """The columns of the file, which is made if it is not there. What it has not of those `wanted`,
    since a resumed run tells of more than when it began, it gets, empty in the rows so far."""
    rows, columns = [], []
    if path.exists():
        with open(path, encoding="utf-8", newline="") as f:
            reader = csv.DictReader(f)
            rows, columns = list(reader), list(reader.fieldnames or [])
    new = [name for name in wanted if name not in columns]
    if new:
        write_csv(path, columns + new, rows)
    return columns + new


def _drop_after(path: Path, step: int) -> None:
    """Keeps the rows up to `step` that are whole."""
    text = path.read_text(encoding="utf-8")
    complete = text[: text.rfind("\n") + 1]
    lines = complete.splitlines(keepends=True)
    kept = lines[:1] + [
        line
        for line in lines[1:]
        if line.split(",", 1)[0].isdigit() and int(line.split(",", 1)[0]) <= step
    ]
    if "".join(kept) != text:
        with atomic_write(path, "w", encoding="utf-8") as f:
            f.write("".join(kept))
