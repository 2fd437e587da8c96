"""The shapes of a source, each with its mesh, images, caption and category.

    find_shapes(Path("MESHES"))["chairs__a"]
    # Shape(mesh=MESHES/chairs/a.glb, images=(...), caption="...", category="")

Beside the meshes may lie captions.csv, images/, manifest.csv and splits.json or split.csv;
docs/data.md says what they hold. A shape without a caption gets one from the names of its file and
folders, by `tar3d.data.prepare.captions_from_names.clean_name`.
"""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tar3d.condition.image import IMAGE_SUFFIXES
from tar3d.data.formats.tables import read_rows
from tar3d.data.prepare.captions_from_names import clean_name, folder_name
from tar3d.data.prepare.mesh_list import mesh_root, read_mesh_list
from tar3d.mesh.load import list_meshes

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from tar3d.data.prepare.mesh_list import MeshList

IMAGE_COLUMNS = ("image", "thumbnail")  # the first that is filled is used


@dataclass(frozen=True)
class Shape:
    """A mesh file and what is known about it; `caption` and `category` are "" if unknown."""

    mesh: Path
    images: tuple[Path, ...] = ()  # files that the user provides, in their order
    caption: str = ""
    category: str = ""


def find_shapes(source: Path) -> dict[str, Shape]:
    """Every shape of a source by id.

    A warning counts files and rows that belong to no mesh. Raises ValueError for a source without
    meshes, for tables that cannot be read, and for images or captions none of which belongs to a
    mesh.
    """
    listed = read_mesh_list(source)
    captions, images = user_captions(listed, check=True), _user_images(listed)
    shapes = {}
    for shape_id, path in listed.meshes.items():
        row = listed.rows[shape_id][1] if shape_id in listed.rows else {}
        category = row.get("category", "").strip()
        file, *folders = listed.names[shape_id]
        made = clean_name(file) or category or next(filter(None, map(folder_name, folders)), "")
        shapes[shape_id] = Shape(
            path, images.get(shape_id, ()), captions.get(shape_id, [made])[0], category
        )
    if listed.table is not None and listed.table != source:
        _warn_of_unlisted_meshes(listed)
    return shapes


def user_captions(listed: MeshList, *, check: bool = False) -> dict[str, list[str]]:
    """Captions that the user provides, by id: those of captions.csv, else of the table.

    With `check`, rows that belong to no mesh are reported.
    """
    captions: dict[str, list[str]] = {}
    path, unmatched, matched = listed.base / "captions.csv", [], False
    if path.is_file():
        for line, row in read_rows(path, "id", "caption"):
            shape_id, text = row["id"].strip(), " ".join(row["caption"].split())
            if shape_id not in listed.meshes:
                unmatched.append(f"{shape_id!r} in line {line}")
                continue
            matched = True
            if text:
                captions.setdefault(shape_id, []).append(text)
    if check:
        _check_match(str(path), "rows", unmatched, matched, listed.meshes)
    for shape_id, (_, row) in listed.rows.items():
        text = " ".join(row.get("caption", "").split())
        if text and shape_id in listed.meshes:
            captions.setdefault(shape_id, [text])
    return captions


def _user_images(listed: MeshList) -> dict[str, tuple[Path, ...]]:
    """Image files by id: of images/, else of views/, else of a column of the table."""
    images: dict[str, list[Path]] = {}
    for name in ("views", "images"):
        found: dict[str, list[Path]] = {}
        unmatched = []
        for path in _image_files(listed.base / name):
            parts = path.relative_to(listed.base / name).with_suffix("").parts
            owner = next(
                (i for i in ("__".join(parts[:-1]), "__".join(parts)) if i in listed.meshes), None
            )
            if owner is None:
                unmatched.append(str(path))
            else:
                found.setdefault(owner, []).append(path)
        if name == "images":
            _check_match(str(listed.base / name), "images", unmatched, bool(found), listed.meshes)
        images |= found
    for shape_id, (_, row) in listed.rows.items():
        file = next((row[c].strip() for c in IMAGE_COLUMNS if row.get(c, "").strip()), "")
        if file and shape_id in listed.meshes:
            images.setdefault(shape_id, [listed.base / file])
    return {
        i: tuple(sorted(paths, key=lambda p: (len(p.stem), p.stem, p)))
        for i, paths in images.items()
    }


def _image_files(folder: Path) -> Iterator[Path]:
    for base, _, files in os.walk(folder):
        yield from (
            Path(base, f)
            for f in sorted(files)
            if f.lower().endswith(IMAGE_SUFFIXES) and f[0] != "."
        )


def _check_match(
    where: str, what: str, unmatched: list[str], matched: bool, ids: Collection[str]
) -> None:
    if unmatched and not matched:
        raise ValueError(
            f"none of the {len(unmatched):,} {what} of {where} belongs to a mesh: "
            f"the first is {unmatched[0]}, an id of a mesh is {next(iter(ids))!r}; "
            f"name them by ids, or move {where} away"
        )
    if unmatched:
        warnings.warn(
            f"{len(unmatched):,} {what} of {where} belong to no mesh, the first is {unmatched[0]}",
            stacklevel=4,
        )


def _warn_of_unlisted_meshes(listed: MeshList) -> None:
    """A warning for meshes that were added without a row in the folder's manifest.csv."""
    paths = {os.path.normpath(path) for path in listed.meshes.values()}
    others = [p for p in list_meshes(mesh_root(listed.base)) if os.path.normpath(p) not in paths]
    if others:
        warnings.warn(
            f"{len(others)} meshes under {listed.base} are not in {listed.table} and left out, "
            f"as {others[0]}",
            stacklevel=3,
        )
