"""The shapes of a source, each with its mesh, images, caption and category.

    find_shapes(Path("MESHES"))["chairs__a"]
    # Shape(mesh=MESHES/chairs/a.glb, images=(...), caption="...", category="")

Beside the meshes may lie captions.csv, images/, manifest.csv and splits.json or split.csv;
docs/data.md says what they hold. A shape without a caption gets one from the names of its file and
folders, by `tar3d.data.prepare.captions_from_names.clean_name`.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tar3d.condition.image import IMAGE_SUFFIXES
from tar3d.data.formats.tables import read_rows
from tar3d.data.prepare.captions_from_names import clean_name, folder_name
from tar3d.data.prepare.mesh_list import find_meshes, mesh_root, read_mesh_list
from tar3d.folders import find_files, is_reserved, length_problem, printable, repeated_by_case

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from tar3d.data.prepare.mesh_list import MeshList

IMAGE_COLUMNS = ("image", "thumbnail")  # the first that is filled is used


@dataclass(frozen=True)
class Shape:
    """A mesh file and what is known about it; `caption` and `category` are "" if unknown.

    `problem` is the reason why it cannot be used, "" if it can be.
    """

    mesh: Path
    images: tuple[Path, ...] = ()  # files that the user provides, in their order
    caption: str = ""
    category: str = ""
    problem: str = ""


def find_shapes(source: Path) -> dict[str, Shape]:
    """Every shape of a source by id, and what cannot be used by a name for reports.

    Warnings count what is left out, and files and rows that belong to no mesh. Raises ValueError
    for a source without meshes, for tables that cannot be read, and for images or captions none of
    which belongs to a mesh.
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
            path,
            images.get(shape_id, ()),
            captions.get(shape_id, [made])[0],
            category,
            length_problem(f"{shape_id}.npz"),
        )
    _refuse_colliding(shapes)
    for name, (path, reason) in listed.refused.items():
        shapes[name] = Shape(path, problem=reason)
    for note in listed.notes:
        warnings.warn(note, stacklevel=2)
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
        for path in _image_files(listed.base / name, warn=name == "images"):
            parts = path.relative_to(listed.base / name).with_suffix("").parts
            owner = next(
                (i for i in ("__".join(parts[:-1]), "__".join(parts)) if i in listed.meshes), None
            )
            if owner is None:
                unmatched.append(printable(path))
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


def _image_files(folder: Path, *, warn: bool) -> list[Path]:
    """The images below a folder; with `warn`, warnings say what is left out."""
    if not folder.is_dir():
        return []
    top = find_files(folder, IMAGE_SUFFIXES, deep=False)
    # each by itself, so that links of two shapes may lead to the same images
    parts = []
    sub_folders, top.folders = top.folders, []
    for sub_folder in sub_folders:
        try:
            parts.append(find_files(sub_folder, IMAGE_SUFFIXES))
        except OSError as e:
            top.unusable[sub_folder] = f"the folder cannot be read ({e.strerror or e})"
    for part in parts:
        top.add_left_out(part)
        top.unusable |= part.unusable
    unusable = [f"{printable(path)}: {reason}" for path, reason in top.unusable.items()]
    for note in [*top.notes(), *unusable] if warn else []:
        warnings.warn(note, stacklevel=5)
    return [path for part in (top, *parts) for path in part.files]


def _refuse_colliding(shapes: dict[str, Shape]) -> None:
    """Names the ids that Windows or macOS have no files for; refuses them there."""
    system = sys.platform
    if reserved := [i for i in shapes if is_reserved(i)]:
        what = f"{len(reserved):,} ids cannot name files on Windows, the first is {reserved[0]!r}"
        _refuse(shapes, reserved, what, refuse=system == "win32")
    if alike := repeated_by_case(shapes):
        what = (
            f"{len(alike):,} ids differ from another one in case alone, which Windows and macOS "
            f"take for one file, the first is {alike[0]!r}"
        )
        _refuse(shapes, alike, what, refuse=system in ("win32", "darwin"))


def _refuse(shapes: dict[str, Shape], ids: list[str], what: str, *, refuse: bool) -> None:
    if not refuse:
        warnings.warn(what, stacklevel=4)
    for shape_id in ids if refuse else []:
        shapes[shape_id] = dataclasses.replace(shapes[shape_id], problem=f"{what}; rename its file")


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
    found = find_meshes(mesh_root(listed.base)).files
    others = [p for p in found if os.path.normpath(p) not in paths]
    if others:
        warnings.warn(
            f"{len(others)} meshes under {listed.base} are not in {listed.table} and left out, "
            f"as {printable(others[0])}",
            stacklevel=3,
        )
