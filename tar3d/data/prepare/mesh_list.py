"""The meshes of a source and their ids; a source is a folder of meshes, a data set or a CSV table.

mesh_ids(Path("MESHES"))["chairs__a"]      # MESHES/chairs/a.glb
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tar3d.data.formats.tables import read_header, read_rows
from tar3d.mesh.load import SUPPORTED, list_meshes


@dataclass(frozen=True)
class MeshList:
    """The meshes of a source, and the table that lists or describes them."""

    base: Path  # the folder that captions.csv, images/ and the like are looked for in
    table: Path | None  # the table that lists the meshes; None where their paths do
    meshes: dict[str, Path]  # id -> mesh file
    names: dict[str, list[str]]  # id -> name of the file, then of its folders, innermost first
    # id -> line and row of the table, or of a manifest.csv that has no column file
    rows: dict[str, tuple[int, dict[str, str]]]


def mesh_ids(source: Path) -> dict[str, Path]:
    """The mesh files of a source by id.

    The id of a mesh below `source` (or source/meshes) is its path without suffix, folders joined by
    "__". A table has ids of its own: a .csv file, or the manifest.csv of a folder, with the columns
    id and file.
    """
    return read_mesh_list(source).meshes


def read_mesh_list(source: Path) -> MeshList:
    """Lists the meshes of a source; a ValueError if it has none or its table is damaged."""
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
    meshes = _path_ids(root)
    names = {i: _names(path.relative_to(root)) for i, path in meshes.items()}
    rows = {}
    if manifest.is_file() and "id" in read_header(manifest):
        rows = {row["id"]: (line, row) for line, row in read_rows(manifest, "id")}
    return MeshList(base, None, meshes, names, rows)


def mesh_root(base: Path) -> Path:
    """The folder that meshes are looked for in: base/meshes if it exists, else `base`."""
    return base / "meshes" if (base / "meshes").is_dir() else base


def _path_ids(root: Path) -> dict[str, Path]:
    paths = list_meshes(root)
    if not paths:
        raise ValueError(f"{root} holds no meshes; looked for {', '.join(SUPPORTED)} at any depth")
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
    for line, row in read_rows(table, "id", "file"):
        shape_id, file = row["id"].strip(), row["file"].strip()
        if not file and not all_have_files:
            continue  # a row of another tool: `write_tables` adds files to a manifest.csv
        _check_row(f"{table}, line {line}", shape_id, file)
        if shape_id in rows:
            raise ValueError(
                f"{table}, line {line}: "
                f"the id {shape_id!r} stands in line {rows[shape_id][0]} already"
            )
        meshes[shape_id], rows[shape_id] = base / file, (line, row)
        inside = not Path(file).is_absolute() and ".." not in Path(file).parts
        names[shape_id] = _names(Path(file) if inside else Path(Path(file).name))
    if not meshes:
        raise ValueError(f"{table} lists no meshes")
    if not any(path.is_file() for path in meshes.values()):
        raise ValueError(
            f"none of the {len(meshes):,} files listed in {table} exists, the first is "
            f"{next(iter(meshes.values()))}; paths in the column file are relative to the table"
        )
    return MeshList(base, table, meshes, names, rows)


def _check_row(where: str, shape_id: str, file: str) -> None:
    if not shape_id or not file:
        raise ValueError(f"{where}: the {'file' if shape_id else 'id'} is empty")
    if shape_id[0] == "." or any(c in "/\\" or not c.isprintable() for c in shape_id):
        raise ValueError(
            f"{where}: the id {shape_id!r} names files, so it must not begin with a dot, "
            "nor hold /, \\ or a line break"
        )


def _names(relative: Path) -> list[str]:
    return [relative.stem, *reversed(relative.parent.parts)]
