"""What `make_samples` leaves in a data set folder: files, loose or in shards, and a row of
report.csv for each mesh.

A kill at any point loses only what was not finished: files take their names when they are complete,
and a row is added when its files are there.
"""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING

from tar3d.data.formats.shards import write_shard
from tar3d.io import atomic_write, write_csv

if TYPE_CHECKING:
    from pathlib import Path

KINDS = (
    "views",
    "samples",
)  # the larger last: of shards that a kill left without rows there is then hardly ever a large one


class SampleWriter:
    """Used in a `with` block. `rows` are those of earlier runs that still hold, by id; `shard_size`
    0 writes loose files."""

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
        self._report = open(folder / "report.csv", "a", encoding="utf-8", newline="")

    def __enter__(self) -> SampleWriter:
        return self

    def __exit__(self, *error: object) -> None:
        """The last shard may be a short one, also when the run is interrupted. In the end the
        report is in order of ids."""
        try:
            self._write_waiting()
        finally:
            self._report.close()
        self._write_sorted()

    def add(self, row: dict, files: dict[str, bytes]) -> None:
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
        """A pair of shards: samples/<number>.tar and views/<number>.tar have the same shapes, as
        far as they were wanted."""
        taken = [
            int(p.stem)
            for kind in KINDS
            for p in (self.folder / kind).glob("*.tar")
            if p.stem.isdigit()
        ]
        for kind in KINDS:
            members = {
                name.removeprefix(f"{kind}/"): content
                for name, content in self._files.items()
                if name.startswith(f"{kind}/")
            }
            if members:
                write_shard(self.folder / kind / f"{max(taken, default=-1) + 1:05d}.tar", members)
            for name in members:
                (self.folder / kind / name).unlink(
                    missing_ok=True
                )  # an older loose file would go before the packed one
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
        """Unfinished files of a run that was killed."""
        for pattern in (".*.part", "samples/.*.part", "views/.*.part", "views/*/.*.part"):
            for path in self.folder.glob(pattern):
                path.unlink()


def read_report(folder: Path, fields: list[str]) -> dict[str, dict]:
    """Rows of report.csv by id, the last one of an id; one that was cut off, as a kill may leave
    the last, is left out."""
    path = folder / "report.csv"
    if not path.is_file():
        return {}
    text = path.read_text(encoding="utf-8", errors="replace")
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    if not text.endswith("\n"):
        del rows[-1:]
    return {
        row["id"]: {name: row.get(name) or "" for name in fields}
        for row in rows
        if "id" in row and None not in row.values()
    }
