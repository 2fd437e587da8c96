"""Captions of a data set, from whichever of the known files its folder holds.

    captions_of(Path("DATA"))["chair_0_000017"]        # ["a tall chair", ...]

To read captions from another file: add a function that returns them by id, and a line to
`CAPTION_FILES`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tar3d.data.formats.tables import read_rows
from tar3d.data.formats.ulip import read_ulip_captions

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def read_captions(path: Path) -> dict[str, list[str]]:
    """Captions by id, in the order of a CSV with the columns id and caption.

    Raises ValueError for a file that is not there, has no captions, or has an empty one.
    """
    if not path.is_file():
        raise ValueError(f"captions file {path} does not exist")
    captions: dict[str, list[str]] = {}
    for line, row in read_rows(path, "id", "caption"):
        shape_id, caption = row["id"].strip(), " ".join(row["caption"].split())
        if not shape_id or not caption:
            lacking = f"no caption for the id {shape_id!r}" if shape_id else "no id"
            raise ValueError(f"{path}, line {line}: there is {lacking}; leave the row out")
        captions.setdefault(shape_id, []).append(caption)
    if not captions:
        raise ValueError(
            f"{path} lists no captions: it needs a header with id and caption, "
            "and a row for each caption"
        )
    return captions


# Name of a file in the data set folder -> its reader; the first file that exists is read.
CAPTION_FILES: dict[str, Callable[[Path], dict[str, list[str]]]] = {
    "captions.csv": read_captions,
    "uid2conds.json": read_ulip_captions,
}


def captions_of(folder: Path) -> dict[str, list[str]]:
    """The captions of a data set by id; a ValueError if it has none or its file is damaged."""
    for name, read in CAPTION_FILES.items():
        if (folder / name).is_file():
            return read(folder / name)
    return read_captions(folder / "captions.csv")  # raises: it does not exist
