"""Files that are written whole or not at all, as bytes, JSON or CSV."""

from __future__ import annotations

import contextlib
import csv
import json
import os
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextlib.contextmanager
def atomic_write(path: Path, mode: str = "wb", **kwargs) -> Iterator[IO]:
    """Opens a file beside `path` that takes its place when the block ends well, and vanishes when
    it does not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(partial, mode, **kwargs) as f:
            yield f
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, value: object) -> None:
    with atomic_write(path) as f:
        f.write(json_bytes(value))


def json_bytes(value: object) -> bytes:
    """As every JSON file here is written."""
    return f"{json.dumps(value, indent=1, ensure_ascii=False)}\n".encode()


def write_csv(path: Path, fields: list[str], rows: list[dict]) -> None:
    with atomic_write(path, "w", encoding="utf-8", newline="") as f:
        writer = csv.DictWriter(f, fields, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
