"""Measures how well the inside labels keep the shape of a mesh.

    python -m benchmarks.labels MESHES --out outputs/labels [--limit 200] [--workers 2]

The labels of `tar3d.mesh.points` are taken on a lattice of 256^3 points, their boundary is
extracted by marching cubes, and compared with the mesh by F-score at 0.02, 16,000 points each, as a
share of its floor: the mesh against a second sampling of itself. There are two truths: "outer" is
the surface that bounds the solid, "all" is every face, with those that are buried in other parts
and that no solid has. labels.csv has a row for each mesh, labels.md the summary and every mesh that
falls short, labels.png the worst beside their meshes (pictures/ has every one that falls short). An
interrupted run continues.
"""

from __future__ import annotations

import json
import sys
import time
from datetime import date
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from scipy.ndimage import binary_dilation
from skimage.measure import marching_cubes

from tar3d.config import PointSamplingConfig
from tar3d.contracts import Mesh
from tar3d.data.datasets.spread import spread
from tar3d.data.prepare.contact_sheets import sheet, tile
from tar3d.data.prepare.mesh_list import mesh_ids
from tar3d.io import write_csv, write_json
from tar3d.mesh.load import MeshError, load_mesh
from tar3d.mesh.points import Skin, label, sample_skin, sample_surface, solid_winding
from tar3d.mesh.render import render_preview
from tar3d.mesh.winding import WindingNumber, unbalanced_edges
from tar3d.metrics.geometry import point_scores
from tar3d.metrics.summary import markdown_table
from tar3d.parallel.processes import JobFailure, parallel
from tar3d.runtime import command, command_parser, describe_machine, progress_bar

if TYPE_CHECKING:
    import argparse

# Lattice points along a side, and along a block: where the surface is not near, a block has one
# label.
CELLS, COARSE = 256, 4
POINTS, THRESHOLD = 16_000, 0.02
SKIN_POINTS = 100_000  # that find thin walls, as in a sampling of default size
KEEPS = 0.97  # least share of the floor of a shape that counts as kept
FIELDS = [
    "id",
    "status",
    "reason",
    "outer",
    "all",
    "precision",
    "recall",
    "floor",
    "buried_share",
    "thin_share",
    "watertight",
    "seconds",
]
WORST, SECONDS = 20, 600.0
TILE, COLUMNS = 256, 4  # pixels along a pair of pictures; pairs in a row of labels.png


def label_field(
    mesh: Mesh, winding: WindingNumber, skin: Skin, cells: int, dense: np.ndarray
) -> np.ndarray:
    """Labels (cells, cells, cells) at the centres of the cells of the cube.

    `dense` (N, 3) are points of all faces. Cells near them, and those of blocks whose label differs
    from a neighbour's, are labelled one by one; the others get the label of their block.
    """
    axis = (np.arange(cells) + 0.5) / cells * 2 - 1
    coarse_axis = axis.reshape(-1, COARSE).mean(axis=1)
    lattice = np.stack(np.meshgrid(*[coarse_axis] * 3, indexing="ij"), axis=-1)
    coarse = label(mesh, winding, skin, lattice.reshape(-1, 3))[0].reshape(lattice.shape[:3])
    changes = np.zeros_like(coarse)
    for k in range(3):
        differs = np.diff(coarse, axis=k)
        low, high = [slice(None)] * 3, [slice(None)] * 3
        low[k], high[k] = slice(None, -1), slice(1, None)
        changes[tuple(low)] |= differs
        changes[tuple(high)] |= differs
    near = np.zeros((cells,) * 3, dtype=bool)
    near[tuple(np.floor((dense + 1) / 2 * cells).astype(int).clip(0, cells - 1).T)] = True
    near = binary_dilation(near, iterations=2) | _fine(changes)
    field = _fine(coarse)
    field[near] = label(mesh, winding, skin, axis[np.argwhere(near)])[0]
    return field


def _fine(blocks: np.ndarray) -> np.ndarray:
    return blocks.repeat(COARSE, axis=0).repeat(COARSE, axis=1).repeat(COARSE, axis=2)


def boundary(field: np.ndarray) -> Mesh:
    """The surface of a label field; a ValueError if all is outside."""
    cells = len(field)
    if not field.any():
        raise ValueError("no point of the lattice is inside")
    vertices, faces, _, _ = marching_cubes(
        np.pad(field, 1).astype(np.float32), 0.5, gradient_direction="ascent"
    )
    return Mesh((vertices - 0.5) / cells * 2 - 1, faces)


def score(job: tuple[str, Path], *, cells: int) -> tuple[dict[str, object], np.ndarray | None]:
    """A row of labels.csv, and an image of the mesh and of the boundary of its labels.

    The image is None for a mesh that keeps its shape.
    """
    start = time.perf_counter()
    shape_id, path = job
    row: dict[str, object] = dict.fromkeys(FIELDS, "") | {"id": shape_id}
    image = None
    try:
        mesh = load_mesh(path)
        rebuilt, skin, winding = rebuild(mesh, cells)
        rng = np.random.default_rng(1)
        rebuilt_points = sample_surface(rebuilt, POINTS, rng)[:, :3]
        outer = sample_skin(mesh, winding, 2 * POINTS, rng).points
        every = sample_surface(mesh, 2 * POINTS, rng)[:, :3]
        name = f"fscore@{THRESHOLD:g}"
        for truth, points in (("outer", outer), ("all", every)):
            scores = point_scores(rebuilt_points, points[:POINTS], [THRESHOLD])
            floor = point_scores(points[POINTS:], points[:POINTS], [THRESHOLD])[name]
            row[truth] = scores[name] / floor
            if truth == "outer":
                row |= {
                    "precision": scores[f"precision@{THRESHOLD:g}"],
                    "recall": scores[f"recall@{THRESHOLD:g}"],
                    "floor": floor,
                }
        row |= {
            "status": "ok",
            "buried_share": skin.buried,
            "thin_share": float((skin.padding > 0).mean()),
            "watertight": int(len(unbalanced_edges(mesh.faces)[0]) == 0),
        }
        if row["outer"] < KEEPS:
            image = np.concatenate([render_preview(mesh), render_preview(rebuilt)], axis=1)
    except (MeshError, ValueError) as e:
        row |= {"status": "failed", "reason": str(e), "outer": 0.0, "all": 0.0}
    return row | {"seconds": time.perf_counter() - start}, image


def rebuild(mesh: Mesh, cells: int) -> tuple[Mesh, Skin, WindingNumber]:
    """The boundary of a mesh's labels under the default settings of `make_samples`."""
    rng = np.random.default_rng(0)
    winding = solid_winding(mesh, rng)
    skin = sample_skin(
        mesh, winding, SKIN_POINTS, rng, min_thickness=PointSamplingConfig().min_thickness
    )
    field = label_field(
        mesh, winding, skin, cells, sample_surface(mesh, 2 * SKIN_POINTS, rng)[:, :3]
    )
    return boundary(field), skin, winding


def report(rows: list[dict], out: Path, cells: int, machine: dict[str, str]) -> str:
    """Writes labels.csv, labels.json, labels.md and labels.png; returns the summary."""
    rows = sorted(rows, key=lambda r: r["outer"])
    write_csv(
        out / "labels.csv",
        FIELDS,
        [{k: f"{v:.4f}" if isinstance(v, float) else v for k, v in r.items()} for r in rows],
    )
    short = [r for r in rows if r["outer"] < KEEPS]
    kept = {truth: share_kept(rows, truth) for truth in ("outer", "all")}
    summary = "\n".join(
        [
            f"{len(rows)} meshes at {cells}^3; {kept['outer']:.1%} keep at least {KEEPS:.0%} of "
            f"the floor of their outer surface, {kept['all']:.1%} of that of all their faces; "
            f"{machine['machine']}, commit {machine['commit']}, {machine['date']}",
            "",
            *summary_table(rows),
        ]
    )
    listing = "\n".join(short_table(short))
    page = f"# Labels\n\n{summary}\n\n## Those that fall short\n\n{listing}\n"
    (out / "labels.md").write_text(page, encoding="utf-8")
    facts = {"meshes": len(rows), "cells": cells, "kept": kept, "short": [r["id"] for r in short]}
    write_json(out / "labels.json", facts | machine)
    images = [(r, path) for r in short if (path := out / "pictures" / f"{r['id']}.png").is_file()]
    if images:
        tiles = [
            tile(Image.open(path), r["id"], f"{r['outer']:.1%} of the floor", side=TILE)
            for r, path in images[:WORST]
        ]
        sheet(tiles, COLUMNS).save(out / "labels.png")
    return summary


def share_kept(rows: list[dict], truth: str) -> float:
    """The share of meshes that keep their shape against a truth, "outer" or "all"."""
    return float(np.mean([r[truth] >= KEEPS for r in rows]))


def summary_table(rows: list[dict]) -> list[str]:
    """Markdown of all meshes, the watertight and the open ones."""
    groups = {"all": rows}
    for name, closed in (("watertight", 1), ("open", 0)):
        groups[name] = [r for r in rows if r["watertight"] == closed]
    return markdown_table(
        [
            "",
            "meshes",
            "share kept, outer",
            "share kept, all faces",
            "median share of floor, outer",
            "5 %",
        ],
        [
            [
                name,
                str(len(group)),
                f"{share_kept(group, 'outer'):.1%}",
                f"{share_kept(group, 'all'):.1%}",
                f"{np.median([r['outer'] for r in group]):.3f}",
                f"{np.quantile([r['outer'] for r in group], 0.05):.3f}",
            ]
            for name, group in groups.items()
            if group
        ],
    )


def short_table(rows: list[dict]) -> list[str]:
    """Markdown of the meshes that fall short."""
    columns = ("outer", "all", "precision", "recall", "buried_share", "thin_share")
    return markdown_table(
        ["mesh", "share of floor, outer", "all", "precision", "recall", "buried", "thin", "why"],
        [
            [r["id"], *(f"{r[k]:.3f}" if r[k] != "" else "" for k in columns), r["reason"]]
            for r in rows
        ],
    )


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = command_parser(__doc__)
    parser.add_argument("source", type=Path, help="folder of meshes, or table id,file (.csv)")
    parser.add_argument(
        "--out", type=Path, default=Path("outputs/labels"), help="default: %(default)s"
    )
    parser.add_argument("--limit", type=int, help="only so many meshes, spread evenly over the ids")
    parser.add_argument(
        "--cells",
        type=int,
        default=CELLS,
        help="along a side, a multiple of 4 (default: %(default)s)",
    )
    parser.add_argument("--workers", type=int, default=1, help="processes (default: %(default)s)")
    args = parser.parse_args(argv)
    if args.cells < 2 * COARSE or args.cells % COARSE:
        parser.exit(
            2, f"--cells must be a multiple of {COARSE}, at least {2 * COARSE}, got {args.cells}\n"
        )
    return args


@command
def main(argv: list[str] | None = None) -> int:
    args = parse_arguments(argv)
    try:
        meshes = mesh_ids(args.source)
    except ValueError as e:
        print(e, file=sys.stderr)
        return 2
    names = list(meshes)
    chosen = [names[i] for i in spread(len(names), args.limit or len(names))]
    (args.out / "pictures").mkdir(parents=True, exist_ok=True)
    # Read now: another commit may be checked out by the time the run ends.
    import torch

    machine = describe_machine(torch.device("cpu")) | {"date": str(date.today())}
    rows = score_all({i: meshes[i] for i in chosen}, args)
    print(report(rows, args.out, args.cells, machine))
    return 1 if any(r["status"] != "ok" for r in rows) else 0


def score_all(meshes: dict[str, Path], args: argparse.Namespace) -> list[dict]:
    """A row for each mesh; rows that an interrupted run has written are not computed again."""
    partial_rows = args.out / "rows.jsonl"
    earlier = partial_rows.read_text("utf-8").splitlines() if partial_rows.is_file() else []
    rows = [row for row in map(json.loads, earlier) if row["id"] in meshes]
    done = {row["id"] for row in rows}
    jobs = [(i, path) for i, path in meshes.items() if i not in done]
    job = partial(score, cells=args.cells)
    with (
        partial_rows.open("a", encoding="utf-8") as f,
        progress_bar(total=len(meshes), initial=len(done), unit="mesh") as bar,
    ):
        for (shape_id, _), result in parallel(job, jobs, args.workers, seconds=SECONDS):
            if isinstance(result, JobFailure):
                row = failed_row(shape_id, result.reason)
            else:
                row, image = result
                if image is not None:
                    Image.fromarray(image).save(args.out / "pictures" / f"{shape_id}.png")
            rows.append(row)
            f.write(json.dumps(row) + "\n")
            f.flush()
            bar.update()
    return rows


def failed_row(shape_id: str, reason: str) -> dict[str, object]:
    """The row of a mesh whose process ended before it was scored."""
    return dict.fromkeys(FIELDS, "") | {
        "id": shape_id,
        "status": "failed",
        "reason": reason,
        "outer": 0.0,
        "all": 0.0,
        "seconds": SECONDS,
    }


if __name__ == "__main__":
    sys.exit(main())
