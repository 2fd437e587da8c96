"""The meshes of a source and their ids; a source is a folder of meshes, a data set or a CSV table.

mesh_ids(Path("MESHES"))["chairs__a"]      # MESHES/chairs/a.glb
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tar3d.data.formats.tables import read_checked_rows, read_header, read_rows
from tar3d.folders import find_files, name_problem, printable
from tar3d.mesh.load import BESIDE_MESHES, SUPPORTED

if TYPE_CHECKING:
    from tar3d.data.formats.tables import Row
    from tar3d.folders import FoundFiles


@dataclass(frozen=True)
class MeshList:
    """The meshes of a source, and the table that lists or describes them.

    `refused` has what cannot be used, by a name that is no id: file, folder or table, and reason.
    `notes` are sentences about files that were left out.
    """

    base: Path  # the folder that captions.csv, images/ and the like are looked for in
    table: Path | None  # the table that lists the meshes; None where their paths do
    meshes: dict[str, Path]  # id -> mesh file
    names: dict[str, list[str]]  # id -> name of the file, then of its folders, innermost first
    # id -> line and row of the table, or of a manifest.csv that has no column file
    rows: dict[str, tuple[int, dict[str, str]]]
    refused: dict[str, tuple[Path, str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def mesh_ids(source: Path) -> dict[str, Path]:
    """The mesh files of a source by id.

    The id of a mesh below `source` (or source/meshes) is its path without suffix, folders joined by
    "__". A table has ids of its own: a .csv file, or the manifest.csv of a folder, with the columns
    id and file. What cannot be used is left out; `read_mesh_list` has it.
    """
    return read_mesh_list(source).meshes


def read_mesh_list(source: Path) -> MeshList:
    """Lists the meshes of a source.

    Raises ValueError if it has none, and for a table without its columns or without a usable row.
    """
    base, table = source, None
    if source.is_file() and source.suffix.lower() == ".csv":
        base, table = source.parent, source
    elif not source.is_dir():
        raise ValueError(
            f"{source} is not a folder of meshes, nor a .csv table with the columns id and file"
        )
    elif (source / "manifest.csv").is_file() and {"id", "file"} <= set(
        read_header(source / "manifest.csv")
    ):
        table = source / "manifest.csv"
    if table is not None:
        return _read_table(base, table, all_have_files=table == source)
    root, manifest = mesh_root(source), source / "manifest.csv"
    found = find_meshes(root)
    if not found.files and not found.unusable:
        looked_for = f"{root} holds no meshes; looked for {', '.join(SUPPORTED)} at any depth"
        raise ValueError("; ".join([looked_for, *found.notes()]))
    usable, refused = usable_files(found)
    meshes = path_ids(usable, root)
    names = {i: _names(path.relative_to(root)) for i, path in meshes.items()}
    rows = {}
    if manifest.is_file() and "id" in read_header(manifest):
        rows = {row["id"]: (line, row) for line, row in read_rows(manifest, "id")}
    return MeshList(base, None, meshes, names, rows, refused, found.notes())


def find_meshes(root: Path) -> FoundFiles:
    """The mesh files below a folder, and what is left out of it."""
    try:
        return find_files(root, SUPPORTED, beside=BESIDE_MESHES)
    except OSError as e:
        raise ValueError(f"{root} cannot be read ({e.strerror or e})") from e


def usable_files(found: FoundFiles) -> tuple[list[Path], dict[str, tuple[Path, str]]]:
    """The files that have a name to be called by, and all others, as `MeshList.refused` has them.

    Files whose names are not in UTF-8 are among the others: no table can hold them.
    """
    reasons = found.unusable | {path: p for path in found.files if (p := name_problem(path))}
    refused = {
        printable(path.relative_to(found.root)): (path, f"{printable(path)}: {reason}")
        for path, reason in sorted(reasons.items())
    }
    return [path for path in found.files if path not in reasons], refused


def mesh_root(base: Path) -> Path:
    """The folder that meshes are looked for in: base/meshes if it exists, else `base`."""
    return base / "meshes" if (base / "meshes").is_dir() else base


def path_ids(paths: list[Path], root: Path) -> dict[str, Path]:
    """Files below a folder by id, as `mesh_ids` makes it."""
    ids: dict[str, Path] = {}
    for path in paths:
        relative = path.relative_to(root)
        short = "__".join(relative.with_suffix("").parts)
        taken = short in ids  # a.obj beside a.glb: the later one keeps its suffix
        ids["__".join(relative.parts) if taken else short] = path
    return ids


def _read_table(base: Path, table: Path, *, all_have_files: bool) -> MeshList:
    meshes: dict[str, Path] = {}
    names: dict[str, list[str]] = {}
    rows: dict[str, tuple[int, dict[str, str]]] = {}
    refused: dict[str, tuple[Path, str]] = {}
    for row in read_checked_rows(table, "id", "file"):
        shape_id, file = (row.cells.get(name, "").strip() for name in ("id", "file"))
        if not row.problem and not file and not all_have_files:
            continue  # a row of another tool: `write_tables` adds files to a manifest.csv
        if problem := _row_problem(row, shape_id, file, rows):
            place = f"{table}, line {row.line}"
            refused[f"{table.name}, line {row.line}"] = table, f"{place}: {problem}"
            continue
        meshes[shape_id], rows[shape_id] = base / file, (row.line, row.cells)
        inside = not Path(file).is_absolute() and ".." not in Path(file).parts
        names[shape_id] = _names(Path(file) if inside else Path(Path(file).name))
    if not meshes:
        first = next((reason for _, reason in refused.values()), "it has no rows below its header")
        raise ValueError(f"{table} lists no meshes: {first}")
    if not any(path.is_file() for path in meshes.values()):
        raise ValueError(
            f"none of the {len(meshes):,} files listed in {table} exists, the first is "
            f"{next(iter(meshes.values()))}; paths in the column file are relative to the table"
        )
    return MeshList(base, table, meshes, names, rows, refused)


def _row_problem(
    row: Row, shape_id: str, file: str, rows: dict[str, tuple[int, dict[str, str]]]
) -> str:
    """The reason why a row lists no mesh, "" if it does; `rows` are those above it."""
    if row.problem:
        return row.problem
    if not shape_id or not file:
        return f"the {'file' if shape_id else 'id'} is empty"
    if shape_id[0] == "." or any(c in "/\\" or not c.isprintable() for c in shape_id):
        return (
            f"the id {shape_id!r} names files, so it must not begin with a dot, "
            "nor hold /, \\ or a line break"
        )
    if shape_id in rows:
        return f"the id {shape_id!r} stands in line {rows[shape_id][0]} already"
    return ""


def _names(relative: Path) -> list[str]:
    return [relative.stem, *reversed(relative.parent.parts)]
