"""The figures of a run as it goes: a CSV file for each kind of row, and trackers."""

from __future__ import annotations

import csv
from typing import TYPE_CHECKING

from tar3d.data.formats.tables import read_checked_rows, read_header, read_rows
from tar3d.io import write_csv
from tar3d.training.trackers import TRACKERS, TensorBoard, Tracker
from tar3d.upgrade import upgrade_column

if TYPE_CHECKING:
    from pathlib import Path


class RunLog:
    """Metrics of a run: <kind>.csv for each kind of row ("train", "validation", "speed").

    TensorBoard gets the same figures, and images, and so do `trackers`: name in `TRACKERS` -> its
    setting.

    A resumed run drops the rows after the step it resumes from, so no step stands twice, and a row
    that a kill cut short. That happens in `begin`, at the latest with the first row: until then no
    file changes.
    """

    def __init__(
        self,
        folder: Path,
        start_step: int,
        trackers: dict[str, str] | None = None,
        config: dict | None = None,
    ) -> None:
        self.folder, self._begun, self._start = folder, False, start_step
        self._columns: dict[str, list[str]] = {}  # columns of each CSV file
        self._trackers: list[Tracker] = [
            TRACKERS[flag][0](value, folder, config or {})
            for flag, value in (trackers or {}).items()
        ]

    def begin(self) -> bool:
        """Opens the files, and brings those of a resumed run to the step it resumes from.

        True the first time; later it has no effect.
        """
        if self._begun:
            return False
        self._begun = True
        for path in self.folder.glob("*.csv"):
            _drop_after(path, self._start)  # first: the last row may be cut off
            _upgrade_columns(path)
        self._trackers.append(TensorBoard(self.folder, self._start))
        return True

    def write(self, kind: str, step: int, values: dict[str, float]) -> None:
        """Appends a row of figures to <kind>.csv, and logs them as <kind>/<name>."""
        self.begin()
        path = self.folder / f"{kind}.csv"
        row = {"step": step, **values}
        if not row.keys() <= set(self._columns.get(kind, ())):
            self._columns[kind] = _with_columns(path, list(row))
        with path.open("a", encoding="utf-8", newline="") as f:
            writer = csv.DictWriter(f, self._columns[kind], lineterminator="\n")
            writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})
        for tracker in self._trackers:
            tracker.log(step, {f"{kind}/{name}": value for name, value in values.items()})

    def image(self, name: str, step: int, path: Path) -> None:
        """Logs a PNG file that the run wrote; nothing where it did not (train.preview_shapes=0)."""
        self.begin()
        if path.is_file():
            for tracker in self._trackers:
                tracker.image(step, name, path)

    def close(self) -> None:
        for tracker in self._trackers:
            tracker.close()


def _with_columns(path: Path, names: list[str]) -> list[str]:
    """The columns of a CSV file, with those of `names` that it lacks added at its end.

    A resumed run may log more than when it began: in the rows so far new columns are empty. The
    file is made if there is none.
    """
    rows: list[dict[str, str]] = []
    columns: list[str] = []
    if path.exists() and path.stat().st_size:
        columns, rows = read_header(path), [row for _, row in read_rows(path)]
    new = [name for name in names if name not in columns]
    if new:
        write_csv(path, columns + new, rows)
    return columns + new


def _upgrade_columns(path: Path) -> None:
    """Gives the columns of a CSV file the names of today.

    Where a resumed run had added a column of today's name, the two become one.
    """
    names = read_header(path) if path.stat().st_size else []
    if (new := [upgrade_column(name) for name in names]) == names:
        return
    rows: list[dict] = [
        {upgrade_column(name): cell for name, cell in row.items() if cell}
        for _, row in read_rows(path)
    ]
    write_csv(path, list(dict.fromkeys(new)), rows)


def _drop_after(path: Path, step: int) -> None:
    """Removes the rows after `step`, and a last one that is not whole."""
    if not path.stat().st_size or "step" not in read_header(path):
        return  # a file of somebody else
    rows = list(read_checked_rows(path, "step", cut_off=True))
    kept = [
        row.cells
        for row in rows
        if not row.problem and row.cells["step"].isdigit() and int(row.cells["step"]) <= step
    ]
    if len(kept) < len(rows) or not path.read_bytes().endswith(b"\n"):
        write_csv(path, read_header(path), kept)
