"""The layout of a data set folder, and the small files in it. `docs/data.md` is the specification.

meshes/<id>.glb                 any supported format, any depth
manifest.csv                    optional: a category for each id
views/<id>/<k>.png              images of the shape, with cameras.json when they were rendered here
captions.csv  splits.json
samples/<id>.npz                made by tar3d.data.make_samples
tokens/<split>-<k>/ ...         made by tar3d.data.make_tokens
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from tar3d.data.formats.tables import read_header, read_rows
from tar3d.io import read_json, write_json

SPLITS = ("train", "val", "test")
_VAL_SHARE, _TEST_SHARE = 0.05, 0.05


def split_of(shape_id: str) -> str:
    """The split of a shape by a hash of its id: 90 % train, 5 % val, 5 % test.

    Adding shapes to a set moves no other shape.
    """
    share = int.from_bytes(hashlib.sha256(shape_id.encode()).digest()[:8], "big") / 2**64
    return "test" if share < _TEST_SHARE else "val" if share < _TEST_SHARE + _VAL_SHARE else "train"


def split_ids(ids: list[str]) -> dict[str, list[str]]:
    """Ids by `split_of`; if "val" would be empty, the last training shape goes there."""
    splits: dict[str, list[str]] = {name: [] for name in SPLITS}
    for shape_id in sorted(ids):
        splits[split_of(shape_id)].append(shape_id)
    if not splits["val"] and len(splits["train"]) > 1:
        splits["val"].append(splits["train"].pop())
    return splits


def complete_splits(folder: Path, ids: list[str]) -> None:
    """Writes `splits.json`, or adds new ids to one that `split_ids` made.

    A file that differs from what `split_ids` makes was written by the user, and stays as it is.
    """
    known: set[str] = set()
    if (folder / "splits.json").is_file():
        splits = read_splits(folder)
        known.update(*splits.values())
        if splits != split_ids(list(known)):
            return
    if known | set(ids):
        write_json(folder / "splits.json", split_ids(list(known | set(ids))))


def read_splits(folder: Path) -> dict[str, list[str]]:
    """`splits.json` of a data set.

    Raises ValueError when it is missing, is no JSON with the three lists, or has an id in two.
    """
    path = folder / "splits.json"
    if not path.is_file():
        raise ValueError(
            f"{folder} has no splits.json: "
            f"make it with python -m tar3d.data.make_samples MESHES --out {folder}"
        )
    try:
        splits = read_json(path)
    except ValueError as e:
        raise ValueError(f"{path} is not JSON ({e})") from e
    if set(splits) != set(SPLITS):
        raise ValueError(
            f"{path} must hold the lists train, val and test, got {', '.join(splits) or 'nothing'}"
        )
    for a, b in (("train", "val"), ("train", "test"), ("val", "test")):
        both = sorted(set(splits[a]) & set(splits[b]))
        if both:
            raise ValueError(
                f"{path}: {len(both)} ids stand in both {a} and {b}, the first is {both[0]!r}"
            )
    return splits


def mesh_path(folder: Path, shape_id: str) -> Path:
    """The mesh file that a shape was sampled from, by report.csv.

    Raises ValueError when report.csv, its row of the shape, or the mesh is missing.
    """
    if not (folder / "report.csv").is_file():
        raise ValueError(
            f"{folder} has no report.csv, so the meshes of its shapes are not known: write it "
            "with columns id and file, or make the samples with python -m tar3d.data.make_samples"
        )
    for _, row in read_rows(folder / "report.csv", "id", "file"):
        if row["id"] == shape_id:
            path = Path(row["file"])
            if not path.is_file():
                raise ValueError(
                    f"{path}, the mesh that {shape_id!r} was sampled from, is not there: "
                    "run from the folder that make_samples ran in, or do without previews "
                    "(train.preview_shapes=0)"
                )
            return path
    raise ValueError(
        f"{folder / 'report.csv'} has no row for {shape_id!r}: "
        "run python -m tar3d.data.make_samples again"
    )


def read_categories(folder: Path) -> dict[str, str]:
    """Categories by id, from manifest.csv; empty when there is none, or one of other columns.

    Raises ValueError for a table that cannot be read, and for categories without ids.
    """
    manifest = folder / "manifest.csv"
    if not manifest.is_file() or not {"id", "category"} & set(read_header(manifest)):
        return {}
    return {row["id"]: row.get("category", "") for _, row in read_rows(manifest, "id")}
