"""Rows of scores -> summary.json, rows.csv, report.md and pictures. Runs no model."""

from __future__ import annotations

import platform
import sys
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tar3d.config import EvalProtocol, to_mapping
from tar3d.evaluation.pairs import ABOUT, Pair, read_pair
from tar3d.io import write_csv, write_json
from tar3d.mesh.load import normalize
from tar3d.mesh.render import contact_sheet, picture
from tar3d.metrics.geometry import describe, geometry_formulas, transformed
from tar3d.metrics.registry import is_lower_better
from tar3d.metrics.summary import aggregate, cell, histograms, markdown_table

if TYPE_CHECKING:
    from tar3d.contracts import Mesh

LIBRARIES = ("numpy", "scipy", "trimesh", "libigl")
RANKED = 10  # pairs in each part of the ranked picture
SAID = 10  # failures that are printed; a report has them all


def versions() -> dict[str, str]:
    return {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}}


def score_names(rows: list[dict]) -> list[str]:
    """Names of the numeric columns, in the order in which rows have them."""
    return list(dict.fromkeys(name for row in rows for name in row if name not in ABOUT))


def summarise(rows: list[dict], seed: int) -> dict:
    """Aggregates of all scores over the pairs that have them, means by category, and what
    failed."""
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
    """Pair by pair: over how many ids both have the score, the share in which `ours` is better, and
    the mean gain."""
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


def write_report(
    out: Path,
    sets: dict[str, list[dict]],
    protocol: EvalProtocol,
    about: dict,
    *,
    titles: dict[str, str] | None = None,
    extra: list[str] | None = None,
) -> str:
    """Writes everything for named sets of rows (the first one is what is evaluated) and returns the
    Markdown text.

    `about` goes into summary.json as it is (command, machine, alignment, ...); `extra` are further
    Markdown lines.
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
    write_rows(out / "rows.csv", sets, [*ABOUT, *names])
    text = "\n".join(
        [
            *_markdown(summaries, comparisons, protocol, titles or {}),
            *(extra or []),
            "",
            "## Protocol",
            "",
            "```",
            describe(protocol),
            "```",
            "",
            *(f"{name}: {value}  " for name, value in about.items()),
            "",
        ]
    )
    (out / "report.md").write_text(text, encoding="utf-8")
    good = [row for row in sets[main] if row["status"] == "ok"]
    if good:
        histograms(
            {
                score: [row[score] for row in good if row.get(score) is not None]
                for score in protocol.headline
            },
            out / "histogram.png",
        )
        ranked_pictures(good, protocol, out / "ranked.png")
    return text


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
        lines += [
            f"{titles.get(name, name)}: {summary['scored']} of {summary['pairs']} pairs scored.  "
        ]
        lines += [f"- failed: {f['id']}: {f['reason']}" for f in summary["failed"]]
    rows = [
        [
            titles.get(name, name),
            str(s["scored"]),
            *(cell(s["scores"][h]) if h in s["scores"] else "none" for h in headline),
        ]
        for name, s in summaries.items()
    ]
    if f"floor_{headline[0]}" in first["scores"]:
        rows.append(
            [
                "floor: the truth, sampled again",
                str(first["scored"]),
                *(
                    cell(first["scores"][f"floor_{h}"]) if f"floor_{h}" in first["scores"] else "1"
                    for h in headline
                ),
            ]
        )
    lines += [
        "",
        "Mean and 95 % bootstrap interval over pairs.",
        "",
        *markdown_table(["", "pairs", *headline], rows),
        "",
    ]
    if comparisons:
        lines += [
            f"Share of pairs in which {titles.get(main, main)} is better, and mean gain (positive is better).",
            "",
        ]
        lines += markdown_table(
            ["than", *protocol.headline],
            [
                [titles.get(other, other), *map(gain_cell, scores.values())]
                for other, scores in comparisons.items()
            ],
        )
        lines.append("")
    return lines + details(
        first, titles.get(main, main), [name for name in headline if name in first["scores"]]
    )


def details(summary: dict, title: str, shown: list[str]) -> list[str]:
    """Markdown of every score of a set, and of the scores `shown` by category where there are
    several."""
    lines = [f"## All scores of {title}", ""]
    lines += markdown_table(
        ["score", "pairs", "mean, 95 % interval", "median", "5 % to 95 %"],
        [
            [
                name,
                str(a["count"]),
                cell(a, ".4g"),
                *(
                    ("none", "none")
                    if a["mean"] is None
                    else (f"{a['median']:.4g}", f"{a['p5']:.4g} to {a['p95']:.4g}")
                ),
            ]
            for name, a in summary["scores"].items()
        ],
    )
    if summary["by_category"]:
        lines += [
            "",
            "## By category",
            "",
            *markdown_table(
                ["category", "pairs", *shown],
                [
                    [
                        category or "none given",
                        str(group["pairs"]),
                        *("none" if group[n] is None else f"{group[n]:.3f}" for n in shown),
                    ]
                    for category, group in summary["by_category"].items()
                ],
            ),
        ]
    return lines


def print_failures(failed: list[tuple[str, str]], out: Path) -> int:
    """Prints the first of the failed items and their reasons to stderr; returns the exit status."""
    for label, reason in failed[:SAID]:
        print(f"failed: {label}: {reason}", file=sys.stderr)
    if len(failed) > SAID:
        print(f"... and {len(failed) - SAID} more, in {out / 'rows.csv'}", file=sys.stderr)
    return 1 if failed else 0


def gain_cell(comparison: dict) -> str:
    return (
        "none"
        if comparison["share"] is None
        else f"{comparison['share']:.0%}, {cell(comparison['gain'])}"
    )


def ranked_pictures(rows: list[dict], protocol: EvalProtocol, path: Path) -> None:
    """The ten worst, ten median and ten best pairs by the first headline score, truth beside
    prediction."""
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
            [picture(in_view(mesh, truth), 160) for pred, truth in meshes for mesh in (truth, pred)]
        )
    contact_sheet(
        sheet, [title for name in parts for title in (f"{name}: truth", "prediction")]
    ).save(path)


def in_view(mesh: Mesh, truth: Mesh) -> Mesh:
    """`mesh` moved and scaled with the truth so that the truth fills the picture."""
    return transformed(mesh, np.linalg.inv(normalize(truth.vertices, truth.faces).to_source))
