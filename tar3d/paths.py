"""Paths of files that ship with the project, and the rule that tells a local path from a Hub id."""

from __future__ import annotations

import difflib
import re
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
SCRIPTS = "tar3d_scripts"  # the folder beside an installed package that holds what ships with it
SHIPPED_FOLDERS = ("assets", "configs", "pretrained")
# Folders that this project reads and writes. No path that begins with one of them is a Hub id, so
# that nobody who registers such a user name on the Hub can decide what is loaded.
PROJECT_FOLDERS = (*SHIPPED_FOLDERS, "benchmarks", "checkpoints", "data", "models", "outputs")
HUB_PREFIX = "hf://"
LEAST_LIKENESS = 0.75  # of a mistyped name to the right one, by difflib


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


def nearest_path(source: str | Path) -> Path | None:
    """The existing path whose parts are those of `source`, or nearest to them; None if one is far.

    Looked for from the working directory, then among what ships with the project. A bare name is
    also looked for among the models of pretrained/ and outputs/.
    """
    path = Path(source)
    for root in (Path(), PACKAGE.parent, PACKAGE.parent / SCRIPTS):
        if found := _nearest_below(root, path):
            return found
    names = {}
    for model in (*Path("pretrained").glob("*"), *Path("outputs").glob("*/model")):
        names[model.parent.name if model.name == "model" else model.name] = model
    close = difflib.get_close_matches(str(source), names, 1, LEAST_LIKENESS)
    return names[close[0]] if close else None


def _nearest_below(root: Path, path: Path) -> Path | None:
    """The path below `root` that is nearest to `path`, relative to `root`."""
    here = Path(path.anchor)
    for part in path.relative_to(path.anchor).parts:
        if not (root / here / part).exists():
            folder = root / here
            names = [p.name for p in folder.iterdir()] if folder.is_dir() else []
            close = difflib.get_close_matches(part, names, 1, LEAST_LIKENESS)
            if not close:
                return None
            part = close[0]
        here /= part
    return here


def did_you_mean(source: str | Path) -> str:
    """A part of a sentence about a path that is not there: the nearest one, or nothing."""
    nearest = nearest_path(source)
    return f" (did you mean {nearest}?)" if nearest else ""


def local_model(source: str | Path) -> Path | None:
    """The folder of a model that is given as a local path; None for a Hub id.

    Raises ValueError for a path that is no folder, and for a name like owner/name that is nearly
    the path of a folder: a mistyped path is never looked up on the Hub.
    """
    path = find_local(source)
    if path.is_dir() and not is_hub_address(source):
        return path
    if path.is_file():
        raise ValueError(
            f"{path} is a file: give the model directory that holds it, as in {path.parent}"
        )
    name = hub_id(source)
    if name is None:
        raise ValueError(
            f"no model at {path}{did_you_mean(source)}, which was taken for a local path: give a "
            "model directory (with model.safetensors and config.yaml) or a Hub id like owner/name; "
            f"{HUB_PREFIX}owner/name is always a Hub id"
        )
    nearest = None if is_hub_address(source) else nearest_path(source)
    if nearest is not None:
        raise ValueError(
            f"no model at {source} (did you mean {nearest}?): correct the name, or write "
            f"{HUB_PREFIX}{name} for a model of the Hub"
        )
    return None


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
