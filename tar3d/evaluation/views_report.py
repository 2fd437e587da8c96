"""Rows of 2D scores -> summary.json, rows.csv, report.md and a contact sheet. Runs no network."""

from __future__ import annotations

from collections import Counter
from importlib.metadata import version
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from tar3d.evaluation.pairs import ABOUT, Pair
from tar3d.evaluation.report import (
    compare_sets,
    details,
    gain_cell,
    score_names,
    summarise,
    versions,
    write_rows,
)
from tar3d.evaluation.views import (
    CLIP_SCORES,
    FOREGROUNDS,
    NO_CLIP,
    SET_SCORES,
    TEXT_SCORES,
    Source,
)
from tar3d.io import write_json
from tar3d.mesh.render import contact_sheet
from tar3d.metrics.images import PIXEL_METRICS, PSNR_CAP
from tar3d.metrics.perceptual import LPIPS_METRICS
from tar3d.metrics.registry import image_formulas
from tar3d.metrics.summary import cell, markdown_table

if TYPE_CHECKING:
    from pathlib import Path

LIBRARIES = ("scikit-image", "pillow", "embreex", "torch", "transformers")
KINDS = tuple(f"{name}{end}" for name in (*PIXEL_METRICS, *LPIPS_METRICS) for end in ("", "_fg"))
INFO = ("pictures", "foreground")  # further columns of a row that are no scores
SHEET_ROWS, SHEET_SIZE = 8, 160


def write_report(
    out: Path,
    sets: dict[str, list[dict]],
    set_scores: dict[str, dict],
    maps: tuple[str, ...],
    seed: int,
    settings: dict,
    about: dict,
    *,
    left_out: list[dict],
    titles: dict[str, str],
) -> str:
    """Writes summary.json, rows.csv and report.md for named sets of rows (the first one is what is
    evaluated); returns the Markdown text.

    `settings`, `about` and `left_out` (the scores and the reason of each) go into summary.json as
    they are; `seed` is that of the bootstrap; `titles` of sets are by name.
    """
    titles = {name: titles.get(name, name) for name in sets}
    summaries = {
        name: summarise([_scores_only(row) for row in rows], seed) for name, rows in sets.items()
    }
    for name, rows in sets.items():
        told_by = Counter(row["foreground"] for row in rows if row["status"] == "ok")
        summaries[name] |= {"set_scores": set_scores[name], "foreground": dict(told_by)}
    main = next(iter(sets))
    compared = (*_headline(maps), CLIP_SCORES[0])
    comparisons = {
        other: {score: compare_sets(sets[main], rows, score, seed) for score in compared}
        for other, rows in sets.items()
        if other != main
    }
    all_versions = versions() | {name: version(name) for name in LIBRARIES}
    out.mkdir(parents=True, exist_ok=True)
    write_json(
        out / "summary.json",
        {
            **about,
            "settings": settings,
            "left_out": left_out,
            "versions": all_versions,
            "formulas": image_formulas(),
            "foregrounds": FOREGROUNDS,
            "sets": summaries,
            "comparisons": comparisons,
        },
    )
    names = score_names([_scores_only(row) for rows in sets.values() for row in rows])
    write_rows(out / "rows.csv", sets, [*ABOUT, *INFO, *names])
    lines = _markdown(summaries, comparisons, maps, titles, left_out)
    lines += [
        "",
        "## What was measured",
        "",
        *(f"- {key}: {_plain(value)}" for key, value in settings.items()),
        *(f"- foreground: {FOREGROUNDS[k]}" for k in _used(summaries)),
        "",
        *(f"{name} = {formula}  " for name, formula in image_formulas().items()),
        "",
        *(
            f"{key}: {_plain(value)}  "
            for key, value in {**about, "versions": all_versions}.items()
        ),
    ]
    text = "\n".join(lines) + "\n"
    (out / "report.md").write_text(text, encoding="utf-8")
    return text


def _scores_only(row: dict) -> dict:
    return {k: v for k, v in row.items() if k not in INFO}


def _headline(maps: tuple[str, ...]) -> list[str]:
    return [f"{name}_{kind}" for name in maps for kind in KINDS if kind.endswith("_fg")]


def _used(summaries: dict) -> list[str]:
    named = {
        kind for s in summaries.values() for value in s["foreground"] for kind in value.split("+")
    }
    return [kind for kind in FOREGROUNDS if kind in named]


def _plain(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {v}" for k, v in value.items())
    return "none" if value is None else str(value)


def _cell(summary: dict, score: str) -> str:
    if score not in summary["scores"]:
        return "none"
    return cell(summary["scores"][score], ".2f" if "psnr" in score else ".3f")


def _markdown(
    summaries: dict,
    comparisons: dict,
    maps: tuple[str, ...],
    titles: dict[str, str],
    left_out: list[dict],
) -> list[str]:
    main, first = next(iter(summaries.items()))
    lines = ["# Pictures against the truth", ""]
    for name, summary in summaries.items():
        lines += [
            f"{titles[name]}: {summary['scored']} of {summary['pairs']} pairs scored, "
            f"{summary['set_scores']['pictures']} pictures on either side.  "
        ]
        lines += [f"- failed: {f['id']}: {f['reason']}" for f in summary["failed"]]
    lines += [f"- left out: {', '.join(item['scores'])}: {item['reason']}" for item in left_out]
    lines += [
        "",
        "Mean over pairs (a pair is the mean of its pictures) and 95 % bootstrap interval. `_fg`: over the foreground.",
    ]
    for name in maps:
        scores = [f"{name}_{kind}" for kind in KINDS]
        lines += [
            "",
            f"## {name.capitalize()}",
            "",
            *markdown_table(
                ["", "pairs", *KINDS],
                [
                    [titles[key], str(s["scored"]), *(_cell(s, score) for score in scores)]
                    for key, s in summaries.items()
                ],
            ),
        ]
    lines += [
        "",
        f"The truth itself scores PSNR {PSNR_CAP:g} (the cap), SSIM 1, LPIPS 0 and CLIP 1.",
        "",
        "## CLIP",
        "",
    ]
    scores = [score for score in (*CLIP_SCORES, *TEXT_SCORES) if score in first["scores"]] or list(
        CLIP_SCORES
    )
    lines += markdown_table(
        ["", *scores, *SET_SCORES, "pictures", "reference pictures"],
        [
            [
                titles[key],
                *(_cell(s, score) for score in scores),
                *(
                    "none" if s["set_scores"][score] is None else f"{s['set_scores'][score]:.4g}"
                    for score in SET_SCORES
                ),
                str(s["set_scores"]["pictures"]),
                str(s["set_scores"]["reference_pictures"]),
            ]
            for key, s in summaries.items()
        ],
    )
    lines += [
        f"- no {score} of {titles[key]}: {reason}"
        for key, s in summaries.items()
        for score, reason in s["set_scores"]["reasons"].items()
        if reason != NO_CLIP
    ]  # that one is said above
    if comparisons:
        shown = [
            score
            for score in next(iter(comparisons.values()))
            if any(by[score]["share"] is not None for by in comparisons.values())
        ]
        lines += [
            "",
            f"Share of pairs in which {titles[main]} is better than the other, and mean gain (positive is better).",
            "",
        ]
        lines += markdown_table(
            ["than the", *shown],
            [
                [titles[other], *(gain_cell(by[score]) for score in shown)]
                for other, by in comparisons.items()
            ],
        )
    shown = [
        name
        for name in _headline(maps)
        if any(g.get(name) is not None for g in first["by_category"].values())
    ]
    return [*lines, "", *details(first, titles[main], shown)]


def picture_sheet(rows: list[dict], pairs: list[Pair], source: Source) -> Image.Image | None:
    """The first picture of up to SHEET_ROWS pairs, from the worst to the best by foreground PSNR:
    truth beside prediction for each map. None when no pair was scored."""
    score = f"{source.maps[0]}_psnr_fg"
    ranked = sorted(
        (row for row in rows if row["status"] == "ok"), key=lambda row: (row[score], row["id"])
    )
    if not ranked:
        return None
    chosen = sorted(
        {int(k) for k in np.linspace(0, len(ranked) - 1, min(SHEET_ROWS, len(ranked))).round()}
    )
    by_id = {pair.id: pair for pair in pairs}
    sheet = []
    for k in chosen:
        pair = by_id[ranked[k]["id"]]
        truth, pred = source.truth(pair)[0], source.prediction(pair)[0]
        sheet.append(
            [
                _thumbnail(x.maps[name], source.background)
                for name in source.maps
                for x in (truth, pred)
            ]
        )
    return contact_sheet(
        sheet, [title for name in source.maps for title in (f"{name}: truth", "prediction")]
    )


def _thumbnail(picture: np.ndarray, background: tuple[int, int, int]) -> np.ndarray:
    """(H, W, 3) -> (SHEET_SIZE, SHEET_SIZE, 3), whole and undistorted."""
    image = Image.fromarray(picture)
    scale = SHEET_SIZE / max(image.size)
    image = image.resize(
        tuple(max(1, round(length * scale)) for length in image.size), Image.Resampling.BICUBIC
    )
    square = Image.new("RGB", (SHEET_SIZE, SHEET_SIZE), background)
    square.paste(image, ((SHEET_SIZE - image.width) // 2, (SHEET_SIZE - image.height) // 2))
    return np.array(square)
