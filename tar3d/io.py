"""Files that are written whole or not at all, as bytes, JSON or CSV."""

from __future__ import annotations

import contextlib
import csv
import json
import os
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextlib.contextmanager
def atomic_write(path: Path, mode: str = "wb", **kwargs) -> Iterator[IO]:
    """Opens a temporary file that replaces `path` when the block succeeds, else is deleted."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with partial.open(mode, **kwargs) as f:
            yield f
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def read_json(path: Path) -> Any:
    """The value of a JSON file in UTF-8, with or without a byte order mark.

    Raises OSError for a file that cannot be read, and ValueError for one that is not JSON.
    """
    return json.loads(path.read_text(encoding="utf-8-sig"))


def write_json(path: Path, value: object) -> None:
    """Writes a JSON file, whole or not at all."""
    with atomic_write(path) as f:
        f.write(json_bytes(value))


def json_bytes(value: object) -> bytes:
    """The content of a JSON file in the project's format: indented, UTF-8.

    Bytes of a file's name that are no UTF-8 become escapes, which readers of JSON know.
    """
    text = f"{json.dumps(value, indent=1, ensure_ascii=False)}\n"
    return text.encode(errors="backslashreplace")


def write_csv(path: Path, fields: list[str], rows: list[dict]) -> None:
    """Writes a CSV file with the columns `fields`, whole or not at all."""
    # a file's name may hold bytes that are no UTF-8
    with atomic_write(path, "w", encoding="utf-8", errors="backslashreplace", newline="") as f:
        writer = csv.DictWriter(f, fields, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
