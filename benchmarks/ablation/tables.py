"""Writes tables and plots of `benchmarks/ablate.py`'s results into docs/ablations.md.

A table stands between the marks that hold its place:

<!-- study attention --> ... <!-- end -->
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.ablation.variants import STUDIES, VARIANTS, AblationStudy
from benchmarks.common import speedup_text
from tar3d.metrics.summary import markdown_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DOCUMENT, SPEEDS = Path("docs/ablations.md"), Path("benchmarks/results/cpu_2cores_arms.json")
INK, OTHER, CAPTION, GRID = "#2b6ea6", "#c44e3f", "#666666", "#dddddd"
TOKEN_HEAD = (
    "variant",
    "steps",
    "volume IoU",
    "codes used",
    "reconstruction's F-score@0.02",
    "NLL",
    "F-score@0.02",
    "against the first",
    "share of the bound",
    "image's worth in nats a shape",
)
HEAD = (
    "variant",
    "rate",
    "M parameters",
    "GFLOP a step",
    "speed",
    "NLL",
    "against the first",
    "F-score@0.02 alone",
    "against the first",
    "F-score@0.02",
    "image's worth",
)


def interval(values: list[float]) -> tuple[float, float]:
    """Mean and half the width of its 95 % interval by Student's t; NaN for a single value."""
    from scipy.stats import t

    mean, n = float(np.mean(values)), len(values)
    if n < 2:
        return mean, math.nan
    return mean, float(t.ppf(0.975, n - 1) * np.std(values, ddof=1) / math.sqrt(n))


def finished(runs: dict[str, dict], variant: str) -> dict[int, dict]:
    """The runs of a variant that count, by seed."""
    return {r["seed"]: r for r in runs.values() if r["arm"] == variant and not r["sweep"]}


def speeds_of(study: AblationStudy, records: list[dict]) -> dict[str, str]:
    """The speed of a step of each variant, relative to the study's first variant.

    `records` are those of the suite step_times.
    """
    return {r["variant"]: speedup_text(r) for r in records if r["case"] == f"full/{study.name}"}


def rows_of(study: AblationStudy, runs: dict[str, dict], speeds: dict[str, str]) -> list[list[str]]:
    """A row for each variant that has been run; the first one's differences are empty."""
    first, rows = finished(runs, study.variants[0]), []
    for name in study.variants:
        if mine := finished(runs, name):
            others = {} if name == study.variants[0] else first
            cells = (
                _row_of_tokens(mine, others)
                if study.has_tokenizers
                else _row(mine, others, speeds.get(name, ""))
            )
            rows.append([VARIANTS[name].label, *cells])
    return rows


def _row(mine: dict[int, dict], first: dict[int, dict], speed: str) -> list[str]:
    one = next(iter(mine.values()))
    return [
        f"{one['rate']:g}",
        f"{one['million_parameters']:.2f}",
        f"{one['gflop_a_step']:.1f}",
        speed,
        *_compared("nll", mine, first),
        *_compared("fscore_alone", mine, first),
        _plus_minus([r["fscore"] for r in mine.values()]),
        _plus_minus([r["nll_shuffled"] - r["nll"] for r in mine.values()]),
    ]


def _row_of_tokens(mine: dict[int, dict], first: dict[int, dict]) -> list[str]:
    """Cells where variants have tokenizers of their own.

    NLLs of other tokens cannot be compared; what is generated can.
    """
    one = next(iter(mine.values()))
    return [
        f"{one['steps']:,}",
        f"{one['tokenizer']['iou_volume']:.3f}",
        f"{one['tokenizer']['codebook_usage']:.0%}",
        f"{one['reconstruction']:.3f}",
        _plus_minus([r["nll"] for r in mine.values()]),
        *_compared("fscore", mine, first),
        _plus_minus([r["fscore"] / r["reconstruction"] for r in mine.values()]),
        _plus_minus([one["tokens"] * (r["nll_shuffled"] - r["nll"]) for r in mine.values()]),
    ]


def _compared(score: str, mine: dict[int, dict], first: dict[int, dict]) -> tuple[str, str]:
    """The score over the seeds, and its difference to the first variant's, seed by seed."""
    both = sorted(set(mine) & set(first))
    return (
        _plus_minus([r[score] for r in mine.values()]),
        _plus_minus([mine[s][score] - first[s][score] for s in both], signed=True) if both else "",
    )


def _plus_minus(values: list[float], signed: bool = False) -> str:
    mean, half = interval(values)
    return f"{mean:{'+' if signed else ''}.3f}" + ("" if math.isnan(half) else f" ± {half:.3f}")


def write_tables(results: dict, document: Path = DOCUMENT, speeds: Path = SPEEDS) -> None:
    """Brings every table of `document` up to date, and the plots beside it."""
    text = document.read_text(encoding="utf-8")
    timed = json.loads(speeds.read_text(encoding="utf-8"))["cases"] if speeds.is_file() else []
    for name, study in STUDIES.items():
        rows = rows_of(study, results["runs"], speeds_of(study, timed))
        if len(rows) < 2:  # nothing to compare
            continue
        head = TOKEN_HEAD if study.has_tokenizers else HEAD
        block = "\n".join(
            [*markdown_table(head, rows), "", f"![{study.title}](ablations/{name}.png)"]
        )
        text, found = re.subn(
            rf"(<!-- study {name} -->\n).*?(<!-- end -->)",
            lambda m, b=block: f"{m[1]}{b}\n{m[2]}",
            text,
            flags=re.DOTALL,
        )
        if found != 1:
            raise ValueError(
                f"{document} has {found} places for the study {name}: write <!-- study {name} --> "
                "and <!-- end --> on lines of their own, once"
            )
        draw(study, results["runs"], document.parent / "ablations" / f"{name}.png")
    document.write_text(text, encoding="utf-8")


def draw(study: AblationStudy, runs: dict[str, dict], path: Path) -> None:
    """Two panels, NLL and F-score: every seed a dot, means as bars, one line a variant.

    Where variants have rates of their own, a third panel has the NLL over those that were tried.
    """
    from matplotlib.figure import Figure

    names = [name for name in study.variants if finished(runs, name)]
    rates = sorted({r["rate"] for r in runs.values() if r["arm"] in names and r["sweep"]})
    figure = Figure(figsize=(13, 0.42 * len(names) + 1.6), layout="constrained")
    panels = figure.subplots(1, 3 if rates else 2, width_ratios=(3, 3, 2.4) if rates else (3, 3))
    score, label = "fscore_alone", "F-score at 0.02 alone"
    if study.has_tokenizers:
        score, label = "fscore", "F-score at 0.02"
    _draw_scores(panels[0], names, runs, "nll", "NLL, nats a token (less is better)")
    _draw_scores(panels[1], names, runs, score, f"{label} (more is better)")
    for axis, labels in (
        (panels[0], [VARIANTS[name].label for name in names]),
        (panels[1], [""] * len(names)),
    ):
        axis.set_yticks(range(len(names)), labels, fontsize=9)
    if rates:
        _draw_rates(panels[2], names, rates, runs)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _draw_scores(
    axis: Axes, names: list[str], runs: dict[str, dict], score: str, label: str
) -> None:
    for place, name in enumerate(names):
        values = [r[score] for r in finished(runs, name).values()]
        colour = INK if place == 0 else OTHER
        axis.plot(
            values, [place] * len(values), "o", color=colour, alpha=0.55, markersize=5, zorder=3
        )
        height = [place - 0.32, place + 0.32]
        axis.plot([np.mean(values)] * 2, height, color=colour, linewidth=2.4, zorder=3)
    baseline = np.mean([r[score] for r in finished(runs, names[0]).values()])
    axis.axvline(baseline, color=INK, linewidth=0.8, linestyle=":")
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.set_xlabel(label, fontsize=9, color=CAPTION)
    axis.grid(color=GRID, linewidth=0.6, axis="x")
    axis.locator_params(axis="x", nbins=6)


def _draw_rates(axis: Axes, names: list[str], rates: list[float], runs: dict[str, dict]) -> None:
    for place, name in enumerate(names):
        tried = sorted(
            (r["rate"], r["nll"]) for r in runs.values() if r["arm"] == name and r["sweep"]
        )
        if tried:
            colour = INK if place == 0 else OTHER
            axis.plot(*zip(*tried, strict=True), marker=".", linewidth=1.2, alpha=0.9, color=colour)
            axis.annotate(
                name,
                tried[-1],
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
                color=colour,
            )
    axis.set_xscale("log")
    axis.margins(x=0.2)
    axis.set_xticks(rates, [f"{rate:g}" for rate in rates], fontsize=8)
    axis.minorticks_off()
    axis.set_xlabel("learning rate tried (half the steps): NLL", fontsize=9, color=CAPTION)
    axis.grid(color=GRID, linewidth=0.6)
