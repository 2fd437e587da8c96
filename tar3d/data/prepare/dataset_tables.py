"""Updates captions.csv, manifest.csv and splits.json of a data set from what a source holds."""

from __future__ import annotations

import contextlib
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from tar3d.data.formats.dataset_folder import SPLITS, read_splits
from tar3d.data.formats.tables import read_header, read_rows
from tar3d.data.prepare.find_shapes import user_captions
from tar3d.data.prepare.mesh_list import read_mesh_list
from tar3d.io import write_csv, write_json

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tar3d.data.prepare.find_shapes import Shape
    from tar3d.data.prepare.mesh_list import MeshList

SPLIT_COLUMNS = ("split", "split_hint")  # the first that exists is used


def write_tables(shapes: dict[str, Shape], source: Path, out: Path) -> None:
    """Brings captions.csv, manifest.csv (id, category, file) and splits.json of `out` up to date.

    Rows of other ids stay as they are. For the ids of `shapes`, captions and categories that the
    user provides replace those of `out`; captions made from names only fill gaps. An id never
    changes its split. Shapes with a problem are in none of them. Raises ValueError for splits that
    cannot be used.
    """
    shapes = {shape_id: shape for shape_id, shape in shapes.items() if not shape.problem}
    listed = read_mesh_list(source)
    splits = _user_splits(listed, out)
    _merge_captions(out / "captions.csv", shapes, user_captions(listed))
    _merge_manifest(out / "manifest.csv", shapes, listed)
    _merge_splits(out, splits, set(shapes))


def _user_splits(listed: MeshList, out: Path) -> dict[str, str]:
    """Split by id from splits.json of the source, else split.csv, else the table; else empty."""
    if (listed.base / "splits.json").is_file() and not _same(listed.base, out):
        return {i: name for name, ids in read_splits(listed.base).items() for i in ids}
    path = listed.base / "split.csv"
    splits: dict[str, str] = {}
    for where, shape_id, name in _split_rows(listed, path):
        if shape_id not in listed.meshes:
            raise ValueError(
                f"{where}: {shape_id!r} is the id of no mesh; "
                f"an id is {next(iter(listed.meshes))!r}"
            )
        if name not in SPLITS and (name or path.is_file()):
            raise ValueError(
                f"{where}: the split of {shape_id!r} is {name!r}, allowed are {', '.join(SPLITS)}"
            )
        if splits.setdefault(shape_id, name) != name:
            raise ValueError(f"{where}: {shape_id!r} is in {splits[shape_id]!r} already")
    return {shape_id: name for shape_id, name in splits.items() if name}


def _split_rows(listed: MeshList, path: Path) -> Iterator[tuple[str, str, str]]:
    """(file and line, id, split) of the rows of split.csv, else of the table."""
    if path.is_file():
        for line, row in read_rows(path, "id", "split"):
            yield f"{path}, line {line}", row["id"].strip(), row["split"].strip()
        return
    table = listed.table or listed.base / "manifest.csv"
    for shape_id, (line, row) in listed.rows.items():
        if set(SPLIT_COLUMNS) & row.keys() and shape_id in listed.meshes:
            name = next(row[c].strip() for c in SPLIT_COLUMNS if c in row)
            yield f"{table}, line {line}", shape_id, name


def _same(a: Path, b: Path) -> bool:
    return os.path.realpath(a) == os.path.realpath(b)


def _merge_captions(path: Path, shapes: dict[str, Shape], from_user: dict[str, list[str]]) -> None:
    fields, old = _existing(path, ["id", "caption"])
    rows: dict[str, list[dict]] = {}
    for row in old:
        rows.setdefault(row["id"].strip(), []).append(row)
    for shape_id, shape in shapes.items():
        made = [shape.caption] if shape.caption and shape_id not in rows else []
        texts = from_user.get(shape_id, made)
        present = [" ".join(row.get("caption", "").split()) for row in rows.get(shape_id, [])]
        if texts and present != texts:
            rows[shape_id] = [{"id": shape_id, "caption": text} for text in texts]
    _write_changed(path, fields, old, [row for same_id in rows.values() for row in same_id])


def _merge_manifest(path: Path, shapes: dict[str, Shape], listed: MeshList) -> None:
    if _same(path.parent, listed.base) and (listed.table is None or _same(path, listed.table)):
        return  # a column file would turn the folder into a table, which new meshes are not in
    fields, old = _existing(path, ["id", "category", "file"])
    rows = {row["id"].strip(): row for row in old}
    here = os.path.realpath(path.parent)
    for shape_id, shape in shapes.items():
        row = rows.get(shape_id, {"id": shape_id})
        file = _relative(os.path.realpath(shape.mesh), here)
        rows[shape_id] = row | {"category": shape.category or row.get("category", ""), "file": file}
    _write_changed(path, fields, old, list(rows.values()))


def _relative(file: str, folder: str) -> str:
    """A path as seen from a folder, as it is where another drive of Windows has the folder."""
    with contextlib.suppress(ValueError):
        file = os.path.relpath(file, folder)
    return Path(file).as_posix()


def _existing(path: Path, fields: list[str]) -> tuple[list[str], list[dict]]:
    """Columns and rows of a table that may not exist yet; `fields` are added to its columns."""
    if not path.is_file():
        return fields, []
    header = read_header(path)
    return [*header, *(name for name in fields if name not in header)], [
        row for _, row in read_rows(path, fields[0])
    ]


def _write_changed(path: Path, fields: list[str], old: list[dict], rows: list[dict]) -> None:
    if rows != old:
        write_csv(path, fields, rows)


def _merge_splits(out: Path, from_user: dict[str, str], ids: set[str]) -> None:
    """Adds new ids to splits.json by the user's splits; a file that disagrees stays as it is."""
    if not from_user:
        return  # `complete_splits` makes them
    splits = read_splits(out) if (out / "splits.json").is_file() else {name: [] for name in SPLITS}
    known = {i: name for name, members in splits.items() for i in members}
    moved = [i for i, name in from_user.items() if known.get(i, name) != name]
    if moved:
        warnings.warn(
            f"{out / 'splits.json'} stays as it is: {len(moved):,} ids are in another split there "
            f"than the source says, the first is {moved[0]!r}; delete it to have it made again",
            stacklevel=4,
        )
        return
    added = [i for i in from_user if i not in known]
    if added:
        joined = {
            name: members + [i for i in added if from_user[i] == name]
            for name, members in splits.items()
        }
        write_json(out / "splits.json", joined)
    if nowhere := len(ids - known.keys() - from_user.keys()):
        warnings.warn(
            f"{nowhere:,} of {len(ids):,} shapes are in no split, and will not be used",
            stacklevel=4,
        )
