"""Rows of 2D scores -> summary.json, rows.csv, report.md and a contact sheet. Runs no network."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from tar3d.evaluation.image_pairs import FOREGROUNDS, ImageProvider
from tar3d.evaluation.image_scores import (
    CLIP_SCORES,
    NO_CLIP,
    SET_SCORES,
    TEXT_SCORES,
    Omission,
)
from tar3d.evaluation.mesh_pairs import PAIR_COLUMNS, Pair
from tar3d.evaluation.mesh_report import (
    compare_sets,
    details,
    gain_cell,
    score_names,
    summarise,
    versions,
    write_rows,
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
# Scores of each map.
MAP_SCORES = tuple(
    f"{name}{end}" for name in (*PIXEL_METRICS, *LPIPS_METRICS) for end in ("", "_fg")
)
IMAGE_COLUMNS = ("pictures", "foreground")  # further columns of a row that are no scores
SHEET_ROWS, SHEET_SIZE = 8, 160


@dataclass(frozen=True)
class ImageScores:
    """The scores that an image report is made from.

    `rows` and `set_scores` are by set, the first set being the one that is evaluated; `titles` are
    the sets' names for readers, `maps` those of the images, `seed` is that of the bootstrap.
    """

    rows: dict[str, list[dict]]
    set_scores: dict[str, dict]
    titles: dict[str, str]
    maps: tuple[str, ...]
    seed: int
    omissions: list[Omission]


def write_image_report(out: Path, scores: ImageScores, settings: dict, about: dict) -> str:
    """Writes summary.json, rows.csv and report.md, and returns the Markdown text.

    `settings` and `about` go into summary.json as they are.
    """
    summaries = {name: _summarise_set(name, scores) for name in scores.rows}
    comparisons = _compare(scores)
    about_versions = versions() | {name: version(name) for name in LIBRARIES}
    out.mkdir(parents=True, exist_ok=True)
    write_json(
        out / "summary.json",
        {
            **about,
            "settings": settings,
            "left_out": [asdict(omission) for omission in scores.omissions],
            "versions": about_versions,
            "formulas": image_formulas(),
            "foregrounds": FOREGROUNDS,
            "sets": summaries,
            "comparisons": comparisons,
        },
    )
    names = score_names([_scores_only(row) for rows in scores.rows.values() for row in rows])
    write_rows(out / "rows.csv", scores.rows, [*PAIR_COLUMNS, *IMAGE_COLUMNS, *names])
    lines = [
        *_markdown(summaries, comparisons, scores),
        *["", "## What was measured", ""],
        *(f"- {key}: {_plain(value)}" for key, value in settings.items()),
        *(f"- foreground: {FOREGROUNDS[k]}" for k in _foregrounds_of(summaries)),
        "",
        *(f"{name} = {formula}  " for name, formula in image_formulas().items()),
        "",
        *(f"{key}: {_plain(value)}  " for key, value in about.items()),
        f"versions: {_plain(about_versions)}  ",
    ]
    text = "\n".join(lines) + "\n"
    (out / "report.md").write_text(text, encoding="utf-8")
    return text


def _summarise_set(name: str, scores: ImageScores) -> dict:
    rows = scores.rows[name]
    foregrounds = Counter(row["foreground"] for row in rows if row["status"] == "ok")
    return {
        **summarise([_scores_only(row) for row in rows], scores.seed),
        "set_scores": scores.set_scores[name],
        "foreground": dict(foregrounds),
    }


def _compare(scores: ImageScores) -> dict[str, dict]:
    """The first set against each of the others."""
    main, *others = scores.rows
    return {
        other: {
            score: compare_sets(scores.rows[main], scores.rows[other], score, scores.seed)
            for score in (*_headline(scores.maps), CLIP_SCORES[0])
        }
        for other in others
    }


def _scores_only(row: dict) -> dict:
    return {k: v for k, v in row.items() if k not in IMAGE_COLUMNS}


def _headline(maps: tuple[str, ...]) -> list[str]:
    return [f"{name}_{score}" for name in maps for score in MAP_SCORES if score.endswith("_fg")]


def _foregrounds_of(summaries: dict) -> list[str]:
    """The keys of FOREGROUNDS that some pair's foreground was found by."""
    found = {
        key for s in summaries.values() for value in s["foreground"] for key in value.split("+")
    }
    return [key for key in FOREGROUNDS if key in found]


def _plain(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {v}" for k, v in value.items())
    return "none" if value is None else str(value)


def _cell(summary: dict, score: str) -> str:
    if score not in summary["scores"]:
        return "none"
    return cell(summary["scores"][score], ".2f" if "psnr" in score else ".3f")


def _markdown(summaries: dict, comparisons: dict, scores: ImageScores) -> list[str]:
    main, first = next(iter(summaries.items()))
    titles = {name: scores.titles.get(name, name) for name in summaries}
    lines = [
        *_counts(summaries, titles, scores.omissions),
        *_map_tables(summaries, titles, scores.maps),
        *_clip_table(summaries, titles),
    ]
    if comparisons:
        lines += _comparison_table(comparisons, titles, titles[main])
    by_category = [
        name
        for name in _headline(scores.maps)
        if any(group.get(name) is not None for group in first["by_category"].values())
    ]
    return [*lines, "", *details(first, titles[main], by_category)]


def _counts(summaries: dict, titles: dict[str, str], omissions: list[Omission]) -> list[str]:
    """The heading, and what was scored, failed and left out."""
    lines = ["# Images against the truth", ""]
    for name, summary in summaries.items():
        lines.append(
            f"{titles[name]}: {summary['scored']} of {summary['pairs']} pairs scored, "
            f"{summary['set_scores']['pictures']} images on either side.  "
        )
        lines += [f"- failed: {f['id']}: {f['reason']}" for f in summary["failed"]]
    lines += [f"- left out: {', '.join(item.scores)}: {item.reason}" for item in omissions]
    return [
        *lines,
        "",
        "Mean over pairs (a pair is the mean of its images) and 95 % interval (bootstrap). "
        "`_fg`: over the foreground.",
    ]


def _map_tables(summaries: dict, titles: dict[str, str], maps: tuple[str, ...]) -> list[str]:
    lines: list[str] = []
    for name in maps:
        rows = [
            [titles[key], str(s["scored"]), *(_cell(s, f"{name}_{score}") for score in MAP_SCORES)]
            for key, s in summaries.items()
        ]
        table = markdown_table(["", "pairs", *MAP_SCORES], rows)
        lines += ["", f"## {name.capitalize()}", "", *table]
    bound = f"The truth itself scores PSNR {PSNR_CAP:g} (the cap), SSIM 1, LPIPS 0 and CLIP 1."
    return [*lines, "", bound]


def _clip_table(summaries: dict, titles: dict[str, str]) -> list[str]:
    first = next(iter(summaries.values()))
    scores = [score for score in (*CLIP_SCORES, *TEXT_SCORES) if score in first["scores"]]
    scores = scores or list(CLIP_SCORES)
    rows = [
        [titles[key], *(_cell(s, score) for score in scores), *_set_cells(s["set_scores"])]
        for key, s in summaries.items()
    ]
    reasons = [
        f"- no {score} of {titles[key]}: {reason}"
        for key, s in summaries.items()
        for score, reason in s["set_scores"]["reasons"].items()
        if reason != NO_CLIP  # already reported above
    ]
    head = ["", *scores, *SET_SCORES, "images", "reference images"]
    return ["", "## CLIP", "", *markdown_table(head, rows), *reasons]


def _set_cells(set_scores: dict) -> list[str]:
    values = [set_scores[name] for name in SET_SCORES]
    return [
        *("none" if value is None else f"{value:.4g}" for value in values),
        str(set_scores["pictures"]),
        str(set_scores["reference_pictures"]),
    ]


def _comparison_table(comparisons: dict, titles: dict[str, str], main: str) -> list[str]:
    scores = [
        score
        for score in next(iter(comparisons.values()))
        if any(by_score[score]["share"] is not None for by_score in comparisons.values())
    ]
    rows = [
        [titles[other], *(gain_cell(by_score[score]) for score in scores)]
        for other, by_score in comparisons.items()
    ]
    return [
        "",
        f"Share of pairs in which {main} is better than the other, and mean gain "
        "(positive is better).",
        "",
        *markdown_table(["than the", *scores], rows),
    ]


def draw_image_sheet(
    rows: list[dict], pairs: list[Pair], provider: ImageProvider
) -> Image.Image | None:
    """The first image of up to SHEET_ROWS pairs, truth beside prediction for each map.

    They go from the worst to the best by foreground PSNR. None when no pair was scored.
    """
    score = f"{provider.maps[0]}_psnr_fg"
    ranked = sorted(
        (row for row in rows if row["status"] == "ok"), key=lambda row: (row[score], row["id"])
    )
    if not ranked:
        return None
    places = np.linspace(0, len(ranked) - 1, min(SHEET_ROWS, len(ranked))).round()
    by_id = {pair.id: pair for pair in pairs}
    sheet = []
    for k in sorted({int(place) for place in places}):
        pair = by_id[ranked[k]["id"]]
        truth, pred = provider.truth(pair)[0], provider.prediction(pair)[0]
        sheet.append(
            [
                _thumbnail(image.maps[name], provider.background)
                for name in provider.maps
                for image in (truth, pred)
            ]
        )
    titles = [title for name in provider.maps for title in (f"{name}: truth", "prediction")]
    return contact_sheet(sheet, titles)


def _thumbnail(pixels: np.ndarray, background: tuple[int, int, int]) -> np.ndarray:
    """(H, W, 3) -> (SHEET_SIZE, SHEET_SIZE, 3), whole and undistorted."""
    image = Image.fromarray(pixels)
    scale = SHEET_SIZE / max(image.size)
    width, height = (max(1, round(length * scale)) for length in image.size)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    square = Image.new("RGB", (SHEET_SIZE, SHEET_SIZE), background)
    square.paste(image, ((SHEET_SIZE - image.width) // 2, (SHEET_SIZE - image.height) // 2))
    return np.array(square)
