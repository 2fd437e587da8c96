"""Is a data set what docs/data.md says, and does it look right?

    python -m tar3d.data.inspect DATA

Every file is held against the specification: key, dtype, shape, range, tables against files,
pictures against cameras. The first violation is printed with file and key, all are listed in
inspect.csv, and the exit status is 1 if there are any. For some shapes, spread evenly over the ids,
and for those that violate something, pictures are made to look at: <id>.ply has the query points,
vermilion inside and blue outside, <id>.png the surface points drawn over the views, so that a wrong
frame shows at once. index.md has the statistics and links to all of it.
"""

from __future__ import annotations

import argparse
import array
import functools
import os
import time
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from tqdm import tqdm

from tar3d.condition.image import ImageError
from tar3d.data.datasets.sampler import spread
from tar3d.data.prepare.contact_sheets import sheet, tile
from tar3d.data.prepare.report import escaped, quantile_table
from tar3d.data.validate.check_shapes import (
    FRAME_SCORE,
    SCORED_POINTS,
    Folder,
    Problem,
    check_shape,
)
from tar3d.data.validate.check_tables import check_tables, check_tokens, read_settings
from tar3d.data.validate.overlay import (
    OVERLAY_SIDE,
    View,
    draw_overlay,
    png,
    project,
    query_cloud,
    seen_at,
)
from tar3d.io import atomic_write, write_csv
from tar3d.mesh.render import orbit
from tar3d.metrics.summary import markdown_table
from tar3d.parallel.processes import results

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

BATCH = 32  # shapes a worker checks in one go
PICTURED_VIOLATIONS = 64  # at most as many shapes are pictured because of what is wrong with them
LISTED_KINDS = 20  # in index.md
FIELDS = ["kind", "file", "key", "found", "allowed", "shape"]


def inspect(
    data: Path, out: Path, *, limit: int | None = None, pictures: int = 16, workers: int = 1
) -> list[Problem]:
    """Checks the folder and at most `limit` shapes spread evenly over the ids, and writes `out`;
    returns all problems."""
    if not (data / "samples").is_dir():
        raise ValueError(
            f"{data} has no samples/ to inspect: make it with python -m tar3d.data.make_samples MESHES --out {data}"
        )
    for name, value in (("--limit", limit), ("--pictures", pictures)):
        if value is not None and value < 0:
            raise ValueError(f"{name} must be 0 or more, got {value}")
    settings, problems = read_settings(data)
    run = f"{os.getpid()} {time.time_ns()}"
    try:
        folder = _open(data, run)
    except ValueError as e:  # a shard is damaged, so what else the set holds is not known
        problems.append(Problem(str(data), "", str(e), "whole .tar shards"))
        _write_findings(
            out,
            problems,
            [f"# Inspection of {data.resolve().name}", "", f"Stopped: {escaped(str(e))}"],
        )
        return problems
    ids = list(folder.sample_names)
    if not ids:
        problems.append(
            Problem(
                str(data / "samples"),
                "",
                "no .npz, neither as a file nor in a shard",
                "one for each shape",
            )
        )
    problems += check_tables(data, folder.sample_names)
    problems += check_tokens(data, folder.view_names)
    chosen = ids if limit is None else [ids[k] for k in spread(len(ids), limit)]
    of_shapes, statistics = _check_all(chosen, data, run, workers)
    problems += of_shapes

    violating = dict.fromkeys(
        p.shape for p in problems if p.shape in folder.sample_names and not p.warning
    )
    pictured = dict.fromkeys(
        [chosen[k] for k in spread(len(chosen), pictures)] + list(violating)[:PICTURED_VIOLATIONS]
    )
    drawn = _write_pictures(folder, list(pictured), set(violating), out)
    _write_findings(out, problems, _index(data, len(ids), len(chosen), problems, statistics, drawn))
    return problems


@functools.lru_cache(1)
def _open(data: Path, run: str) -> Folder:
    """The folder as it was when `run` began: each process lists its files once."""
    return Folder.open(data, read_settings(data)[0])


def _check_all(
    ids: list[str], data: Path, run: str, workers: int
) -> tuple[list[Problem], dict[str, np.ndarray]]:
    """Problems in the order of `ids`, and each statistic (n,) of the shapes that have it."""
    batches = [ids[first : first + BATCH] for first in range(0, len(ids), BATCH)]
    found: dict[str, list[Problem]] = {}
    columns: dict[str, array.array] = defaultdict(lambda: array.array("f"))
    with tqdm(total=len(ids), unit="shape", desc="inspect") as bar:
        for batch in results(partial(_check_batch, data=data, run=run), batches, workers):
            for shape_id, (problems, statistics) in batch.items():
                if problems:
                    found[shape_id] = problems
                for name, value in statistics.items():
                    columns[name].append(value)
            bar.update(len(batch))
            bar.set_postfix(
                violations=sum(not p.warning for of_one in found.values() for p in of_one)
            )
    values = {name: np.array(column, dtype=np.float32) for name, column in columns.items()}
    return [p for i in ids for p in found.get(i, ())], {
        name: v[~np.isnan(v)] for name, v in values.items()
    }


def _check_batch(
    ids: list[str], *, data: Path, run: str
) -> dict[str, tuple[list[Problem], dict[str, float]]]:
    folder = _open(data, run)
    return {shape_id: check_shape(folder, shape_id) for shape_id in ids}


def _write_pictures(
    folder: Folder, ids: list[str], violating: set[str], out: Path
) -> dict[str, str]:
    """<id>.ply, <id>.png and the contact sheet; returns for each shape what stands in its row of
    index.md."""
    notes, tiles = {}, []
    for shape_id in tqdm(ids, unit="shape", desc="pictures"):
        try:
            samples = folder.read(shape_id)
        except (ValueError, OSError):  # among the problems already
            notes[shape_id] = "its samples cannot be read"
            continue
        with atomic_write(out / f"{shape_id}.ply") as f:
            f.write(query_cloud(samples))
        overlays, note = _overlays(folder, shape_id, samples.surface[:, :3])
        notes[shape_id] = note
        if overlays:
            tiles_of_one = [
                tile(image, name, text, side=OVERLAY_SIDE, flagged=bad)
                for name, image, text, bad in overlays
            ]
            with atomic_write(out / f"{shape_id}.png") as f:
                f.write(png(sheet(tiles_of_one, columns=4)))
            _, first, text, bad = min(
                overlays, key=lambda overlay: not overlay[3]
            )  # one that is flagged, else the first
        else:
            towards = orbit(30.0, 20.0, 5.5, 35.0)
            facing = (
                samples.surface[:, 3:] * (np.array(towards.position) - samples.surface[:, :3])
            ).sum(axis=1) > 0
            blank = View(Image.new("RGB", (OVERLAY_SIDE, OVERLAY_SIDE), "white"), None)
            first, text, bad = (
                draw_overlay(blank, project(samples.surface[facing, :3], towards)),
                note,
                False,
            )
        tiles.append(tile(first, shape_id, text, side=240, flagged=bad or shape_id in violating))
    if tiles:
        with atomic_write(out / "contact_sheet.png") as f:
            f.write(png(sheet(tiles, columns=6)))
    return notes


def _overlays(
    folder: Folder, shape_id: str, points: np.ndarray
) -> tuple[list[tuple[str, Image.Image, str, bool]], str]:
    """Of each view with a camera: its name, the overlay, what share of the points is on the object
    and whether that is too little; and a note on the whole."""
    names = folder.view_names.get(shape_id, [])
    if not names:
        return [], "no views"
    try:
        cameras = folder.cameras(shape_id)
    except (ValueError, OSError):
        return [], "cameras.json is damaged"
    if cameras is None:
        return [], "no cameras.json"
    overlays, scores = [], []
    for name, camera in zip(names, cameras, strict=False):
        try:
            view = folder.view(name)
        except (ImageError, OSError):
            continue
        places = project(points, camera)
        text, bad = "object fills the frame", False
        if view.mask is not None:
            score = seen_at(places[:SCORED_POINTS], view.mask).mean()
            bad = bool(score < FRAME_SCORE)
            text = f"{score:.1%} on the object" + (", frame?" if bad else "")
            scores.append(score)
        overlays.append(
            (
                f"view {name.rpartition('/')[2].removesuffix('.png')}",
                draw_overlay(view, places),
                text,
                bad,
            )
        )
    return (
        overlays,
        f"{min(scores):.1%} on the object at least"
        if scores
        else "no view shows where its object is",
    )


def _index(
    data: Path,
    total: int,
    checked: int,
    problems: list[Problem],
    statistics: dict[str, np.ndarray],
    pictured: dict[str, str],
) -> Iterator[str]:
    violations, warnings = ([p for p in problems if p.warning is kind] for kind in (False, True))
    yield from (
        f"# Inspection of {data.resolve().name}",
        "",
        f"{checked:,} of {total:,} shapes checked: {len(violations):,} "
        f"violations, {len(warnings):,} warnings, all of them in [inspect.csv](inspect.csv).",
    )
    for title, some in (("Violations", violations), ("Warnings", warnings)):
        kinds: dict[tuple[str, str], list[Problem]] = defaultdict(list)
        for problem in some:
            kinds[problem.key, problem.allowed].append(problem)
        most = sorted(kinds.items(), key=lambda kind: -len(kind[1]))[:LISTED_KINDS]
        if most:
            yield from ("", f"## {title}", "")
            yield from markdown_table(
                ["number", "key", "allowed", "the first"],
                [
                    [
                        f"{len(of_kind):,}",
                        key,
                        escaped(allowed),
                        escaped(f"{of_kind[0].file}: {of_kind[0].found}"),
                    ]
                    for (key, allowed), of_kind in most
                ],
            )
    if statistics:
        yield from (
            "",
            "## Statistics",
            "",
            "`frame` is the share of the surface points that the cameras put on the object, in "
            "the view where it is least.",
            "",
            *quantile_table(statistics),
        )
    if pictured:
        yield from (
            "",
            "## Pictures",
            "",
            "Points over the views: blue on the object, vermilion beside it. Each shape has "
            "<id>.ply, and <id>.png where there are cameras.",
            "",
            "![contact sheet](contact_sheet.png)",
            "",
        )
        yield from markdown_table(
            ["shape", "points over its views"],
            [[f"`{escaped(i)}`", note] for i, note in pictured.items()],
        )


def _write_findings(out: Path, problems: list[Problem], lines: Iterable[str]) -> None:
    write_csv(
        out / "inspect.csv",
        FIELDS,
        [
            {"kind": "warning" if p.warning else "violation"}
            | {name: getattr(p, name) for name in FIELDS[1:]}
            for p in problems
        ],
    )
    with atomic_write(out / "index.md", "w", encoding="utf-8") as f:
        f.write("\n".join(lines) + "\n")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="data set folder")
    parser.add_argument("--out", type=Path, help="folder for what is found (default: DATA/inspect)")
    parser.add_argument(
        "--limit",
        type=int,
        metavar="N",
        help="check N shapes, spread evenly over the ids (default: all)",
    )
    parser.add_argument(
        "--pictures",
        type=int,
        default=16,
        metavar="K",
        help="shapes to draw, besides those with violations (default: 16)",
    )
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count(), help="processes (default: all cores)"
    )
    args = parser.parse_args(argv)
    out = args.out or args.data / "inspect"
    try:
        problems = inspect(
            args.data, out, limit=args.limit, pictures=args.pictures, workers=args.workers
        )
    except ValueError as e:
        parser.exit(2, f"{e}\n")
    violations = [p for p in problems if not p.warning]
    if violations:
        print(f"first violation: {violations[0]}")
    print(
        f"{len(violations)} violations, {len(problems) - len(violations)} warnings: {out / 'index.md'}"
    )
    return 1 if violations else 0
