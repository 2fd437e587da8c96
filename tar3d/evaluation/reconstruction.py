"""How close reconstructions are to their input: scores of one shape, and the report on many."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import numpy as np

from tar3d.contracts import CUBE_FILL
from tar3d.io import write_csv, write_json
from tar3d.mesh.point_cloud import ESTIMATED
from tar3d.metrics.geometry import (
    compare_points,
    describe,
    in_frame,
    point_scores,
    surface_cloud,
    transformed,
)
from tar3d.metrics.summary import markdown_table
from tar3d.metrics.volumes import volume_iou
from tar3d.runtime import describe_machine, peak_memory
from tar3d.tokenizer.quantizer import codebook_usage

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from tar3d.config import EvalProtocol
    from tar3d.contracts import Mesh
    from tar3d.mesh.point_cloud import PointCloud

SCORES = ("chamfer", "fscore@0.02", "iou", "floor_chamfer", "floor_fscore@0.02")
FIELDS = (
    *("id", "file", "kind", "category", "status", "reason", "note", "tokens"),
    *SCORES,
    "seconds",
)
HEAD = (
    *("", "shapes", "Chamfer", "(floor)", "F-score@0.02", "(floor)"),
    *("share of floor", "volume IoU"),
)


def score_mesh(rebuilt: Mesh, truth: Mesh, protocol: EvalProtocol) -> dict[str, float]:
    """Point scores with their floors, and the volume IoU.

    Raises ValueError where a score is not defined.
    """
    rebuilt, truth = in_frame(rebuilt, truth, protocol.frame)
    iou = volume_iou(rebuilt, truth, protocol.iou_points, protocol.seed)
    return compare_points(rebuilt, truth, protocol) | {"iou": iou}


def score_cloud(rebuilt: Mesh, cloud: PointCloud, protocol: EvalProtocol) -> dict[str, float]:
    """Scores of points on `rebuilt` against the cloud's own, in the unit of the frame "truth".

    The `to_source` of both lead to the frame of the cloud's file.
    """
    unit = 1 / CUBE_FILL
    to_cloud = np.linalg.inv(cloud.to_source) @ rebuilt.to_source
    rebuilt = transformed(rebuilt, np.diag([unit, unit, unit, 1.0]) @ to_cloud)
    points = surface_cloud(rebuilt, protocol.points, (protocol.seed, 0))[:, :3]
    return {**point_scores(points, cloud.points * unit, protocol.thresholds)}


def write_reconstruction_report(
    out: Path,
    rows: list[dict],
    code_counts: torch.Tensor,
    settings: str,
    protocol: EvalProtocol,
    device: torch.device,
) -> str:
    """Writes report.csv, report.md and summary.json, and returns the text of the report.

    `rows` have the columns `FIELDS`, `code_counts` (V,) is how often each code was used, and
    `settings` says with what the shapes were rebuilt.
    """
    out.mkdir(parents=True, exist_ok=True)
    write_csv(
        out / "report.csv",
        [*FIELDS],
        [{k: f"{v:.6f}" if isinstance(v, float) else v for k, v in r.items()} for r in rows],
    )
    good = [row for row in rows if row["status"] == "ok"]
    means = mean_scores(good)
    usage, perplexity = codebook_usage(code_counts) if good else (None, None)
    machine = describe_machine(device)
    inputs = "meshes" if all(row["kind"] == "mesh" for row in rows) else "inputs"
    seconds = sum(row["seconds"] for row in rows)
    blocks = [
        f"{len(good)} of {len(rows)} {inputs} reconstructed by {settings}; {seconds:.1f} s, "
        f"peak memory {peak_memory(device)}; {machine['machine']}, commit {machine['commit']}"
    ]
    if means:
        blocks.append("\n".join(markdown_table(HEAD, [_cells(n, m) for n, m in means.items()])))
    blocks += _remarks(good)
    if good:
        blocks.append(
            f"{code_counts.sum():,} tokens use {usage:.1%} of the {len(code_counts):,} codes, "
            f"perplexity {perplexity:,.0f}."
        )
    text = "\n\n".join(blocks)
    definitions = f"\n```\n{describe(protocol)}\n```\n" if means else ""
    page = f"# Reconstruction\n\n{text}\n{definitions}"
    (out / "report.md").write_text(page, encoding="utf-8")
    summary = {
        "means": means,
        "of": len(rows),
        "codebook_usage": usage,
        "perplexity": perplexity,
        "machine": machine,
    }
    write_json(out / "summary.json", summary)
    return text


def mean_scores(rows: list[dict]) -> dict[str, dict[str, float | None]]:
    """Number of shapes and mean scores of meshes, of point clouds, and of each category of meshes.

    Meshes and clouds are apart because their scores do not compare.
    """
    meshes, clouds = ([row for row in rows if row["kind"] == kind] for kind in ("mesh", "points"))
    groups = {"all meshes" if clouds else "all": meshes, "point clouds": clouds}
    by_category = defaultdict(list)
    for row in meshes:
        by_category[row["category"]].append(row)
    if len(by_category) > 1:
        groups |= dict(sorted(by_category.items()))
    return {
        name: {"shapes": len(group), **{score: _mean(group, score) for score in SCORES}}
        for name, group in groups.items()
        if group
    }


def _mean(rows: list[dict], score: str) -> float | None:
    """The mean over the rows that have the score; None if none has."""
    values = [row[score] for row in rows if isinstance(row[score], float)]
    return float(np.mean(values)) if values else None


def _cells(group: str, means: dict[str, float | None]) -> list[str]:
    """A row of the table with the columns `HEAD`."""
    fscore, floor = means["fscore@0.02"], means["floor_fscore@0.02"]
    share = fscore / floor if fscore is not None and floor else None
    values = [
        *((means[name], ".4f") for name in ("chamfer", "floor_chamfer")),
        *((value, ".3f") for value in (fscore, floor)),
        (share, ".1%"),
        (means["iou"], ".3f"),
    ]
    cells = ["-" if value is None else f"{value:{form}}" for value, form in values]
    return [group or "no category", str(means["shapes"]), *cells]


def _remarks(rows: list[dict]) -> list[str]:
    """Sentences on shapes whose scores mean something else, or that have none."""
    remarks = []
    clouds = [row for row in rows if row["kind"] == "points"]
    if clouds:
        estimated = sum(ESTIMATED in row["note"] for row in clouds)
        remarks.append(
            f"Point clouds are scored against their own points; {estimated} of {len(clouds)}: "
            f"{ESTIMATED}."
        )
    if decoded := sum(row["kind"] == "tokens" for row in rows):
        remarks.append(f"{decoded} decoded from tokens, without a truth to be scored against.")
    return remarks
