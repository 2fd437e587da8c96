"""Tables and plots of `benchmarks/ablate.py`'s results, written into docs/ablations.md between the
marks that hold their place:

<!-- study attention --> ... <!-- end -->
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.measure import speedup_text
from benchmarks.studies import ARMS, STUDIES, Study
from tar3d.metrics.summary import markdown_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DOCUMENT, SPEEDS = Path("docs/ablations.md"), Path("benchmarks/results/cpu_2cores_arms.json")
INK, OTHER, CAPTION, GRID = "#2b6ea6", "#c44e3f", "#666666", "#dddddd"
TOKEN_HEAD = (
    "arm",
    "steps",
    "volume IoU",
    "codes used",
    "reconstruction's F-score@0.02",
    "NLL",
    "F-score@0.02",
    "against the first",
    "share of the bound",
    "picture's worth in nats a shape",
)
HEAD = (
    "arm",
    "rate",
    "M parameters",
    "GFLOP a step",
    "speed",
    "NLL",
    "against the first",
    "F-score@0.02 alone",
    "against the first",
    "F-score@0.02",
    "picture's worth",
)


def interval(values: list[float]) -> tuple[float, float]:
    """Mean and half the width of its 95 % interval by Student's t; NaN for a single value."""
    from scipy.stats import t

    mean, n = float(np.mean(values)), len(values)
    if n < 2:
        return mean, math.nan
    return mean, float(t.ppf(0.975, n - 1) * np.std(values, ddof=1) / math.sqrt(n))


def finished(runs: dict[str, dict], arm: str) -> dict[int, dict]:
    """The runs of an arm that count, by seed."""
    return {r["seed"]: r for r in runs.values() if r["arm"] == arm and not r["sweep"]}


def speeds_of(study: Study, records: list[dict]) -> dict[str, str]:
    """How many times as fast a step of each arm is as one of the study's first, in the records of
    the suite `arms`."""
    return {r["variant"]: speedup_text(r) for r in records if r["case"] == f"full/{study.name}"}


def rows_of(study: Study, runs: dict[str, dict], speeds: dict[str, str]) -> list[list[str]]:
    """A row an arm that has been run; the first one's differences are empty."""
    first, rows = finished(runs, study.arms[0]), []
    for name in study.arms:
        if mine := finished(runs, name):
            others = {} if name == study.arms[0] else first
            cells = (
                _row_of_tokens(mine, others)
                if study.has_tokenizers
                else _row(mine, others, speeds.get(name, ""))
            )
            rows.append([ARMS[name].label, *cells])
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
    """Where arms have tokenizers of their own: NLLs of other tokens cannot be compared, what is
    generated can."""
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
    """The score over the seeds, and its difference to the first arm's, seed by seed."""
    both = sorted(set(mine) & set(first))
    return (
        _plus_minus([r[score] for r in mine.values()]),
        _plus_minus([mine[s][score] - first[s][score] for s in both], signed=True) if both else "",
    )


def _plus_minus(values: list[float], signed: bool = False) -> str:
    mean, half = interval(values)
    return f"{mean:{'+' if signed else ''}.3f}" + ("" if math.isnan(half) else f" ± {half:.3f}")


def write_report(results: dict, document: Path = DOCUMENT, speeds: Path = SPEEDS) -> None:
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
                f"{document} has {found} places for the study {name}: write <!-- study {name} --> and <!-- end --> "
                "on lines of their own, once"
            )
        draw(study, results["runs"], document.parent / "ablations" / f"{name}.png")
    document.write_text(text, encoding="utf-8")


def draw(study: Study, runs: dict[str, dict], path: Path) -> None:
    """Two panels, NLL and F-score: every seed a dot, means as bars, one line an arm; and, where
    arms have rates of their own, the NLL over those that were tried."""
    from matplotlib.figure import Figure

    arms = [name for name in study.arms if finished(runs, name)]
    rates = sorted({r["rate"] for r in runs.values() if r["arm"] in arms and r["sweep"]})
    figure = Figure(figsize=(13, 0.42 * len(arms) + 1.6), layout="constrained")
    panels = figure.subplots(1, 3 if rates else 2, width_ratios=(3, 3, 2.4) if rates else (3, 3))
    made = (
        ("fscore", "F-score at 0.02")
        if study.has_tokenizers
        else ("fscore_alone", "F-score at 0.02 alone")
    )
    for axis, score, label in (
        (panels[0], "nll", "NLL, nats a token (less is better)"),
        (panels[1], made[0], f"{made[1]} (more is better)"),
    ):
        for place, name in enumerate(arms):
            values = [r[score] for r in finished(runs, name).values()]
            colour = INK if name == study.arms[0] else OTHER
            axis.plot(
                values, [place] * len(values), "o", color=colour, alpha=0.55, markersize=5, zorder=3
            )
            axis.plot(
                [np.mean(values)] * 2,
                [place - 0.32, place + 0.32],
                color=colour,
                linewidth=2.4,
                zorder=3,
            )
        axis.axvline(
            np.mean([r[score] for r in finished(runs, arms[0]).values()]),
            color=INK,
            linewidth=0.8,
            linestyle=":",
        )
        axis.set_yticks(
            range(len(arms)),
            [ARMS[name].label for name in arms] if axis is panels[0] else [""] * len(arms),
            fontsize=9,
        )
        axis.set_ylim(len(arms) - 0.5, -0.5)
        axis.set_xlabel(label, fontsize=9, color=CAPTION)
        axis.grid(color=GRID, linewidth=0.6, axis="x")
        axis.locator_params(axis="x", nbins=6)
    if rates:
        _draw_rates(panels[2], study, arms, rates, runs)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _draw_rates(
    axis: Axes, study: Study, arms: list[str], rates: list[float], runs: dict[str, dict]
) -> None:
    for name in arms:
        tried = sorted(
            (r["rate"], r["nll"]) for r in runs.values() if r["arm"] == name and r["sweep"]
        )
        if tried:
            colour = INK if name == study.arms[0] else OTHER
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
