"""The tables and the tokens of a data set folder held against docs/data.md; the shapes themselves
are for `checks`."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from tar3d import config as configuration
from tar3d.config import PointSamplingConfig, ViewConfig
from tar3d.data.datasets.tokens import read_stamp
from tar3d.data.formats.dataset_folder import SPLITS, read_splits
from tar3d.data.validate.check_shapes import Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator
    from pathlib import Path

STAMP_KEYS = ("tokenizer", "grid_size", "codebook_size")
ITEMS = {
    "image": {"uint8 pixels": np.uint8, "float16 embeddings": np.float16},
    "text": {"int32 token ids": np.int32, "float16 embeddings": np.float16},
}
ROWS_AT_ONCE = 256
STATUSES = ("ok", "refused")


def read_settings(root: Path) -> tuple[dict[str, object], list[Problem]]:
    """What samples/settings.json holds, as configurations; what is damaged or missing is left out
    and listed."""
    path = root / "samples" / "settings.json"
    if not path.is_file():
        return {}, [
            Problem(
                str(path),
                "",
                "it is not there",
                "what make_samples writes there, and needs to go on",
                warning=True,
            )
        ]
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        stored = {"samples": stored["samples"], "seed": stored["seed"], "views": stored["views"]}
    except (ValueError, KeyError, TypeError) as e:
        return {}, [
            Problem(str(path), "", f"it cannot be read ({e})", "JSON with samples, seed and views")
        ]
    settings, problems = {}, []
    for key, kind in (("samples", PointSamplingConfig), ("views", ViewConfig)):
        try:
            settings[key] = (
                configuration.from_mapping(kind, stored[key], str(path))
                if stored[key] is not None
                else None
            )
        except ValueError as e:
            problems.append(Problem(str(path), key, str(e), f"the fields of {kind.__name__}"))
    return settings, problems


def check_tables(root: Path, ids: Collection[str]) -> Iterator[Problem]:
    """splits.json, report.csv, captions.csv and manifest.csv against `ids`, those of the
    samples."""
    yield from _some(
        root / "samples",
        "",
        [i for i in ids if "/" in i],
        "files lie in folders",
        "<id>.npz in samples/ itself",
    )
    yield from _check_splits(root, ids)
    path = root / "report.csv"
    if not path.is_file():
        yield Problem(
            str(path),
            "",
            "it is not there",
            "a row for each mesh; reports and previews look up mesh files in it",
            warning=True,
        )
    else:
        seen: set[str] = set()
        good: set[str] = set()
        for row in _read_table(path, ("id", "file", "status", "reason")):
            if isinstance(row, Problem):
                yield row
                continue
            shape_id, status = row["id"], row["status"]
            if shape_id in seen:
                yield Problem(
                    str(path), "id", f"a second row of {shape_id}", "one row for each id", shape_id
                )
            if status not in STATUSES:
                yield Problem(
                    str(path),
                    "status",
                    f"{status!r} of {shape_id}",
                    " or ".join(STATUSES),
                    shape_id,
                )
            if status == "ok" and shape_id not in ids:
                yield Problem(
                    str(path),
                    "status",
                    f"ok, but {root / 'samples'} has no {shape_id}.npz",
                    "samples of each shape that is ok: run make_samples again",
                    shape_id,
                )
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
    for name, column in (("captions.csv", "caption"), ("manifest.csv", "category")):
        if (root / name).is_file():
            unknown, empty = [], []
            for row in _read_table(root / name, ("id", column)):
                if isinstance(row, Problem):
                    yield row
                    continue
                if row["id"] not in ids:
                    unknown.append(row["id"])
                if name == "captions.csv" and not row[column]:
                    empty.append(row["id"])
            yield from _some(
                root / name,
                "id",
                unknown,
                "rows are of ids without samples",
                "ids of samples",
                True,
            )
            yield from _some(
                root / name, column, empty, "rows are empty there", f"a {column} for each id", True
            )


def check_tokens(root: Path, views: dict[str, list[str]]) -> Iterator[Problem]:
    """tokens/: the stamp, and each shard against it, against splits.json and against the number of
    views; none is no problem."""
    folder = root / "tokens"
    if not folder.is_dir():
        return
    try:
        stamp = read_stamp(folder)
        if not isinstance(stamp, dict):
            raise ValueError("it is no mapping")
    except (ValueError, OSError) as e:
        yield Problem(str(folder / "stamp.json"), "", str(e), f"JSON with {', '.join(STAMP_KEYS)}")
        return
    wrong = [key for key in STAMP_KEYS if key not in stamp]
    wrong += [
        key
        for key in ("grid_size", "codebook_size")
        if not isinstance(stamp.get(key, 1), int) or stamp.get(key, 1) < 1
    ]
    kinds = {kind: f"{kind} items" for kind in ITEMS if kind in stamp}
    wrong += [items for kind, items in kinds.items() if stamp.get(items) not in ITEMS[kind]]
    allowed = {items: " or ".join(ITEMS[kind]) for kind, items in kinds.items()}
    for key in wrong:
        yield Problem(
            str(folder / "stamp.json"),
            key,
            repr(stamp[key]) if key in stamp else "it is missing",
            allowed.get(key, "what make_tokens writes there"),
        )
    if wrong:
        return
    try:
        splits = {name: set(ids) for name, ids in read_splits(root).items()}
    except (ValueError, TypeError):
        splits = {}  # listed by check_tables
    place: dict[str, str] = {}
    for shard in sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")):
        split = re.fullmatch(rf"({'|'.join(SPLITS)})-\d{{5}}", shard.name)
        if not split:
            yield Problem(str(shard), "", "a folder of this name", "<split>-<five digits>")
            continue
        yield from _check_shard(shard, stamp, splits.get(split[1]), views, place)


def _check_shard(
    shard: Path,
    stamp: dict,
    split: set[str] | None,
    views: dict[str, list[str]],
    place: dict[str, str],
) -> Iterator[Problem]:
    """One token shard; `place` is the shard of each id seen so far."""
    path = shard / "index.json"
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        ids = index["ids"]
        if not ids or not all(isinstance(i, str) for i in ids):
            raise TypeError("ids is no list of strings, or empty")
    except (OSError, ValueError, KeyError, TypeError) as e:
        yield Problem(str(path), "", f"it cannot be used ({e})", "JSON with ids and sha256")
        return
    yield from _some(
        path, "ids", [i for i in ids if i in place], "ids stand in two shards", "each id once"
    )
    if split is not None:
        yield from _some(
            path,
            "ids",
            [i for i in ids if i not in split],
            f"ids are not in this split ({shard.name[:-6]})",
            "ids of the split: run make_tokens again",
        )
    place |= dict.fromkeys(ids, shard.name)
    length, size = 3 * stamp["grid_size"] ** 2, stamp["codebook_size"]
    dtype = np.dtype(np.uint16 if size <= 2**16 else np.uint32)
    yield from _check_array(
        shard / "tokens.npy",
        dtype,
        f"({len(ids)}, {length})",
        lambda shape: shape == (len(ids), length),
        f"code ids in [0, {size:,})",
        lambda rows: rows.max() < size,
    )
    for kind in ITEMS:
        if kind in stamp:
            yield from _check_items(
                shard, kind, np.dtype(ITEMS[kind][stamp[f"{kind} items"]]), ids, views
            )


def _check_items(
    shard: Path, kind: str, dtype: np.dtype, ids: list[str], views: dict[str, list[str]]
) -> Iterator[Problem]:
    """What a shard holds of one condition."""
    path = shard / f"{kind}.json"
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        counts, lengths = index["counts"], index.get("lengths")
        if len(ids) != len(counts) or not all(isinstance(n, int) and n >= 0 for n in counts):
            raise ValueError(f"counts has {len(counts)} entries for {len(ids)} ids")
        if kind == "text" and (
            len(lengths) != sum(counts) or not all(isinstance(n, int) and n > 0 for n in lengths)
        ):
            raise ValueError(f"lengths has {len(lengths)} entries for {sum(counts)} captions")
    except (OSError, ValueError, KeyError, TypeError) as e:
        allowed = "JSON with counts, one an id" + (
            ", and lengths, one a caption, each > 0" if kind == "text" else ""
        )
        yield Problem(str(path), "", f"it cannot be used ({e})", allowed)
        return
    if kind == "image":
        yield from _some(
            path,
            "counts",
            [i for i, n in zip(ids, counts, strict=True) if n != len(views.get(i, []))],
            "shapes have another number of pictures by now",
            "as many as in views/: delete tokens/",
            True,
        )
    total = sum(lengths) if kind == "text" else sum(counts)
    if total:
        yield from _check_array(
            shard / f"{kind}.npy",
            dtype,
            f"({total}, ...)",
            lambda shape: shape[0] == total,
            "finite values",
            lambda rows: np.isfinite(rows).all(),
        )


def _check_array(
    path: Path,
    dtype: np.dtype,
    shape: str,
    fits: Callable[[tuple[int, ...]], bool],
    content: str,
    holds: Callable[[np.ndarray], bool],
) -> Iterator[Problem]:
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


def _some(
    path: Path, key: str, ids: list[str], what: str, allowed: str, warning: bool = False
) -> Iterator[Problem]:
    """One problem for all `ids` of which `what` is true."""
    if ids:
        yield Problem(
            str(path), key, f"{len(ids):,} {what}, the first is {ids[0]}", allowed, ids[0], warning
        )


def _read_table(path: Path, columns: tuple[str, ...]) -> Iterator[dict[str, str] | Problem]:
    """Rows, and at the end of what can be read, the problem that ended it."""
    try:
        with open(path, encoding="utf-8", newline="") as f:
            reader = csv.DictReader(f, strict=True)
            missing = [name for name in columns if name not in (reader.fieldnames or [])]
            if missing:
                yield Problem(
                    str(path),
                    missing[0],
                    "there is no such column",
                    f"columns {', '.join(columns)}",
                )
                return
            yield from reader
    except (OSError, UnicodeDecodeError, csv.Error) as e:
        yield Problem(
            str(path),
            "",
            f"it cannot be read ({e})",
            f"UTF-8 text, CSV with columns {', '.join(columns)}",
        )
