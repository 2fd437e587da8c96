"""CSV tables that users write: UTF-8 with a header, errors with file and line."""

from __future__ import annotations

import contextlib
import csv
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def read_header(path: Path) -> list[str]:
    """The names of the columns; a ValueError for a file that is no CSV in UTF-8."""
    with _opened(path) as reader:
        return list(reader.fieldnames or [])


def read_rows(path: Path, *required: str) -> Iterator[tuple[int, dict[str, str]]]:
    """(line number, row) of a CSV in UTF-8 with at least the columns `required`.

    Cells that a row lacks are "". Raises ValueError for a missing column, for a row with more cells
    than the header, and for a file that is no CSV in UTF-8.
    """
    with _opened(path) as reader:
        missing = [name for name in required if name not in (reader.fieldnames or [])]
        if missing:
            raise ValueError(
                f"{path} has no column {' or '.join(missing)}; "
                f"its columns are {', '.join(reader.fieldnames or [])}"
            )
        for row in reader:
            if None in row:
                raise ValueError(
                    f"{path}, line {reader.line_num}: more cells than the header has columns; "
                    "text that holds a comma needs quotes around it"
                )
            yield reader.line_num, {name: cell or "" for name, cell in row.items()}


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[csv.DictReader]:
    try:
        # utf-8-sig: spreadsheets put a byte order mark first
        with path.open(encoding="utf-8-sig", newline="") as f:
            yield csv.DictReader(f)
    except (UnicodeDecodeError, csv.Error) as e:
        raise ValueError(f"{path} is not a CSV file in UTF-8 ({e}); save it as one") from e
