"""Draws the curves of a tokenizer's and a GPT's training, from the CSV files of their runs.

    python -m benchmarks.curves --vqvae outputs/vqvae --gpt outputs/gpt \\
        --out docs/training_curves.png

Tokenizer: loss and its parts, IoU on validation shapes, use of the codebook. GPT: NLL of the
training rows with ln V for comparison, of validation shapes under the right, another shape's and no
image, and by plane.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

from tar3d.data.formats.tables import read_rows
from tar3d.runtime import command, command_parser

COLOURS = ("#2b6ea6", "#c44e3f", "#4f9d69", "#8a6bb0")
GRID, CAPTION = "#dddddd", "#666666"


def draw(vqvae: Path, gpt: Path, out: Path) -> None:
    """Writes the figure: a row of panels for the tokenizer's run, one for the GPT's."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 3, figsize=(13, 7), layout="constrained")
    draw_tokenizer(axes[0], vqvae)
    draw_gpt(axes[1], gpt)
    figure.supxlabel("step", fontsize=9)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=120)
    plt.close(figure)


def draw_tokenizer(axes, run: Path) -> None:
    steps, values = read(run / "train.csv")
    at, validation = read(run / "validation.csv")
    parts = {name: values[name] for name in ("loss", "volume", "near", "commitment")}
    curves(axes[0], steps, parts, "tokenizer: training loss")
    axes[0].set_yscale("log")
    ious = {k.removeprefix("iou_"): v for k, v in validation.items() if k.startswith("iou_")}
    curves(axes[1], at, ious, "tokenizer: IoU, shapes held out", marker=".")
    size = settings(run)["tokenizer"]["codebook_size"]
    with_codebook = [k for k, use in enumerate(validation["codebook_usage"]) if use > 0]
    curves(
        axes[2],
        [at[k] for k in with_codebook],
        {
            "share of codes used": [validation["codebook_usage"][k] for k in with_codebook],
            "perplexity / codes": [validation["perplexity"][k] / size for k in with_codebook],
        },
        f"tokenizer: codebook of {size:,}, shapes held out",
        marker=".",
    )
    axes[2].set_ylim(0, 1.02)
    starts = next(
        (step for step, c in zip(steps, values["commitment"], strict=True) if c > 0), None
    )
    for axis in axes[:2] if starts else ():
        axis.axvline(starts, color=CAPTION, linewidth=1, linestyle=":")
        axis.annotate(
            "codebook",
            (starts, 0.02),
            xycoords=("data", "axes fraction"),
            fontsize=8,
            color=CAPTION,
            rotation=90,
        )


def draw_gpt(axes, run: Path) -> None:
    steps, values = read(run / "train.csv")
    at, validation = read(run / "validation.csv")
    curves(axes[0], steps, {"NLL, training rows": values["nll"]}, "GPT: nats a token")
    codes = settings(run)["gpt"]["codebook_size"]
    axes[0].axhline(math.log(codes), color=CAPTION, linewidth=1, linestyle=":", label="ln V")
    axes[0].legend(frameon=False, fontsize=8)
    by_condition = {
        "right image": validation["nll"],
        "another shape's": validation["nll_shuffled"],
        "none": validation["nll_null"],
    }
    curves(axes[1], at, by_condition, "GPT: NLL, shapes held out", marker=".")
    by_plane = {f"plane {name}": validation[f"nll_{name}"] for name in ("xy", "xz", "yz")}
    by_plane["first 8 tokens"] = validation["nll_first8"]
    curves(axes[2], at, by_plane, "GPT: NLL by plane, right image", marker=".")


def curves(
    axis, steps: list[int], lines: dict[str, list[float]], title: str, marker: str = ""
) -> None:
    """Draws lines by name into one panel."""
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
    """Steps and columns of a run's CSV file; NaN where a row has no value."""
    if not path.is_file():
        raise ValueError(f"{path} is not there: give the folder of a run")
    rows = [row for _, row in read_rows(path, "step")]
    return [int(r["step"]) for r in rows], {
        name: [float(r[name] or "nan") for r in rows] for name in rows[0] if name != "step"
    }


def settings(run: Path) -> dict:
    """The config of a run."""
    return json.loads((run / "run.json").read_text(encoding="utf-8"))["config"]


@command
def main(argv: list[str] | None = None) -> int:
    parser = command_parser(__doc__)
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
