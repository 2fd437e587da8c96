"""From the scores of single shapes to means, intervals and the report of `benchmarks.i23d_quality`. Runs no model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from tar3d.data.folder import write_csv
from tar3d.metrics.geometry import PROTOCOL

THRESHOLD = 0.02
SCORES = {"chamfer": "Chamfer", "fscore": f"F-score@{THRESHOLD}", "iou": "volume IoU"}
WORST = {"chamfer": 3**0.5, "fscore": 0.0, "iou": 0.0}
RULE = ("An empty field gives no mesh: it is counted, and scored as the worst, F 0, IoU 0 and Chamfer sqrt 3 = 1.732 (what "
        "a single point in the centre would have, were all of the truth in the corners of the cube).")
ROWS = {  # what is compared with the truth -> its name in the report
    "generation": "generated from the view",
    "reconstruction": "tokenizer's reconstruction of the truth (upper bound)",
    "category": "random training shape of the same category",
    "pixels": "training shape with the nearest view in pixels",
    "features": "training shape with the nearest view in the encoder's features",
    "floor": "truth, sampled again (floor)",
}
BASELINES = ("category", "pixels", "features")
LOSSES = ("right", "shuffled", "null")
_RESAMPLES_AT_ONCE = 1000


def bootstrap_interval(values: np.ndarray, rng: np.random.Generator, *, coverage: float = 0.95,
                       resamples: int = 10_000) -> tuple[float, float]:
    """Percentile interval of the mean of (n,) values, n > 0, over draws with replacement (Efron 1979)."""
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or len(values) == 0:
        raise ValueError(f"a bootstrap needs (n,) values with n > 0, got {values.shape}")
    parts = [min(_RESAMPLES_AT_ONCE, resamples - start) for start in range(0, resamples, _RESAMPLES_AT_ONCE)]
    means = np.concatenate([values[rng.integers(len(values), size=(part, len(values)))].mean(1) for part in parts])
    low, high = np.quantile(means, [(1 - coverage) / 2, (1 + coverage) / 2])
    return float(low), float(high)


def summarise(rows: list[dict], seed: int) -> dict:
    """Means with intervals, comparisons with the baselines shape by shape, categories, losses and failures.

    A row holds `<name>_<score>` for ROWS and SCORES, `nll_<kind>`, category, pixel_distance, and in `failed` the names
    (with blanks between them) that gave no mesh.
    """
    rng = np.random.default_rng([seed, 2])

    def mean(values: list[float]) -> dict[str, float]:
        low, high = bootstrap_interval(np.array(values), rng)
        return {"mean": float(np.mean(values)), "low": low, "high": high}

    def gains(base: str, measure: str) -> list[float]:
        sign = -1 if measure == "chamfer" else 1
        return [sign * (r[f"generation_{measure}"] - r[f"{base}_{measure}"]) for r in rows]

    def plain_means(group: list[dict]) -> dict:
        means = {name: {s: float(np.mean([r[f"{name}_{s}"] for r in group])) for s in SCORES} for name in ROWS}
        return {"shapes": len(group), **means}

    def comparison(base: str, measure: str) -> dict:
        gain = gains(base, measure)
        return {"share": sum(g > 0 for g in gain) / len(rows), "gain": mean(gain)}

    groups: dict[str, list[dict]] = {}
    for row in rows:
        groups.setdefault(row["category"], []).append(row)
    return {
        "scores": {name: {s: mean([r[f"{name}_{s}"] for r in rows]) for s in SCORES} for name in ROWS},
        "beats": {base: {s: comparison(base, s) for s in SCORES} for base in BASELINES},
        "nll": {kind: mean([r[f"nll_{kind}"] for r in rows]) for kind in LOSSES},
        "by_category": {category: plain_means(group) for category, group in sorted(groups.items())},
        "failed_generations": sum("generation" in r["failed"].split() for r in rows),
        "failed_reconstructions": sum("reconstruction" in r["failed"].split() for r in rows),
        "views_in_training": sum(float(r["pixel_distance"]) == 0 for r in rows),
    }


def write(out: Path, rows: list[dict], summary: dict, sheet: Image.Image) -> None:
    out.mkdir(parents=True, exist_ok=True)
    printed = [{k: f"{v:.6f}" if isinstance(v, float) else v for k, v in r.items()} for r in rows]
    write_csv(out / "report.csv", list(rows[0]), printed)
    (out / "report.md").write_text(report(summary), encoding="utf-8")
    (out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    sheet.save(out / "grid.png")


def report(s: dict) -> str:
    """Markdown."""
    scores = [[title, *(_cell(s["scores"][name][m]) for m in SCORES)] for name, title in ROWS.items()]
    beats = [[ROWS[base], *(f"{v['share']:.0%}, {_cell(v['gain'])}" for v in s["beats"][base].values())] for base in BASELINES]
    groups = [[category or "none given", str(g["shapes"]), *(f"{g[name]['fscore']:.3f}" for name in ROWS)]
              for category, g in s["by_category"].items()]
    failures = (f"Failed generations: {s['failed_generations']} of {s['shapes']}; "
                f"failed reconstructions: {s['failed_reconstructions']}.")
    return "\n".join([
        "# Image to 3D on unseen shapes", "",
        f"{s['shapes']} shapes of {s['test']}, one view each, model {s['model']}, {s['resolution']}^3 cells, seed {s['seed']}.",
        f"Baselines choose from {s['training_shapes']} training shapes ({s['training_views']} views) of {s['train']}.",
        "Mean and 95 % bootstrap interval over shapes.", "",
        *_table(["", *SCORES.values()], scores), "",
        f"{failures} {RULE}", "",
        f"Views identical to a training view, pixel by pixel: {s['views_in_training']}. More than 0 means that test shapes were",
        "trained on.", "",
        "## Does it beat copying a training shape?", "",
        "Share of shapes where the generation is better, and the mean gain (positive is better).", "",
        *_table(["than the", *SCORES.values()], beats), "",
        "## Does it use its picture?", "",
        "NLL of the true tokens in nats a token.", "",
        *_table(["right picture", "another shape's picture", "no picture"], [[_cell(s["nll"][k], 4) for k in LOSSES]]), "",
        "## By category", "",
        f"Mean {SCORES['fscore']}.", "",
        *_table(["category", "shapes", *ROWS], groups), "",
        "## Protocol", "", "```", PROTOCOL, "```", "",
        f"`{s['command']}`: {s['seconds']:.0f} s on {s['machine']}, torch {s['torch']}, commit {s['commit']}, {s['date']}.", ""])


def _cell(value: dict[str, float], digits: int = 3) -> str:
    return f"{value['mean']:.{digits}f} [{value['low']:.{digits}f}, {value['high']:.{digits}f}]"


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]
