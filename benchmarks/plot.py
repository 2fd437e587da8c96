"""Draws how cost grows, from the JSON of the suites.

    python -m benchmarks.plot DECODE.json --out docs/decode_growth.png
    python -m benchmarks.plot TOKENIZER.json TRAIN.json EXTRACT.json --out docs/growth.png

The figure of the suite decode has milliseconds a token over the number of tokens, the batch and the
size of the GPT, for full attention, the hybrid and linear attention; thin lines are the least times
that this machine's memory and arithmetic allow. The figure of the suites tokenizer, train and
extract, as many as are given, has seconds, and below them the peak memory of the process, over
surface points, the grid side R, the size of the GPT, and the cells of an extraction.
"""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.run import suite_name
from tar3d.runtime import command, command_parser

if TYPE_CHECKING:
    from collections.abc import Callable

STYLES = {
    "F": ("full attention", "#c44e3f", "s"),
    "LLLF": ("hybrid 3:1", "#2b6ea6", "o"),
    "L": ("linear attention", "#4f9d69", "^"),
}
INK, CAPTION, GRID = "#2b2b2b", "#666666", "#dddddd"
LIMIT = {"linewidth": 1.1, "linestyle": (0, (2, 2))}
MODEL, TOKENS, BATCH = "GPT-B", 3072, 1  # the values of two of the three while the third grows


def draw_decoding(report: dict, out: Path) -> None:
    """Milliseconds a token, three panels."""
    plt = _pyplot()
    from matplotlib.lines import Line2D

    records = [r for r in report["cases"] if "/growth_" in r["case"] and "settings" in r]
    if not records:
        raise ValueError(
            "there is no case growth_* in it: run python -m benchmarks.run --suite decode "
            "--only growth --out ..."
        )
    figure, axes = plt.subplots(1, 3, figsize=(12, 4.6), sharey=True, layout="constrained")
    panels: tuple[tuple[str, str, str, Callable[[dict], bool]], ...] = (
        (
            "tokens",
            "tokens T",
            f"{MODEL}, batch {BATCH}",
            lambda s: s["model"] == MODEL and s["batch"] == BATCH,
        ),
        (
            "batch",
            "shapes decoded together",
            f"{MODEL}, T {TOKENS:,}",
            lambda s: s["model"] == MODEL and s["tokens"] == TOKENS,
        ),
        (
            "model",
            "size of the GPT",
            f"T {TOKENS:,}, batch {BATCH}",
            lambda s: s["tokens"] == TOKENS and s["batch"] == BATCH,
        ),
    )
    for axis, (key, label, title, is_shown) in zip(axes, panels, strict=True):
        _draw_panel(axis, [r for r in records if is_shown(r["settings"])], key)
        axis.set_xlabel(label)
        axis.set_title(title, fontsize=10, color=CAPTION)
    axes[0].set_ylabel("ms a token")
    handles = [
        *axes[0].get_legend_handles_labels()[0],
        Line2D([], [], color=CAPTION, label="this machine's limit", **LIMIT),
    ]
    figure.legend(
        handles=handles, loc="outside upper center", ncols=len(handles), frameon=False, fontsize=11
    )
    figure.supxlabel(
        f"The last tokens of a sequence, guidance on, random weights, {records[0]['dtype']}. "
        f"{_origin(report)}",
        fontsize=8.5,
        color=CAPTION,
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=150)
    plt.close(figure)


def _draw_panel(axis, records: list[dict], key: str) -> None:
    """One curve a pattern over the setting `key`.

    Sizes of GPTs stand at their numbers of parameters.
    """

    def place(settings: dict) -> float:
        return settings[key] if key != "model" else parameters[settings["model"]]

    # A linear layer has one more gate: the same size is a little larger there, but stands at one
    # place.
    parameters = {
        r["settings"]["model"]: r["settings"]["million_parameters"]
        for r in records
        if r["variant"] == "LLLF"
    }
    for pattern, (name, colour, marker) in STYLES.items():
        curve = sorted(
            (place(r["settings"]), r["ms_per_item"], 1000 * r["roofline_seconds"] / r["items"])
            for r in records
            if r["variant"] == pattern
        )
        if not curve:
            continue
        x, measured, least = zip(*curve, strict=True)
        axis.plot(x, measured, color=colour, marker=marker, markersize=6, linewidth=2, label=name)
        axis.plot(x, least, color=colour, **LIMIT)
    _log_axes(axis)
    ticks = dict(sorted((place(r["settings"]), r["settings"][key]) for r in records))
    axis.set_xticks(
        list(ticks),
        [f"{t}\n{x:.0f} M" if isinstance(t, str) else f"{t:,}" for x, t in ticks.items()],
    )
    _finish_axis(axis)


@dataclass(frozen=True)
class Curve:
    """A curve of one panel: the setting on its x axis, and its cases.

    `time` and `memory` are patterns of the whole names of cases.
    """

    label: str
    time: str
    memory: str
    x: str
    variant: str = ""  # of the cases of `time`
    colour: str = "#2b6ea6"
    marker: str = "o"


PLANE_POOL = {"variant": "plane_pool", "colour": "#2b6ea6", "marker": "o"}
CROSS = {"variant": "cross_attention", "colour": "#c44e3f", "marker": "s"}
# suite, title, label of x, curves
PANELS: tuple[tuple[str, str, str, tuple[Curve, ...]], ...] = (
    (
        "tokenizer",
        "tokenizer's encoder, R 32",
        "surface points",
        tuple(
            Curve(
                c["variant"],
                r"full/points_\d+",
                rf"full/memory_points_\d+_{c['variant']}",
                "surface_points",
                **c,
            )
            for c in (CROSS, PLANE_POOL)
        ),
    ),
    (
        "tokenizer",
        "tokenizer's encoder",
        "R",
        tuple(
            Curve(
                c["variant"],
                r"full/grid_\d+",
                rf"full/memory_grid_\d+_{c['variant']}",
                "grid_size",
                **c,
            )
            for c in (CROSS, PLANE_POOL)
        ),
    ),
    (
        "train",
        "GPT-B, a row without optimizers",
        "R",
        tuple(
            Curve(
                STYLES[p][0],
                r"full/growth_\d+",
                rf"full/memory_grid_\d+_{p}",
                "grid_size",
                p,
                *STYLES[p][1:],
            )
            for p in ("F", "LLLF")
        ),
    ),
    (
        "train",
        "whole step, 1 row of 3,072 tokens",
        "million parameters",
        (
            Curve(
                "hybrid 3:1", r"full/memory_size_.*", r"full/memory_size_.*", "million_parameters"
            ),
        ),
    ),
    (
        "extract",
        "extraction",
        "cells along an axis",
        (
            Curve(
                "planes of 256 x 256",
                r"full/growth_\d+",
                r"full/growth_\d+",
                "resolution",
                colour="#c44e3f",
                marker="s",
            ),
            Curve(
                "planes of 48 x 48 (shipped)", r"tiny/growth_\d+", r"tiny/growth_\d+", "resolution"
            ),
        ),
    ),
)


def draw_growth(reports: dict[str, dict], out: Path) -> None:
    """Seconds above, peak memory below; a panel for each of `PANELS` whose suite is there."""
    plt = _pyplot()
    panels = [panel for panel in PANELS if panel[0] in reports]
    figure, axes = plt.subplots(
        2,
        len(panels),
        figsize=(3.3 * len(panels), 6.4),
        layout="constrained",
        squeeze=False,
        sharex="col",
    )
    for column, (suite, title, label, curves) in enumerate(panels):
        top, bottom = axes[:, column]
        records = [r for r in reports[suite]["cases"] if "settings" in r]
        ticks = {x for curve in curves for x in _draw_curve(top, bottom, curve, records)}
        if not ticks:
            raise ValueError(
                f'suite {suite} holds no case for the panel "{title}": run it whole, without --only'
            )
        top.set_title(title, fontsize=10, color=CAPTION)
        bottom.set_xlabel(label)
        for axis in (top, bottom):
            _log_axes(axis)
            axis.set_xticks(sorted(ticks), [f"{x:,.0f}" for x in sorted(ticks)])
            _finish_axis(axis)
            axis.set_ylim(bottom=axis.get_ylim()[0] / 1.3)
        if len(curves) > 1:
            top.legend(frameon=False, fontsize=8.5)
    axes[0, 0].set_ylabel("seconds a shape or row")
    axes[1, 0].set_ylabel("peak memory of the process, GiB")
    figure.supxlabel(
        "Forward and backward; extraction forward. Random weights but for the shipped planes. "
        "A process that has only loaded PyTorch takes 0.4 GiB.\n" + "\n".join(_origins(reports)),
        fontsize=8.5,
        color=CAPTION,
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=150)
    plt.close(figure)


def _draw_curve(top, bottom, curve: Curve, records: list[dict]) -> set[float]:
    """Draws times and peak memories of a curve; returns their places on the x axis."""
    times = {
        r["settings"][curve.x]: r["median_seconds"] / r["settings"].get("batch", 1)
        for r in records
        if re.fullmatch(curve.time, r["case"]) and r["variant"] == curve.variant
    }
    memory = {
        r["settings"][curve.x]: _peak_gib(r)
        for r in records
        if re.fullmatch(curve.memory, r["case"])
    }
    for axis, values in ((top, times), (bottom, memory)):
        axis.plot(
            *zip(*sorted(values.items()), strict=True) if values else ([], []),
            color=curve.colour,
            linewidth=2,
            marker=curve.marker,
            markersize=6,
            label=curve.label,
        )
    return times.keys() | memory.keys()


def _origins(reports: dict[str, dict]) -> list[str]:
    """The machines and commits of the reports; a single line where all are alike."""
    origins = {suite: _origin(report) for suite, report in reports.items()}
    if len(set(origins.values())) == 1:
        return [next(iter(origins.values()))]
    return [f"{suite}: {origin}" for suite, origin in origins.items()]


def _peak_gib(record: dict) -> float:
    return (record["peak_gpu_mib"] or record["peak_resident_mib"]) / 1024


def _pyplot():
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _origin(report: dict) -> str:
    return (
        f"{report['machine']}, {report['threads']} threads, torch {report['torch']}, "
        f"commit {report['commit']}, {report['date'][:10]}"
    )


def _log_axes(axis) -> None:
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")


def _finish_axis(axis) -> None:
    """Sets ticks of y, grid and frame; ticks of x must be set before."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    axis.xaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())
    axis.margins(x=0.08)
    axis.grid(True, which="major", color=GRID, linewidth=0.8)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color(INK)


@command
def main(argv: list[str] | None = None) -> int:
    parser = command_parser(__doc__)
    parser.add_argument(
        "results",
        type=Path,
        nargs="+",
        metavar="RESULTS.json",
        help="what benchmarks.run wrote for a suite",
    )
    parser.add_argument("--out", type=Path, required=True, help="the PNG")
    args = parser.parse_args(argv)
    try:
        reports = {}
        for path in args.results:
            report = json.loads(path.read_text(encoding="utf-8"))
            reports[suite_name(report["suite"])] = report
        if list(reports) == ["decode"]:
            draw_decoding(reports["decode"], args.out)
        elif reports.keys() <= {suite for suite, *_ in PANELS}:
            draw_growth(reports, args.out)
        else:
            raise ValueError(
                "there is a figure of the suite decode, and one of tokenizer, train and extract; "
                f"got {', '.join(reports)}"
            )
    except (OSError, ValueError) as e:
        print(f"{', '.join(map(str, args.results))}: {e}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
