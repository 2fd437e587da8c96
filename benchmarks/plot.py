"""The growth of decoding's cost as one figure, from the JSON of the suite decode:

    python -m benchmarks.plot RESULTS.json --out docs/decode_growth.png

Milliseconds a token over the number of tokens, the batch and the size of the GPT, for full attention, the hybrid and linear
attention beside each other; the least time that this machine's memory and arithmetic allow each as a thin line.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

STYLES = {"F": ("full attention", "#c44e3f", "s"), "LLLF": ("hybrid 3:1", "#2b6ea6", "o"),
          "L": ("linear attention", "#4f9d69", "^")}
INK, CAPTION, GRID = "#2b2b2b", "#666666", "#dddddd"
LIMIT = {"linewidth": 1.1, "linestyle": (0, (2, 2))}
MODEL, TOKENS, BATCH = "GPT-B", 3072, 1  # where two of the three are held while the third grows


def draw(report: dict, out: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.lines import Line2D

    records = [r for r in report["cases"] if "/growth_" in r["case"] and "settings" in r]
    if not records:
        raise ValueError("there is no case growth_* in it: run python -m benchmarks.run --suite decode --only growth --out ...")
    figure, axes = plt.subplots(1, 3, figsize=(12, 4.6), sharey=True, layout="constrained")
    panels: tuple[tuple[str, str, str, Callable[[dict], bool]], ...] = (
        ("tokens", "tokens T", f"{MODEL}, batch {BATCH}", lambda s: s["model"] == MODEL and s["batch"] == BATCH),
        ("batch", "shapes decoded together", f"{MODEL}, T {TOKENS:,}", lambda s: s["model"] == MODEL and s["tokens"] == TOKENS),
        ("model", "size of the GPT", f"T {TOKENS:,}, batch {BATCH}", lambda s: s["tokens"] == TOKENS and s["batch"] == BATCH))
    for axis, (key, label, title, held) in zip(axes, panels, strict=True):
        _draw_panel(axis, [r for r in records if held(r["settings"])], key)
        axis.set_xlabel(label)
        axis.set_title(title, fontsize=10, color=CAPTION)
    axes[0].set_ylabel("ms a token")
    handles = [*axes[0].get_legend_handles_labels()[0], Line2D([], [], color=CAPTION, label="this machine's limit", **LIMIT)]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), frameon=False, fontsize=11)
    figure.supxlabel(f"The last tokens of a sequence, guidance on, random weights, {records[0]['dtype']}. {report['machine']}, "
                     f"{report['threads']} threads, torch {report['torch']}, commit {report['commit']}, {report['date'][:10]}",
                     fontsize=8.5, color=CAPTION)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=150)
    plt.close(figure)


def _draw_panel(axis, records: list[dict], key: str) -> None:
    """One curve a pattern over the setting `key`; sizes of GPTs stand at their numbers of parameters."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    def place(settings: dict) -> float:
        return settings[key] if key != "model" else parameters[settings["model"]]

    # A linear layer has a gate more: the same name is a little larger there, but stands at one place.
    parameters = {r["settings"]["model"]: r["settings"]["million_parameters"] for r in records if r["variant"] == "LLLF"}
    for pattern, (name, colour, marker) in STYLES.items():
        curve = sorted((place(r["settings"]), r["ms_per_item"], 1000 * r["roofline_seconds"] / r["items"])
                       for r in records if r["variant"] == pattern)
        if not curve:
            continue
        x, measured, least = zip(*curve, strict=True)
        axis.plot(x, measured, color=colour, marker=marker, markersize=6, linewidth=2, label=name)
        axis.plot(x, least, color=colour, **LIMIT)
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    ticks = dict(sorted((place(r["settings"]), r["settings"][key]) for r in records))
    axis.set_xticks(list(ticks), [f"{t}\n{x:.0f} M" if isinstance(t, str) else f"{t:,}" for x, t in ticks.items()])
    axis.xaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())
    axis.margins(x=0.08)
    axis.grid(True, which="major", color=GRID, linewidth=0.8)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color(INK)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, metavar="RESULTS.json", help="what benchmarks.run --suite decode wrote")
    parser.add_argument("--out", type=Path, required=True, help="the PNG")
    args = parser.parse_args(argv)
    try:
        draw(json.loads(args.results.read_text(encoding="utf-8")), args.out)
    except (OSError, ValueError) as e:
        print(f"{args.results}: {e}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
