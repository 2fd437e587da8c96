"""Writes the output of `make_samples`: files, loose or in shards, and a row of report.csv a mesh.

A kill at any point loses only unfinished shapes: files get their names when they are complete, and
a row is added after its files.
"""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING

from tar3d.data.formats.shards import write_shard
from tar3d.data.formats.tables import read_checked_rows
from tar3d.io import atomic_write, write_csv

if TYPE_CHECKING:
    from pathlib import Path

# Samples last: their shards are the larger ones, and a kill between the two shards of a pair then
# leaves a small one without rows.
FOLDERS = ("views", "samples")


class SampleWriter:
    """Adds shapes to a data set folder; used in a `with` block.

    `rows` are the rows of earlier runs that are still valid, by id. `shard_size` is the number of
    shapes a tar shard, 0 for loose files.
    """

    def __init__(
        self, folder: Path, fields: list[str], rows: dict[str, dict], shard_size: int = 0
    ) -> None:
        if shard_size < 0:
            raise ValueError(
                f"the shard size must be positive, or 0 for loose files, got {shard_size}"
            )
        self.folder, self.fields, self.rows, self.shard_size = folder, fields, rows, shard_size
        self._waiting: list[dict] = []  # rows of the shapes of the next shard
        self._files: dict[str, bytes] = {}
        self._remove_leftovers()
        self._write_sorted()
        # open until __exit__: rows are added one by one
        self._report = (folder / "report.csv").open(
            "a", encoding="utf-8", errors="backslashreplace", newline=""
        )

    def __enter__(self) -> SampleWriter:
        return self

    def __exit__(self, *error: object) -> None:
        """Writes the last shard, even after an error, and sorts the report by id."""
        try:
            self._write_waiting()
        finally:
            self._report.close()
        self._write_sorted()

    def add(self, row: dict, files: dict[str, bytes]) -> None:
        """Adds a shape: its row of the report, and its files by name."""
        if not self.shard_size:
            for name, content in files.items():
                with atomic_write(self.folder / name) as f:
                    f.write(content)
        elif files:
            self._files |= files
            self._waiting.append(row)
            if len(self._waiting) == self.shard_size:
                self._write_waiting()
            return
        self._add_rows([row])

    def _write_waiting(self) -> None:
        """Writes samples/<number>.tar and views/<number>.tar, two shards of the same shapes."""
        taken = [
            int(p.stem)
            for folder in FOLDERS
            for p in (self.folder / folder).glob("*.tar")
            if p.stem.isdigit()
        ]
        for folder in FOLDERS:
            members = {
                name.removeprefix(f"{folder}/"): content
                for name, content in self._files.items()
                if name.startswith(f"{folder}/")
            }
            if members:
                write_shard(self.folder / folder / f"{max(taken, default=-1) + 1:05d}.tar", members)
            for name in members:
                # an older loose file would be read instead of the packed one
                (self.folder / folder / name).unlink(missing_ok=True)
        self._add_rows(self._waiting)
        self._waiting, self._files = [], {}

    def _add_rows(self, rows: list[dict]) -> None:
        text = io.StringIO()
        csv.DictWriter(text, self.fields, lineterminator="\n").writerows(rows)
        self._report.write(text.getvalue())
        self._report.flush()
        self.rows |= {row["id"]: row for row in rows}

    def _write_sorted(self) -> None:
        write_csv(
            self.folder / "report.csv", self.fields, [self.rows[i] for i in sorted(self.rows)]
        )

    def _remove_leftovers(self) -> None:
        """Deletes unfinished files of a run that was killed."""
        for pattern in (".*.part", "samples/.*.part", "views/.*.part", "views/*/.*.part"):
            for path in self.folder.glob(pattern):
                path.unlink()


def read_report(folder: Path, fields: list[str]) -> dict[str, dict]:
    """Rows of report.csv by id, the last row of each id; empty without a report.

    A last line that a kill has cut off is left out, and so are bad rows: their shapes are sampled
    again. Raises ValueError for a file that is no such table.
    """
    path = folder / "report.csv"
    if not path.is_file():
        return {}
    return {
        row.cells["id"]: {name: row.cells.get(name, "") for name in fields}
        for row in read_checked_rows(path, "id", cut_off=True)
        if not row.problem
    }
