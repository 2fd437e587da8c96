"""Checks the tables and token shards of a data set against docs/data.md.

Single shapes are checked in `check_shapes`.
"""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from tar3d import config as configuration
from tar3d.config import PointSamplingConfig, ViewConfig
from tar3d.data.formats.dataset_folder import SPLITS, read_splits
from tar3d.data.formats.tables import read_checked_rows, read_header
from tar3d.data.formats.token_file import token_dtype
from tar3d.data.formats.token_shards import LATENTS, read_stamp
from tar3d.data.formats.token_sources import stale_parts
from tar3d.data.validate.check_shapes import Problem, Settings
from tar3d.io import read_json

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Generator, Iterator
    from pathlib import Path

STAMP_KEYS = ("tokenizer", "grid_size", "codebook_size")
# modality -> its types of items, as in stamp.json -> their dtype
ITEMS: dict[str, dict[str, type]] = {
    "image": {"uint8 pixels": np.uint8, "float16 embeddings": np.float16},
    "text": {"int32 token ids": np.int32, "float16 embeddings": np.float16},
}
ROWS_AT_ONCE = 256
STATUSES = ("ok", "refused")


def read_settings(root: Path) -> tuple[Settings, list[Problem]]:
    """The content of samples/settings.json without what is missing or damaged, and the problems."""
    path = root / "samples" / "settings.json"
    if not path.is_file():
        allowed = "what make_samples writes there, and needs to go on"
        return Settings(), [Problem(str(path), "", "it is not there", allowed, warning=True)]
    try:
        stored = read_json(path)
        stored = {"samples": stored["samples"], "seed": stored["seed"], "views": stored["views"]}
    except (ValueError, KeyError, TypeError) as e:
        allowed = "JSON with samples, seed and views"
        return Settings(), [Problem(str(path), "", f"it cannot be read ({e})", allowed)]
    settings, problems = Settings(), []
    for key, config in (("samples", PointSamplingConfig), ("views", ViewConfig)):
        if stored[key] is None:
            continue
        try:
            setattr(settings, key, configuration.from_mapping(config, stored[key], str(path)))
        except ValueError as e:
            problems.append(Problem(str(path), key, str(e), f"the fields of {config.__name__}"))
    return settings, problems


def check_tables(root: Path, ids: Collection[str]) -> Iterator[Problem]:
    """Checks splits.json, report.csv, captions.csv and manifest.csv; `ids` are those of samples."""
    yield from _some(
        root / "samples",
        "",
        [i for i in ids if "/" in i],
        "files lie in folders",
        "<id>.npz in samples/ itself",
    )
    yield from _check_splits(root, ids)
    yield from _check_report(root, ids)
    yield from _check_column(root / "captions.csv", "caption", ids, may_be_empty=False)
    yield from _check_column(root / "manifest.csv", "category", ids, may_be_empty=True)


def _check_splits(root: Path, ids: Collection[str]) -> Iterator[Problem]:
    path = root / "splits.json"
    allowed = "JSON with the lists train, val and test, no id twice"
    try:
        splits = read_splits(root)
    except (ValueError, TypeError, OSError) as e:
        yield Problem(str(path), "", str(e).removeprefix(str(path)).lstrip(": "), allowed)
        return
    listed: set[str] = set()
    for name, members in splits.items():
        if not isinstance(members, list) or not all(isinstance(i, str) for i in members):
            yield Problem(str(path), name, "no list of strings", allowed)
            return
        yield from _some(
            path,
            name,
            [i for i, n in Counter(members).items() if n > 1],
            "ids stand in it twice",
            allowed,
        )
        yield from _some(
            path,
            name,
            [i for i in members if i not in ids],
            "ids have no samples and are passed over",
            "ids of samples",
            True,
        )
        listed.update(members)
    yield from _some(
        path,
        "",
        [i for i in ids if i not in listed],
        "samples are in no split, so nothing uses them",
        "each id in one split",
        True,
    )


def known_splits(root: Path) -> dict[str, list[str]]:
    """The splits, empty where splits.json cannot be used, which `check_tables` says."""
    try:
        splits = read_splits(root)
    except (ValueError, TypeError, OSError):
        return {}
    is_sound = all(
        isinstance(ids, list) and all(isinstance(i, str) for i in ids) for ids in splits.values()
    )
    return splits if is_sound else {}


def _check_report(root: Path, ids: Collection[str]) -> Iterator[Problem]:
    path = root / "report.csv"
    if not path.is_file():
        allowed = "a row for each mesh; reports and previews look up mesh files in it"
        yield Problem(str(path), "", "it is not there", allowed, warning=True)
        return
    seen: set[str] = set()
    good: set[str] = set()
    for row in _read_table(path, ("id", "file", "status", "reason")):
        if isinstance(row, Problem):
            yield row
            continue
        shape_id, status = row["id"], row["status"]
        if shape_id in seen:
            found = f"a second row of {shape_id}"
            yield Problem(str(path), "id", found, "one row for each id", shape_id)
        if status not in STATUSES:
            found = f"{status!r} of {shape_id}"
            yield Problem(str(path), "status", found, " or ".join(STATUSES), shape_id)
        if status == "ok" and shape_id not in ids:
            found = f"ok, but {root / 'samples'} has no {shape_id}.npz"
            allowed = "samples of each shape that is ok: run make_samples again"
            yield Problem(str(path), "status", found, allowed, shape_id)
        if status == "ok" and (problem := _background(path, row)):
            yield problem
        seen.add(shape_id)
        if status == "ok":
            good.add(shape_id)
    yield from _some(
        path,
        "id",
        [i for i in ids if i not in good],
        "samples have no row that is ok",
        "one for each",
        True,
    )


def _background(path: Path, row: dict[str, str]) -> Problem | None:
    """A warning for a shape of which a background takes the samples."""
    try:
        share, span = float(row.get("background_share") or 0), float(row.get("object_span") or 1)
    except ValueError:
        allowed = "a number in [0, 1]"
        return Problem(str(path), "background_share", "no number", allowed, row["id"])
    if not share > 0:
        return None
    found = (
        f"a flat or enclosing part takes {share:.1%} of the surface samples of {row['id']}, and "
        f"the rest spans {span:.1%} of the frame"
    )
    allowed = "an object without sky dome or ground plane: take it out of the mesh"
    return Problem(str(path), "background_share", found, allowed, row["id"], True)


def _check_column(
    path: Path, column: str, ids: Collection[str], *, may_be_empty: bool
) -> Iterator[Problem]:
    """Checks a table with the columns id and `column`, if it exists."""
    if not path.is_file():
        return
    unknown, empty = [], []
    for row in _read_table(path, ("id", column)):
        if isinstance(row, Problem):
            yield row
            continue
        if row["id"] not in ids:
            unknown.append(row["id"])
        if not may_be_empty and not row[column]:
            empty.append(row["id"])
    yield from _some(path, "id", unknown, "rows are of ids without samples", "ids of samples", True)
    yield from _some(path, column, empty, "rows are empty there", f"a {column} for each id", True)


def check_tokens(root: Path, views: dict[str, list[str]]) -> Iterator[Problem]:
    """Checks tokens/, if it exists: the stamp, and each shard against stamp, splits and views.

    `views` are the names of each shape's views.
    """
    folder = root / "tokens"
    if not folder.is_dir():
        return
    stamp = yield from _checked_stamp(folder)
    if stamp is None:
        return
    splits = {name: set(ids) for name, ids in known_splits(root).items()}
    shard_of: dict[str, str] = {}
    for shard in sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")):
        split = re.fullmatch(rf"({'|'.join(SPLITS)})-\d{{5}}", shard.name)
        if not split:
            yield Problem(str(shard), "", "a folder of this name", "<split>-<five digits>")
            continue
        yield from _check_shard(shard, stamp, splits.get(split[1]), views, shard_of)
    with contextlib.suppress(ValueError, KeyError, OSError):  # damaged files are listed above
        for path, reason in stale_parts(root):
            allowed = "shards of today's data: train_gpt.py and make_tokens make it again"
            yield Problem(str(path), "sources", reason, allowed, warning=True)


def _checked_stamp(folder: Path) -> Generator[Problem, None, dict | None]:
    """Yields the problems of stamp.json; returns the stamp, None if it has any."""
    path = str(folder / "stamp.json")
    try:
        stamp = read_stamp(folder)
        if not isinstance(stamp, dict):
            raise ValueError("it is no mapping")
    except (ValueError, OSError) as e:
        yield Problem(path, "", str(e), f"JSON with {', '.join(STAMP_KEYS)}")
        return None
    wrong = [key for key in STAMP_KEYS if key not in stamp]
    wrong += [
        key
        for key in ("grid_size", "codebook_size")
        if not isinstance(stamp.get(key, 1), int) or stamp.get(key, 1) < 1
    ]
    keys = {f"{modality} items": ITEMS[modality] for modality in ITEMS if modality in stamp}
    wrong += [key for key, types in keys.items() if stamp.get(key) not in types]
    for key in wrong:
        found = repr(stamp[key]) if key in stamp else "it is missing"
        allowed = " or ".join(keys[key]) if key in keys else "what make_tokens writes there"
        yield Problem(path, key, found, allowed)
    return None if wrong else stamp


def _check_shard(
    shard: Path,
    stamp: dict,
    split: set[str] | None,
    views: dict[str, list[str]],
    shard_of: dict[str, str],
) -> Iterator[Problem]:
    """One token shard; `shard_of` maps the ids of the shards before it to their names."""
    path = shard / "index.json"
    try:
        index = read_json(path)
        ids = index["ids"]
        if not ids or not all(isinstance(i, str) for i in ids):
            raise TypeError("ids is no list of strings, or empty")
    except (OSError, ValueError, KeyError, TypeError) as e:
        yield Problem(str(path), "", f"it cannot be used ({e})", "JSON with ids and sha256")
        return
    yield from _some(
        path, "ids", [i for i in ids if i in shard_of], "ids stand in two shards", "each id once"
    )
    if split is not None:
        yield from _some(
            path,
            "ids",
            [i for i in ids if i not in split],
            f"ids are not in this split ({shard.name[:-6]})",
            "ids of the split: run make_tokens again",
        )
    shard_of |= dict.fromkeys(ids, shard.name)
    length, size = 3 * stamp["grid_size"] ** 2, stamp["codebook_size"]
    yield from _check_array(
        shard / "tokens.npy",
        np.dtype(token_dtype(size)),
        f"({len(ids)}, {length})",
        lambda shape: shape == (len(ids), length),
        f"code ids in [0, {size:,})",
        lambda rows: rows.max() < size,
    )
    if LATENTS in index:
        yield from _check_array(
            shard / f"{LATENTS}.npy",
            np.dtype(np.float16),
            f"({len(ids)}, {length}, K)",
            lambda shape: len(shape) == 3 and shape[:2] == (len(ids), length),
            "finite numbers",
            lambda rows: bool(np.isfinite(rows).all()),
        )
    for modality, types in ITEMS.items():
        if modality in stamp:
            dtype = np.dtype(types[stamp[f"{modality} items"]])
            yield from _check_items(shard, modality, dtype, ids, views)


def _check_items(
    shard: Path, modality: str, dtype: np.dtype, ids: list[str], views: dict[str, list[str]]
) -> Iterator[Problem]:
    """The conditions of one modality in a shard."""
    path = shard / f"{modality}.json"
    try:
        index = read_json(path)
        counts, lengths = index["counts"], index.get("lengths")
        if len(ids) != len(counts) or not all(isinstance(n, int) and n >= 0 for n in counts):
            raise ValueError(f"counts has {len(counts)} entries for {len(ids)} ids")
        if modality == "text" and (
            len(lengths) != sum(counts) or not all(isinstance(n, int) and n > 0 for n in lengths)
        ):
            raise ValueError(f"lengths has {len(lengths)} entries for {sum(counts)} captions")
    except (OSError, ValueError, KeyError, TypeError) as e:
        allowed = "JSON with counts, one an id" + (
            ", and lengths, one a caption, each > 0" if modality == "text" else ""
        )
        yield Problem(str(path), "", f"it cannot be used ({e})", allowed)
        return
    if modality == "image":
        yield from _some(
            path,
            "counts",
            [i for i, n in zip(ids, counts, strict=True) if n != len(views.get(i, []))],
            "shapes have another number of images by now",
            "as many as in views/: delete tokens/",
            True,
        )
    total = sum(lengths) if modality == "text" else sum(counts)
    if total:
        yield from _check_array(
            shard / f"{modality}.npy",
            dtype,
            f"({total}, ...)",
            lambda shape: shape[0] == total,
            "finite values",
            lambda rows: bool(np.isfinite(rows).all()),
        )


def _check_array(
    path: Path,
    dtype: np.dtype,
    shape: str,
    fits: Callable[[tuple[int, ...]], bool],
    content: str,
    holds: Callable[[np.ndarray], bool],
) -> Iterator[Problem]:
    """An .npy: its dtype, its shape by `fits`, and each of its rows by `holds`."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as e:
        yield Problem(str(path), "", f"it cannot be read ({e})", f"an .npy of {dtype} {shape}")
        return
    if array.dtype != dtype or not fits(array.shape):
        yield Problem(str(path), "", f"{array.dtype} {array.shape}", f"{dtype} {shape}")
        return
    for first in range(0, len(array), ROWS_AT_ONCE):
        rows = np.asarray(array[first : first + ROWS_AT_ONCE])
        if not holds(rows):
            bad = next(first + k for k, row in enumerate(rows) if not holds(row))
            yield Problem(str(path), f"row {bad}", f"values up to {array[bad].max()}", content)
            return


def _some(
    path: Path, key: str, ids: list[str], what: str, allowed: str, warning: bool = False
) -> Iterator[Problem]:
    """One problem for all `ids`, which "<number> <what>" describes; none without ids."""
    if ids:
        found = f"{len(ids):,} {what}, the first is {ids[0]}"
        yield Problem(str(path), key, found, allowed, ids[0], warning)


def _read_table(path: Path, columns: tuple[str, ...]) -> Iterator[dict[str, str] | Problem]:
    """The good rows of a table, and problems in place of the others; one that ends it is last."""
    allowed = f"UTF-8 text, CSV with columns {', '.join(columns)}"
    try:
        header = read_header(path)
        if missing := [name for name in columns if name not in header]:
            yield Problem(str(path), missing[0], "there is no such column", allowed)
            return
        for row in read_checked_rows(path, *columns):
            if row.problem:
                yield Problem(str(path), f"line {row.line}", row.problem, allowed)
            else:
                yield row.cells
    except ValueError as e:
        yield Problem(str(path), "", f"it cannot be read ({e})", allowed)
