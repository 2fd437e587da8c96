"""Where shapes come from: a folder of meshes, a data set folder or a CSV table -> ids, mesh files,
pictures, captions, splits.

    find_shapes(Path("MESHES"))["chairs__a"]      # Shape(mesh=MESHES/chairs/a.glb, pictures=(...), caption="...", category="")

Beside the meshes may lie captions.csv, images/, manifest.csv and splits.json or split.csv;
docs/data.md says what they hold. Captions that nobody gave are made from the names of files and
folders, by `tar3d.data.prepare.captions_from_names.clean_name`.
"""

from __future__ import annotations

import contextlib
import csv
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tar3d.condition.image import IMAGE_SUFFIXES
from tar3d.data.formats.dataset_folder import SPLITS, read_splits
from tar3d.data.prepare.captions_from_names import clean_name, folder_name
from tar3d.io import write_csv, write_json
from tar3d.mesh.load import SUPPORTED, list_meshes

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

PICTURE_COLUMNS = ("image", "thumbnail")  # of a table, the first that is filled
SPLIT_COLUMNS = ("split", "split_hint")


@dataclass(frozen=True)
class Shape:
    """`pictures` are files that were given, in their order; `caption` and `category` are "" where
    none is known."""

    mesh: Path
    pictures: tuple[Path, ...] = ()
    caption: str = ""
    category: str = ""


@dataclass(frozen=True)
class _Source:
    base: Path  # what lies beside the meshes is looked for here
    table: Path | None  # that names the meshes; None where their paths do
    meshes: dict[str, Path]
    names: dict[str, list[str]]  # of the mesh's file and of the folders around it, innermost first
    rows: dict[
        str, tuple[int, dict[str, str]]
    ]  # line and row of the table, or of a manifest.csv without files, by id


def mesh_ids(source: Path) -> dict[str, Path]:
    """Ids of the meshes under `source` (or source/meshes): the path below it without suffix,
    folders joined by "__".

    Those of a table are its own: a .csv file, or the manifest.csv of a folder, with the columns id
    and file."""
    return _read(source).meshes


def find_shapes(source: Path) -> dict[str, Shape]:
    """Every shape of `source` by id, with what is known about it. What matches no mesh is warned
    about.

    Raises ValueError for what is no source, for tables that cannot be read, and for pictures or
    captions none of which belongs to a mesh."""
    read = _read(source)
    captions, pictures = _given_captions(read, check=True), _given_pictures(read)
    shapes = {}
    for shape_id, path in read.meshes.items():
        category = (
            read.rows[shape_id][1].get("category", "").strip() if shape_id in read.rows else ""
        )
        file, *folders = read.names[shape_id]
        made = clean_name(file) or category or next(filter(None, map(folder_name, folders)), "")
        shapes[shape_id] = Shape(
            path, pictures.get(shape_id, ()), captions.get(shape_id, [made])[0], category
        )
    if (
        read.table is not None and read.table != source
    ):  # a manifest.csv, which a new mesh may have been forgotten in
        listed = {os.path.normpath(path) for path in read.meshes.values()}
        others = [
            p for p in list_meshes(_mesh_root(read.base)) if os.path.normpath(p) not in listed
        ]
        if others:
            _say(
                f"{len(others)} meshes under {read.base} are not in {read.table} and left out, as {others[0]}"
            )
    return shapes


def write_tables(shapes: dict[str, Shape], source: Path, out: Path) -> None:
    """Brings captions.csv, manifest.csv (id, category, file) and splits.json of the data set folder
    `out` up to date.

    Rows of other ids stay as they are; of these ids, captions and categories that the source gives
    replace what is there, made up captions do not. An id never changes its split. Raises ValueError
    for splits that cannot be used."""
    read = _read(source)
    splits = _given_splits(read, out)
    _merge_captions(out / "captions.csv", shapes, _given_captions(read))
    _merge_manifest(out / "manifest.csv", shapes, read)
    _merge_splits(out, splits, set(shapes))


def _read(source: Path) -> _Source:
    base, table = source, None
    if source.is_file() and source.suffix.lower() == ".csv":
        base, table = source.parent, source
    elif not source.is_dir():
        raise ValueError(
            f"{source} is not a folder of meshes, nor a .csv table with the columns id and file"
        )
    elif (source / "manifest.csv").is_file() and {"id", "file"} <= set(
        _header(source / "manifest.csv")
    ):
        table = source / "manifest.csv"
    if table is not None:
        return _read_table(base, table, all_have_files=table == source)
    root, about = _mesh_root(source), source / "manifest.csv"
    meshes = _path_ids(root)
    names = {i: _names(path.relative_to(root)) for i, path in meshes.items()}
    known = about.is_file() and "id" in _header(about)
    return _Source(
        base,
        None,
        meshes,
        names,
        {row["id"]: (n, row) for n, row in read_rows(about, "id")} if known else {},
    )


def _mesh_root(base: Path) -> Path:
    return base / "meshes" if (base / "meshes").is_dir() else base


def _path_ids(root: Path) -> dict[str, Path]:
    paths = list_meshes(root)
    if not paths:
        raise ValueError(f"{root} holds no meshes; looked for {', '.join(SUPPORTED)} at any depth")
    named: dict[str, Path] = {}
    for path in paths:
        relative = path.relative_to(root)
        short = "__".join(relative.with_suffix("").parts)
        taken = short in named  # a.obj beside a.glb: the later one keeps its suffix
        named["__".join(relative.parts) if taken else short] = path
    return named


def _read_table(base: Path, table: Path, *, all_have_files: bool) -> _Source:
    meshes, names, rows = {}, {}, {}
    for line, row in read_rows(table, "id", "file"):
        shape_id, file = row["id"].strip(), row["file"].strip()
        if not file and not all_have_files:
            continue  # `write_tables` joined a row whose mesh it does not know
        if not shape_id or not file:
            raise ValueError(f"{table}, line {line}: the {'file' if shape_id else 'id'} is empty")
        if shape_id[0] == "." or any(c in "/\\" or not c.isprintable() for c in shape_id):
            raise ValueError(
                f"{table}, line {line}: the id {shape_id!r} names files, so it must not begin with a dot, nor hold "
                "/, \\ or a line break"
            )
        if shape_id in rows:
            raise ValueError(
                f"{table}, line {line}: the id {shape_id!r} stands in line {rows[shape_id][0]} already"
            )
        meshes[shape_id], rows[shape_id] = base / file, (line, row)
        inside = not Path(file).is_absolute() and ".." not in Path(file).parts
        names[shape_id] = _names(Path(file) if inside else Path(Path(file).name))
    if not meshes:
        raise ValueError(f"{table} lists no meshes")
    if not any(path.is_file() for path in meshes.values()):
        raise ValueError(
            f"of the {len(meshes):,} files that {table} lists none is there, the first is "
            f"{next(iter(meshes.values()))}; its column file is relative to the table"
        )
    return _Source(base, table, meshes, names, rows)


def _names(relative: Path) -> list[str]:
    return [relative.stem, *reversed(relative.parent.parts)]


def _header(path: Path) -> list[str]:
    with _opened(path) as reader:
        return list(reader.fieldnames or [])


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[csv.DictReader]:
    try:
        with open(
            path, encoding="utf-8-sig", newline=""
        ) as f:  # spreadsheets put a byte order mark first
            yield csv.DictReader(f)
    except (UnicodeDecodeError, csv.Error) as e:
        raise ValueError(f"{path} is not a CSV file in UTF-8 ({e}); save it as one") from e


def read_rows(path: Path, *needed: str) -> Iterator[tuple[int, dict[str, str]]]:
    """(line of the file, row) of a CSV in UTF-8 with at least the columns `needed`; cells that a
    row lacks are ""."""
    with _opened(path) as reader:
        lacking = [name for name in needed if name not in (reader.fieldnames or [])]
        if lacking:
            raise ValueError(
                f"{path} has no column {' or '.join(lacking)}; its columns are {', '.join(reader.fieldnames or [])}"
            )
        for row in reader:
            if None in row:
                raise ValueError(
                    f"{path}, line {reader.line_num}: more cells than the header has columns; text that holds a "
                    "comma needs quotes around it"
                )
            yield reader.line_num, {name: cell or "" for name, cell in row.items()}


def read_captions(path: Path) -> dict[str, list[str]]:
    """The captions of each id, in the order of a CSV with the columns id and caption."""
    if not path.is_file():
        raise ValueError(f"captions file {path} does not exist")
    captions: dict[str, list[str]] = {}
    for line, row in read_rows(path, "id", "caption"):
        if not row["caption"].strip():
            raise ValueError(
                f"{path}, line {line}: there is no caption for the id {row['id']!r}; leave the row out"
            )
        captions.setdefault(row["id"], []).append(" ".join(row["caption"].split()))
    if not captions:
        raise ValueError(
            f"{path} lists no captions: it needs a header with id and caption, and a row for each caption"
        )
    return captions


def _given_captions(read: _Source, *, check: bool = False) -> dict[str, list[str]]:
    """One or more captions by id, from captions.csv, else from the table; with `check`, rows of no
    mesh are complained about."""
    captions: dict[str, list[str]] = {}
    path, unmatched, matched = read.base / "captions.csv", [], False
    if path.is_file():
        for line, row in read_rows(path, "id", "caption"):
            shape_id, text = row["id"].strip(), " ".join(row["caption"].split())
            if shape_id not in read.meshes:
                unmatched.append(f"{shape_id!r} in line {line}")
                continue
            matched = True
            if text:
                captions.setdefault(shape_id, []).append(text)
    if check:
        _check_match(str(path), "rows", unmatched, matched, read.meshes)
    for shape_id, (_, row) in read.rows.items():
        text = " ".join(row.get("caption", "").split())
        if text and shape_id in read.meshes:
            captions.setdefault(shape_id, [text])
    return captions


def _given_pictures(read: _Source) -> dict[str, tuple[Path, ...]]:
    """Picture files by id: of images/, else of views/, else of the table's column image or
    thumbnail."""
    pictures: dict[str, list[Path]] = {}
    for name in ("views", "images"):
        found: dict[str, list[Path]] = {}
        unmatched = []
        for path in _image_files(read.base / name):
            parts = path.relative_to(read.base / name).with_suffix("").parts
            owner = next(
                (i for i in ("__".join(parts[:-1]), "__".join(parts)) if i in read.meshes), None
            )
            if owner is None:
                unmatched.append(str(path))
            else:
                found.setdefault(owner, []).append(path)
        if name == "images":
            _check_match(str(read.base / name), "pictures", unmatched, bool(found), read.meshes)
        pictures |= found
    for shape_id, (_, row) in read.rows.items():
        file = next((row[c].strip() for c in PICTURE_COLUMNS if row.get(c, "").strip()), "")
        if file and shape_id in read.meshes:
            pictures.setdefault(shape_id, [read.base / file])
    return {
        i: tuple(sorted(paths, key=lambda p: (len(p.stem), p.stem, p)))
        for i, paths in pictures.items()
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
            f"none of the {len(unmatched):,} {what} of {where} belongs to a mesh: the first is {unmatched[0]}, an "
            f"id of a mesh is {next(iter(ids))!r}; name them by ids, or move {where} away"
        )
    if unmatched:
        _say(f"{len(unmatched):,} {what} of {where} belong to no mesh, the first is {unmatched[0]}")


def _say(message: str) -> None:
    warnings.warn(message, stacklevel=4)


def _given_splits(read: _Source, out: Path) -> dict[str, str]:
    """Split by id: as splits.json of the source says, else split.csv, else the table; {} where
    nobody does."""
    if (read.base / "splits.json").is_file() and not _same(read.base, out):
        return {i: name for name, ids in read_splits(read.base).items() for i in ids}
    path = read.base / "split.csv"
    if path.is_file():
        rows = [
            (path, line, row["id"].strip(), row["split"].strip())
            for line, row in read_rows(path, "id", "split")
        ]
    else:
        table = read.table or read.base / "manifest.csv"
        rows = [
            (table, line, shape_id, next(row[c].strip() for c in SPLIT_COLUMNS if c in row))
            for shape_id, (line, row) in read.rows.items()
            if set(SPLIT_COLUMNS) & row.keys() and shape_id in read.meshes
        ]
    splits: dict[str, str] = {}
    for where, line, shape_id, name in rows:
        if shape_id not in read.meshes:
            raise ValueError(
                f"{where}, line {line}: {shape_id!r} is the id of no mesh; an id is {next(iter(read.meshes))!r}"
            )
        if name not in SPLITS and (name or where == path):
            raise ValueError(
                f"{where}, line {line}: the split of {shape_id!r} is {name!r}, allowed are {', '.join(SPLITS)}"
            )
        if splits.setdefault(shape_id, name) != name:
            raise ValueError(
                f"{where}, line {line}: {shape_id!r} is in {splits[shape_id]!r} already"
            )
    return {shape_id: name for shape_id, name in splits.items() if name}


def _same(a: Path, b: Path) -> bool:
    return os.path.realpath(a) == os.path.realpath(b)


def _merge_captions(path: Path, shapes: dict[str, Shape], given: dict[str, list[str]]) -> None:
    fields, old = _existing(path, ["id", "caption"])
    rows: dict[str, list[dict]] = {}
    for row in old:
        rows.setdefault(row["id"].strip(), []).append(row)
    for shape_id, shape in shapes.items():
        made = [shape.caption] if shape.caption and shape_id not in rows else []
        texts = given.get(shape_id, made)
        if (
            texts
            and [" ".join(row.get("caption", "").split()) for row in rows.get(shape_id, [])]
            != texts
        ):
            rows[shape_id] = [{"id": shape_id, "caption": text} for text in texts]
    _write_changed(path, fields, old, [row for of_one in rows.values() for row in of_one])


def _merge_manifest(path: Path, shapes: dict[str, Shape], read: _Source) -> None:
    if _same(path.parent, read.base) and (read.table is None or _same(path, read.table)):
        return  # a column file would turn the folder into a table that new meshes are not in
    fields, old = _existing(path, ["id", "category", "file"])
    rows = {row["id"].strip(): row for row in old}
    here = os.path.realpath(path.parent)
    for shape_id, shape in shapes.items():
        row = rows.get(shape_id, {"id": shape_id})
        file = Path(os.path.relpath(os.path.realpath(shape.mesh), here)).as_posix()
        rows[shape_id] = row | {"category": shape.category or row.get("category", ""), "file": file}
    _write_changed(path, fields, old, list(rows.values()))


def _existing(path: Path, fields: list[str]) -> tuple[list[str], list[dict]]:
    """Columns and rows of a table that may not be there yet; `fields` are added to its columns."""
    if not path.is_file():
        return fields, []
    header = _header(path)
    return [*header, *(name for name in fields if name not in header)], [
        row for _, row in read_rows(path, fields[0])
    ]


def _write_changed(path: Path, fields: list[str], old: list[dict], rows: list[dict]) -> None:
    if rows != old:
        write_csv(path, fields, rows)


def _merge_splits(out: Path, given: dict[str, str], ids: set[str]) -> None:
    """Ids that splits.json lacks join the split they were given; one that disagrees about an id
    stays as it is."""
    if not given:
        return  # `complete_splits` makes them
    there = read_splits(out) if (out / "splits.json").is_file() else {name: [] for name in SPLITS}
    known = {i: name for name, members in there.items() for i in members}
    moved = [i for i, name in given.items() if known.get(i, name) != name]
    if moved:
        _say(
            f"{out / 'splits.json'} stays as it is: {len(moved):,} ids are in another split there than the source says, the "
            f"first is {moved[0]!r}; delete it to have it made again"
        )
        return
    added = [i for i in given if i not in known]
    if added:
        joined = {
            name: members + [i for i in added if given[i] == name]
            for name, members in there.items()
        }
        write_json(out / "splits.json", joined)
    if nowhere := len(ids - known.keys() - given.keys()):
        _say(f"{nowhere:,} of {len(ids):,} shapes are in no split, and will not be used")
