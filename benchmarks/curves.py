"""What normal trainings look like, as a figure, from the CSV files of a run of each kind:

    python -m benchmarks.curves --vqvae outputs/vqvae --gpt outputs/gpt --out docs/training_curves.png

Tokenizer: loss and its parts, IoU on shapes held out, use of the codebook. GPT: NLL of the training
rows with ln V for comparison, of shapes held out under the right, another shape's and no picture,
and by plane.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import sys
from pathlib import Path

COLOURS = ("#2b6ea6", "#c44e3f", "#4f9d69", "#8a6bb0")
GRID, CAPTION = "#dddddd", "#666666"


def draw(vqvae: Path, gpt: Path, out: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    steps, values = read(vqvae / "train.csv")
    at, held_out = read(vqvae / "validation.csv")
    starts = next(
        (step for step, c in zip(steps, values["commitment"], strict=True) if c > 0), None
    )
    figure, axes = plt.subplots(2, 3, figsize=(13, 7), layout="constrained")
    parts = {name: values[name] for name in ("loss", "volume", "near", "commitment")}
    curves(axes[0, 0], steps, parts, "tokenizer: training loss")
    axes[0, 0].set_yscale("log")
    curves(
        axes[0, 1],
        at,
        {name.removeprefix("iou_"): held_out[name] for name in held_out if name.startswith("iou_")},
        "tokenizer: IoU, shapes held out",
        marker=".",
    )
    used = [
        (step, use, perplexity)
        for step, use, perplexity in zip(
            at, held_out["codebook_usage"], held_out["perplexity"], strict=True
        )
        if use > 0
    ]
    size = settings(vqvae)["tokenizer"]["codebook_size"]
    curves(
        axes[0, 2],
        [u[0] for u in used],
        {
            "share of codes used": [u[1] for u in used],
            "perplexity / codes": [u[2] / size for u in used],
        },
        f"tokenizer: codebook of {size:,}, shapes held out",
        marker=".",
    )
    axes[0, 2].set_ylim(0, 1.02)
    for axis in axes[0, :2]:
        if starts:
            axis.axvline(starts, color=CAPTION, linewidth=1, linestyle=":")
            axis.annotate(
                "codebook",
                (starts, 0.02),
                xycoords=("data", "axes fraction"),
                fontsize=8,
                color=CAPTION,
                rotation=90,
            )

    steps, values = read(gpt / "train.csv")
    at, held_out = read(gpt / "validation.csv")
    curves(axes[1, 0], steps, {"NLL, training rows": values["nll"]}, "GPT: nats a token")
    axes[1, 0].axhline(
        math.log(settings(gpt)["gpt"]["codebook_size"]),
        color=CAPTION,
        linewidth=1,
        linestyle=":",
        label="ln V",
    )
    axes[1, 0].legend(frameon=False, fontsize=8)
    curves(
        axes[1, 1],
        at,
        {
            "right picture": held_out["nll"],
            "another shape's": held_out["nll_shuffled"],
            "none": held_out["nll_null"],
        },
        "GPT: NLL, shapes held out",
        marker=".",
    )
    curves(
        axes[1, 2],
        at,
        {f"plane {name}": held_out[f"nll_{name}"] for name in ("xy", "xz", "yz")}
        | {"first 8 tokens": held_out["nll_first8"]},
        "GPT: NLL by plane, right picture",
        marker=".",
    )
    figure.supxlabel("step", fontsize=9)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=120)
    plt.close(figure)


def curves(
    axis, steps: list[int], lines: dict[str, list[float]], title: str, marker: str = ""
) -> None:
    for k, (name, values) in enumerate(lines.items()):
        axis.plot(
            steps,
            values,
            color=COLOURS[k % len(COLOURS)],
            linestyle="-" if k < len(COLOURS) else "--",
            linewidth=1.3,
            marker=marker,
            label=name,
        )
    axis.set_title(title, fontsize=10, color=CAPTION)
    axis.grid(color=GRID, linewidth=0.6)
    axis.legend(frameon=False, fontsize=8)


def read(path: Path) -> tuple[list[int], dict[str, list[float]]]:
    """Steps and columns of a run's CSV file."""
    if not path.is_file():
        raise ValueError(f"{path} is not there: give the folder of a run")
    with open(path, newline="", encoding="utf-8") as f:
        rows = list(csv.DictReader(f))
    return [int(r["step"]) for r in rows], {
        name: [float(r[name]) for r in rows] for name in rows[0] if name != "step"
    }


def settings(run: Path) -> dict:
    return json.loads((run / "run.json").read_text(encoding="utf-8"))["config"]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--vqvae", type=Path, required=True, help="run folder of train_vqvae.py")
    parser.add_argument("--gpt", type=Path, required=True, help="run folder of train_gpt.py")
    parser.add_argument("--out", type=Path, required=True, help="PNG to write")
    args = parser.parse_args(argv)
    try:
        draw(args.vqvae, args.gpt, args.out)
    except ValueError as e:
        print(e, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
