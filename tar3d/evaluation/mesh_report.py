"""Rows of 3D scores -> summary.json, rows.csv, report.md and images. Runs no model."""

from __future__ import annotations

import platform
import sys
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tar3d.config import EvalProtocol, to_mapping
from tar3d.evaluation.mesh_pairs import PAIR_COLUMNS, Pair, read_pair
from tar3d.io import write_csv, write_json
from tar3d.mesh.load import normalize
from tar3d.mesh.render import contact_sheet, render_preview
from tar3d.metrics.geometry import describe, geometry_formulas, transformed
from tar3d.metrics.registry import is_lower_better
from tar3d.metrics.summary import INTERVALS, aggregate, cell, histograms, markdown_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tar3d.contracts import Mesh

LIBRARIES = ("numpy", "scipy", "trimesh", "libigl")
RANKED = 10  # pairs in each part of the ranked image
MOST_PRINTED = 10  # failures on the terminal, and notes in the report; rows.csv has them all


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that a score of meshes may depend on."""
    return {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}}


def score_names(rows: list[dict]) -> list[str]:
    """Names of the numeric columns, in the order in which rows have them."""
    return list(dict.fromkeys(name for row in rows for name in row if name not in PAIR_COLUMNS))


def summarise(rows: list[dict], seed: int) -> dict:
    """Aggregates of every score over the pairs that have it, means by category, and failures."""
    good = [row for row in rows if row["status"] == "ok"]
    names = score_names(rows)
    groups: dict[str, list[dict]] = {}
    for row in good:
        groups.setdefault(row["category"], []).append(row)
    return {
        "pairs": len(rows),
        "scored": len(good),
        "failed": [
            {"id": row["id"], "reason": row["reason"]} for row in rows if row["status"] != "ok"
        ],
        "notes": [{"id": row["id"], "note": row["note"]} for row in good if row.get("note")],
        "scores": {name: aggregate([row.get(name) for row in good], seed) for name in names},
        "by_category": {
            category: {
                "pairs": len(group),
                **{name: _mean([row.get(name) for row in group]) for name in names},
            }
            for category, group in sorted(groups.items())
        }
        if len(groups) > 1
        else {},
    }


def _mean(values: list[float | None]) -> float | None:
    present = [v for v in values if v is not None]
    return float(np.mean(present)) if present else None


def compare_sets(ours: list[dict], theirs: list[dict], score: str, seed: int) -> dict:
    """Compares two sets pair by pair, over the ids of which both have the score.

    `share` is that of the pairs in which `ours` is better; `gain` aggregates by how much.
    """
    other = {row["id"]: row.get(score) for row in theirs}
    sign = -1 if is_lower_better(score) else 1
    gains = [
        sign * (row[score] - other[row["id"]])
        for row in ours
        if row.get(score) is not None and other.get(row["id"]) is not None
    ]
    return {
        "share": sum(g > 0 for g in gains) / len(gains) if gains else None,
        "gain": aggregate(gains, seed),
    }


def write_mesh_report(
    out: Path,
    sets: dict[str, list[dict]],
    protocol: EvalProtocol,
    about: dict,
    *,
    titles: dict[str, str] | None = None,
    extra: list[str] | None = None,
) -> str:
    """Writes all files of a report on named sets of rows, and returns its Markdown text.

    The first set is the one that is evaluated; the others are what it is compared with. `about`
    goes into summary.json as it is (command, machine, alignment, ...); `extra` are Markdown lines
    that follow the tables; `titles` are the sets' names for readers.
    """
    summaries = {name: summarise(rows, protocol.seed) for name, rows in sets.items()}
    main = next(iter(sets))
    comparisons = {
        other: {
            score: compare_sets(sets[main], rows, score, protocol.seed)
            for score in protocol.headline
        }
        for other, rows in sets.items()
        if other != main
    }
    out.mkdir(parents=True, exist_ok=True)
    write_json(
        out / "summary.json",
        {
            **about,
            "versions": versions(),
            "protocol": to_mapping(protocol),
            "formulas": geometry_formulas(),
            "sets": summaries,
            "comparisons": comparisons,
        },
    )
    names = score_names([row for rows in sets.values() for row in rows])
    write_rows(out / "rows.csv", sets, [*PAIR_COLUMNS, *names])
    lines = [
        *_markdown(summaries, comparisons, protocol, titles or {}),
        *(extra or []),
        *["", "## Protocol", "", "```", describe(protocol), "```", ""],
        *(f"{name}: {value}  " for name, value in about.items()),
    ]
    text = "\n".join(lines) + "\n"
    (out / "report.md").write_text(text, encoding="utf-8")
    _draw([row for row in sets[main] if row["status"] == "ok"], protocol, out)
    return text


def _draw(rows: list[dict], protocol: EvalProtocol, out: Path) -> None:
    """Writes histogram.png and ranked.png of the scored rows, if there are any."""
    if not rows:
        return
    values: dict[str, Sequence[float]] = {
        score: [row[score] for row in rows if row.get(score) is not None]
        for score in protocol.headline
    }
    histograms(values, out / "histogram.png")
    draw_ranked_pairs(rows, protocol, out / "ranked.png")


def write_rows(path: Path, sets: dict[str, list[dict]], columns: list[str]) -> None:
    """A CSV with a line for each row of each set."""
    write_csv(
        path,
        ["set", *columns],
        [
            {"set": name} | {k: _text(row.get(k)) for k in columns}
            for name, rows in sets.items()
            for row in rows
        ],
    )


def _text(value: object) -> object:
    if isinstance(value, bool):
        return int(value)
    return f"{value:.7g}" if isinstance(value, float) else "" if value is None else value


def _markdown(
    summaries: dict, comparisons: dict, protocol: EvalProtocol, titles: dict[str, str]
) -> list[str]:
    headline = list(dict.fromkeys([*protocol.headline, "normal_consistency", "iou"]))
    main, first = next(iter(summaries.items()))
    lines = ["# Meshes against the truth", ""]
    for name, summary in summaries.items():
        scored = f"{summary['scored']} of {summary['pairs']} pairs scored."
        lines.append(f"{titles.get(name, name)}: {scored}  ")
        lines += [f"- failed: {f['id']}: {f['reason']}" for f in summary["failed"]]
        lines += note_lines(summary["notes"])
    lines += ["", f"Mean and 95 % interval over pairs ({INTERVALS}).", ""]
    rows = [_headline_row(titles.get(name, name), s, headline) for name, s in summaries.items()]
    if f"floor_{headline[0]}" in first["scores"]:
        rows.append(_floor_row(first, headline))
    lines += [*markdown_table(["", "pairs", *headline], rows), ""]
    if comparisons:
        lines += [
            f"Share of pairs in which {titles.get(main, main)} is better, and mean gain "
            "(positive is better).",
            "",
        ]
        rows = [
            [titles.get(other, other), *map(gain_cell, scores.values())]
            for other, scores in comparisons.items()
        ]
        lines += [*markdown_table(["than", *protocol.headline], rows), ""]
    by_category = [name for name in headline if name in first["scores"]]
    return lines + details(first, titles.get(main, main), by_category)


def note_lines(notes: list[dict[str, str]]) -> list[str]:
    """Lines on scored pairs that may not be what was meant: the first, and how many there are."""
    lines = [f"- note: {note['id']}: {note['note']}" for note in notes[:MOST_PRINTED]]
    more = len(notes) - MOST_PRINTED
    return [*lines, f"- ... and {more} more, in rows.csv"] if more > 0 else lines


def _headline_row(title: str, summary: dict, headline: list[str]) -> list[str]:
    scores = summary["scores"]
    cells = [_headline_cell(scores[name]) if name in scores else "none" for name in headline]
    return [title, str(summary["scored"]), *cells]


def _headline_cell(values: dict) -> str:
    """The cell of an aggregate, with the number of values where some are missing."""
    count, missing = values["count"], values["missing"]
    return cell(values) + (f", {count} of {count + missing}" if missing and count else "")


def _floor_row(summary: dict, headline: list[str]) -> list[str]:
    """The scores of the truth against a second sampling of itself; 1 where that is exact."""
    scores = summary["scores"]
    cells = [
        cell(scores[f"floor_{name}"]) if f"floor_{name}" in scores else "1" for name in headline
    ]
    return ["floor: the truth, sampled again", str(summary["scored"]), *cells]


def details(summary: dict, title: str, scores: list[str]) -> list[str]:
    """Markdown of every score of a set.

    Where it has several categories, the means of `scores` by category follow.
    """
    lines = [f"## All scores of {title}", ""]
    lines += markdown_table(
        ["score", "pairs", "mean, 95 % interval", "median", "5 % to 95 %"],
        [[name, *_spread_cells(a)] for name, a in summary["scores"].items()],
    )
    if summary["by_category"]:
        rows = [
            [
                category or "none given",
                str(group["pairs"]),
                *("none" if group[n] is None else f"{group[n]:.3f}" for n in scores),
            ]
            for category, group in summary["by_category"].items()
        ]
        table = markdown_table(["category", "pairs", *scores], rows)
        lines += ["", "## By category", "", *table]
    return lines


def _spread_cells(values: dict) -> list[str]:
    """Cells of an aggregate: count, mean, median and percentiles."""
    spread = (
        ["none", "none"]
        if values["mean"] is None
        else [f"{values['median']:.4g}", f"{values['p5']:.4g} to {values['p95']:.4g}"]
    )
    return [str(values["count"]), cell(values, ".4g"), *spread]


def print_failures(failed: list[tuple[str, str]], out: Path) -> int:
    """Prints the first failed items with their reasons to stderr; returns the exit code."""
    for label, reason in failed[:MOST_PRINTED]:
        print(f"failed: {label}: {reason}", file=sys.stderr)
    if len(failed) > MOST_PRINTED:
        print(f"... and {len(failed) - MOST_PRINTED} more, in {out / 'rows.csv'}", file=sys.stderr)
    return 1 if failed else 0


def gain_cell(comparison: dict) -> str:
    """The share of better pairs and the mean gain of `compare_sets`, for a table."""
    return (
        "none"
        if comparison["share"] is None
        else f"{comparison['share']:.0%}, {cell(comparison['gain'])}"
    )


def draw_ranked_pairs(rows: list[dict], protocol: EvalProtocol, path: Path) -> None:
    """Writes an image of the ten worst, ten median and ten best pairs, truth beside prediction.

    They are ranked by the first headline score.
    """
    score = protocol.headline[0]
    ranked = sorted(
        (row for row in rows if row.get(score) is not None),
        key=lambda row: (row[score], row["id"]),
        reverse=is_lower_better(score),
    )
    middle = max(0, (len(ranked) - RANKED) // 2)
    parts = {
        "worst": ranked[:RANKED],
        "median": ranked[middle : middle + RANKED],
        "best": ranked[::-1][:RANKED],
    }
    sheet = []
    for line in zip(*parts.values(), strict=True):
        meshes = (
            read_pair(Pair(row["id"], Path(row["pred"]), Path(row["truth"])), protocol)
            for row in line
        )
        sheet.append(
            [
                render_preview(in_view(mesh, truth), 160)
                for pred, truth in meshes
                for mesh in (truth, pred)
            ]
        )
    titles = [title for name in parts for title in (f"{name}: truth", "prediction")]
    contact_sheet(sheet, titles).save(path)


def in_view(mesh: Mesh, truth: Mesh) -> Mesh:
    """`mesh`, moved and scaled by what makes the truth fill the image."""
    return transformed(mesh, np.linalg.inv(normalize(truth.vertices, truth.faces).to_source))
