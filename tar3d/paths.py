"""Paths of files that ship with the project, and the rule that tells a local path from a Hub id."""

from __future__ import annotations

import re
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
SCRIPTS = "tar3d_scripts"  # the folder beside an installed package that holds what ships with it
SHIPPED_FOLDERS = ("assets", "configs", "pretrained")
# Folders that this project reads and writes. No path that begins with one of them is a Hub id, so
# that nobody who registers such a user name on the Hub can decide what is loaded.
PROJECT_FOLDERS = (*SHIPPED_FOLDERS, "benchmarks", "checkpoints", "data", "models", "outputs")
HUB_PREFIX = "hf://"


def shipped(name: str | Path) -> Path:
    """The path of a file or folder that ships with the project, as in shipped("pretrained/tiny").

    Found in the checkout, or beside an installed package; the working directory does not matter.
    Raises ValueError when neither place holds it.
    """
    places = [PACKAGE.parent / name, PACKAGE.parent / SCRIPTS / name]
    for path in places:
        if path.exists():
            return path
    raise ValueError(
        f"{name} should ship with the project, but neither {places[0]} nor {places[1]} exists: "
        "install the project again, or run it from a complete checkout"
    )


def find_local(source: str | Path) -> Path:
    """`source` itself, or the shipped file that it names where the working directory has none."""
    path = Path(source)
    if path.exists() or not path.parts or path.parts[0] not in SHIPPED_FOLDERS:
        return path
    try:
        return shipped(path)
    except ValueError:
        return path


def is_hub_address(source: str | Path) -> bool:
    """Whether `source` is written as hf://..., of which a Path keeps one slash."""
    return str(source).startswith(HUB_PREFIX.removesuffix("/"))


def looks_local(source: str | Path) -> bool:
    """Whether `source` is a path and never a Hub id.

    It is one if it exists, if it is absolute, if it begins with ".", "~", a folder that exists here
    or a folder of this project, or if it has more than two parts.
    """
    path, text = Path(source), str(source)
    return not is_hub_address(source) and (
        path.exists()
        or path.is_absolute()
        or text.startswith((".", "/", "~"))
        or "\\" in text
        or len(path.parts) > 2
        or not path.parts
        or path.parts[0] in PROJECT_FOLDERS
        or (len(path.parts) == 2 and path.parent.exists())
    )


def hub_id(source: str | Path) -> str | None:
    """The Hub id in `hf://owner/name`, or in `owner/name` that does not look local; else None.

    Raises ValueError for `hf://` followed by anything but owner/name.
    """
    name = re.sub("^hf:/+", "", str(source)) if is_hub_address(source) else str(source)
    if re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name) and not looks_local(source):
        return name
    if is_hub_address(source):
        raise ValueError(f"{source} names no model of the Hub: write {HUB_PREFIX}owner/name")
    return None
