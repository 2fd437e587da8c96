"""report.csv of `make_samples` -> report.md, report.png and two contact sheets beside it.

report.md counts sampled and refused meshes by reason, and has the quantiles of every column of
numbers. contact_sheet.png shows shapes spread evenly over the ids, least_confident.png those whose
labels are least certain. The rows are read twice and never held in memory together: a column of ten
million numbers takes 40 MB.
"""

from __future__ import annotations

import array
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from tar3d.data.datasets.spread import spread
from tar3d.data.formats.shards import ShardedFiles
from tar3d.data.formats.tables import read_rows
from tar3d.data.formats.views import view_names
from tar3d.data.prepare.contact_sheets import shape_image, sheet, tile
from tar3d.io import atomic_write
from tar3d.metrics.summary import histograms, markdown_table
from tar3d.runtime import progress_bar

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

SHEET_SHAPES, LISTED_SHAPES, NAMED_IDS = 64, 10, 8
LEAST_CONFIDENT_SHAPES = 16
TEXT_COLUMNS = ("id", "file", "status", "reason")
QUANTILES = {
    "least": 0.0,
    "1 %": 0.01,
    "5 %": 0.05,
    "median": 0.5,
    "95 %": 0.95,
    "99 %": 0.99,
    "most": 1.0,
}
CONFIDENCE, SECONDS = "label_confidence", "seconds"
# multiple of the median; a column with a larger maximum gets a logarithmic axis
HEAVY_TAIL = 50


@dataclass
class Refusal:
    """Meshes refused for one reason: their number, and the first ids."""

    count: int = 0
    ids: list[str] = field(default_factory=list)


@dataclass
class Scan:
    """The numbers of report.csv after one pass: row k of each array is row k of the table."""

    ok: np.ndarray  # (rows,) bool
    columns: dict[str, np.ndarray]  # (rows,) float32 each, NaN where a cell is empty
    refused: dict[str, Refusal]
    statuses: Counter[str]


def write_report(out: Path) -> None:
    """Writes report.md, report.png, contact_sheet.png and least_confident.png into `out`.

    Raises ValueError without a report.csv.
    """
    scan = scan_report(out / "report.csv")
    ok = np.flatnonzero(scan.ok)
    typical = [int(ok[k]) for k in spread(len(ok), SHEET_SHAPES)]
    uncertain = _first(scan.columns.get(CONFIDENCE), scan.ok, LEAST_CONFIDENT_SHAPES)
    slowest = _first(
        -scan.columns[SECONDS] if SECONDS in scan.columns else None,
        np.ones_like(scan.ok),
        LISTED_SHAPES,
    )
    needed = {*typical, *uncertain, *slowest}
    rows = {k: row for k, row in enumerate(_rows(out / "report.csv")) if k in needed}

    sampled = {name: values[scan.ok & ~np.isnan(values)] for name, values in scan.columns.items()}
    sampled = {name: values for name, values in sampled.items() if len(values)}
    if sampled:
        heavy = [name for name, values in sampled.items() if _has_heavy_tail(values)]
        histograms(sampled, out / "report.png", logarithmic=heavy)
    else:
        (out / "report.png").unlink(missing_ok=True)
    _write_sheets(
        out,
        {
            "contact_sheet.png": [rows[k] for k in typical],
            "least_confident.png": [rows[k] for k in uncertain],
        },
    )
    lines = _lines(
        scan, sampled, [rows[k] for k in uncertain[:LISTED_SHAPES]], [rows[k] for k in slowest]
    )
    with atomic_write(out / "report.md", "w", encoding="utf-8") as f:
        f.write("\n".join(lines) + "\n")


def scan_report(path: Path) -> Scan:
    """Reads report.csv once; a ValueError without it, or without its columns of text."""
    ok, statuses = array.array("B"), Counter[str]()
    refused: dict[str, Refusal] = {}
    columns: dict[str, array.array] | None = None
    for row in _rows(path):
        if columns is None:
            columns = {name: array.array("f") for name in row if name not in TEXT_COLUMNS}
        for name in list(columns):
            try:
                columns[name].append(float(row[name] or "nan"))
            except ValueError:
                del columns[name]  # a column of text
        statuses[row["status"]] += 1
        ok.append(row["status"] == "ok")
        if row["status"] != "ok":
            refusal = refused.setdefault(reason_kind(row), Refusal())
            refusal.count += 1
            if len(refusal.ids) < NAMED_IDS:
                refusal.ids.append(row["id"])
    numbers = {name: np.array(values, dtype=np.float32) for name, values in (columns or {}).items()}
    for values in numbers.values():
        values[~np.isfinite(values)] = np.nan
    return Scan(np.array(ok, dtype=bool), numbers, refused, statuses)


def reason_kind(row: dict[str, str]) -> str:
    """The reason of a refused row without path, numbers and quoted names, to group rows by."""
    reason = row["reason"].replace(row["file"], "").lstrip(": ")
    reason = re.sub(r"(?<!\w)('[^'\s]*'|\"[^\"]*\")", "…", reason)
    return re.sub(r"(?<!\w)-?\d[\d,.]*(?:e[+-]?\d+)?(?<![,.])", "…", reason) or "no reason given"


def quantile_table(columns: dict[str, np.ndarray]) -> list[str]:
    """A Markdown table with a row of quantiles for each column that has numbers.

    `columns` are arrays (n,) without NaN.
    """
    rows = []
    for name, values in columns.items():
        if len(values):
            whole = bool((values == np.floor(values)).all())
            ends = [
                number(v, whole)
                for v in np.quantile(values, list(QUANTILES.values()), method="nearest")
            ]
            mean = number(float(values.mean(dtype=np.float64)), False)
            rows.append([name, f"{len(values):,}", *ends, mean])
    return markdown_table(["", "shapes", *QUANTILES, "mean"], rows)


def number(value: float, whole: bool) -> str:
    """A number for a table: with four digits, or as a whole number with thousands separators."""
    return f"{value:,.0f}" if whole or abs(value) >= 10_000 else f"{value:.4g}"


def escaped(text: str) -> str:
    """Text for one cell of a Markdown table."""
    return text.replace("|", "\\|").replace("\n", " ")


def _rows(path: Path) -> Iterator[dict[str, str]]:
    """Rows of report.csv, with a progress bar if they are many."""
    if not path.is_file():
        raise ValueError(f"{path} is not there: python -m tar3d.data.make_samples writes it")
    rows = read_rows(path, *TEXT_COLUMNS)
    for _, row in progress_bar(rows, desc="report", unit="row", delay=5, leave=False):
        yield row


def _first(values: np.ndarray | None, among: np.ndarray, count: int) -> list[int]:
    """The `count` rows with the least values, least first, of the rows that `among` (rows,) marks.

    Empty without values.
    """
    if values is None:
        return []
    rows = np.flatnonzero(among & ~np.isnan(values))
    return rows[np.argsort(values[rows], kind="stable")[:count]].tolist()


def _has_heavy_tail(values: np.ndarray) -> bool:
    return bool(values.min() > 0 and values.max() > HEAVY_TAIL * np.median(values))


def _write_sheets(out: Path, sheets: dict[str, list[dict[str, str]]]) -> None:
    """Writes each contact sheet, or deletes it if it would have no shapes."""
    ids = {row["id"] for rows in sheets.values() for row in rows}
    views = ShardedFiles(out / "views")
    names = view_names(views, ids)
    images = {}
    with progress_bar(
        total=len(ids), unit="image", desc="contact sheets", delay=2, leave=False
    ) as bar:
        for name, rows in sheets.items():
            tiles = []
            for row in rows:
                shape_id = row["id"]
                if shape_id not in images:
                    images[shape_id] = shape_image(views, names.get(shape_id, []), row["file"])
                    bar.update()
                note = f"confidence {row[CONFIDENCE]}" if row.get(CONFIDENCE) else ""
                tiles.append(tile(images[shape_id], shape_id, note))
            if not tiles:
                (out / name).unlink(missing_ok=True)
                continue
            with atomic_write(out / name) as f:
                sheet(tiles).save(f, format="PNG")


def _lines(
    scan: Scan,
    sampled: dict[str, np.ndarray],
    uncertain: list[dict[str, str]],
    slowest: list[dict[str, str]],
) -> Iterator[str]:
    """The lines of report.md. `sampled` has the numbers of the sampled shapes by column."""
    yield from _summary(scan)
    if sampled:
        yield from (
            "",
            "## Numbers",
            "",
            "Of the sampled shapes, each value one that occurs.",
            "",
            *quantile_table(sampled),
            "",
            "![histograms](report.png)",
        )
    if uncertain:
        yield from (
            "",
            "## Least certain labels",
            "",
            *_listed(uncertain, scan),
            "",
            "![the least certain](least_confident.png)",
        )
    if slowest:
        yield from ("", "## Slowest", "", *_listed(slowest, scan))
    if scan.ok.any():
        yield from (
            "",
            "## Shapes spread evenly over the ids",
            "",
            "![contact sheet](contact_sheet.png)",
        )


def _summary(scan: Scan) -> Iterator[str]:
    """Counts, time and the reasons of refusals."""
    total, good = len(scan.ok), int(scan.ok.sum())
    yield from (
        "# What became of the meshes",
        "",
        f"{good:,} of {total:,} meshes were sampled. "
        + ", ".join(f"{count:,} {status}" for status, count in sorted(scan.statuses.items()))
        + ".",
    )
    if SECONDS in scan.columns:
        seconds = float(np.nansum(scan.columns[SECONDS], dtype=np.float64))
        yield (
            f"They took {seconds:,.0f} s of one process together, "
            f"{seconds / max(total, 1):.3g} s each."
        )
    if scan.refused:
        yield from (
            "",
            "## Refused, by reason",
            "",
            "A … stands for numbers and names; report.csv has each reason in full.",
            "",
        )
        reasons = sorted(scan.refused.items(), key=lambda item: (-item[1].count, item[0]))
        yield from markdown_table(
            ["meshes", "reason", "ids"],
            [[f"{r.count:,}", escaped(reason), _ids(r)] for reason, r in reasons],
        )


def _ids(refusal: Refusal) -> str:
    more = refusal.count - len(refusal.ids)
    return ", ".join(f"`{escaped(i)}`" for i in refusal.ids) + (
        f" and {more:,} more" if more else ""
    )


def _listed(rows: Sequence[dict[str, str]], scan: Scan) -> list[str]:
    names = list(scan.columns)
    return markdown_table(
        ["id", "status", *names],
        [
            [f"`{escaped(row['id'])}`", row["status"], *(row[n] or "" for n in names)]
            for row in rows
        ],
    )
