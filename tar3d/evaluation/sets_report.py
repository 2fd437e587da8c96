"""Scores of sets without pairs -> summary.json and report.md."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tar3d.evaluation.mesh_report import versions
from tar3d.io import write_json
from tar3d.metrics.metric import formulas
from tar3d.metrics.sets import SET_METRICS
from tar3d.metrics.summary import markdown_table
from tar3d.runtime import command_line

if TYPE_CHECKING:
    from pathlib import Path

    from tar3d.config import EvalProtocol


def score_table(scores: dict[str, float]) -> list[str]:
    """Markdown of the scores of two sets, a row a score."""
    return markdown_table(["score", "value"], [[k, f"{v:.4g}"] for k, v in scores.items()])


def set_table(scores: dict[str, dict[str, float]]) -> list[str]:
    """Markdown of several sets against the same unseen shapes, a row a set."""
    columns = (*SET_METRICS, "generated_shapes", "reference_shapes")
    return markdown_table(
        ["set", *SET_METRICS, "shapes", "unseen shapes"],
        [[name, *(f"{values[k]:.4g}" for k in columns)] for name, values in scores.items()],
    )


def write_sets_report(
    out: Path,
    title: str,
    table: list[str],
    failed: dict[str, str],
    protocol: EvalProtocol,
    about: dict,
) -> str:
    """Writes both files, and returns the Markdown text.

    `failed` are reasons by shape; `about` goes into summary.json as it is.
    """
    frame = (
        "the files' coordinates"
        if protocol.frame == "source"
        else "each shape centred and scaled by its own bounding box"
    )
    lines = [
        *[f"# {title}", "", *table, ""],
        *(f"failed: {i}: {reason}  " for i, reason in failed.items()),
        *["", f"2,048 points a shape, {frame}, seed {protocol.seed}.", ""],
        *(f"{name} = {formula}  " for name, formula in formulas(SET_METRICS).items()),
        *["", f"`{command_line()}`"],
    ]
    text = "\n".join(lines)
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.md").write_text(text + "\n", encoding="utf-8")
    write_json(
        out / "summary.json",
        {
            **about,
            "versions": versions(),
            "failed": failed,
            "formulas": formulas(SET_METRICS),
            "frame": frame,
            "seed": protocol.seed,
        },
    )
    return text
