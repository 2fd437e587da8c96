"""The work of `python -m tar3d.data.inspect`: checks of a data set, and drawings of its shapes."""

from __future__ import annotations

import array
import functools
import os
import time
from collections import defaultdict
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from tar3d.condition.image import ImageError
from tar3d.data.datasets.spread import spread
from tar3d.data.prepare.contact_sheets import sheet, tile
from tar3d.data.prepare.report import escaped, quantile_table
from tar3d.data.validate.check_shapes import (
    FRAME_SCORE,
    SCORED_POINTS,
    Folder,
    Problem,
    ShapeCheck,
    check_shape,
)
from tar3d.data.validate.check_tables import (
    check_tables,
    check_tokens,
    known_splits,
    read_settings,
)
from tar3d.data.validate.check_twins import check_twins
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
from tar3d.mesh.cameras import orbit
from tar3d.metrics.summary import markdown_table
from tar3d.parallel.processes import results
from tar3d.runtime import progress_bar

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

BATCH = 32  # shapes a worker checks in one job
DRAWN_VIOLATIONS = 64  # shapes drawn because they have violations, at most
LISTED_GROUPS = 20  # groups of similar problems in index.md, at most
FIELDS = ["kind", "file", "key", "found", "allowed", "shape"]


def inspect(
    data: Path, out: Path, *, limit: int | None = None, images: int = 16, workers: int = 1
) -> list[Problem]:
    """Checks a data set and writes what it finds to `out`; returns all problems.

    `limit` is the number of shapes to check, `images` the number to draw, both spread evenly over
    the ids. Raises ValueError for a folder without samples/.
    """
    if not (data / "samples").is_dir():
        raise ValueError(
            f"{data} has no samples/ to inspect: "
            f"make it with python -m tar3d.data.make_samples MESHES --out {data}"
        )
    for name, value in (("--limit", limit), ("--pictures", images)):
        if value is not None and value < 0:
            raise ValueError(f"{name} must be 0 or more, got {value}")
    _, problems = read_settings(data)
    run = f"{os.getpid()} {time.time_ns()}"
    try:
        folder = _open(data, run)
    except ValueError as e:  # a damaged shard: the rest of the set is not known
        problems.append(Problem(str(data), "", str(e), "whole .tar shards"))
        lines = [f"# Inspection of {data.resolve().name}", "", f"Stopped: {escaped(str(e))}"]
        _write_findings(out, problems, lines)
        return problems
    ids = list(folder.sample_names)
    if not ids:
        found = "no .npz, neither as a file nor in a shard"
        problems.append(Problem(str(data / "samples"), "", found, "one for each shape"))
    problems += check_tables(data, folder.sample_names)
    problems += check_tokens(data, folder.view_names)
    checked = ids if limit is None else [ids[k] for k in spread(len(ids), limit)]
    shape_problems, statistics, outlines = _check_all(checked, data, run, workers)
    problems += shape_problems
    problems += check_twins(folder, known_splits(data), outlines)

    violating = dict.fromkeys(
        p.shape for p in problems if p.shape in folder.sample_names and not p.warning
    )
    drawn = dict.fromkeys(
        [checked[k] for k in spread(len(checked), images)] + list(violating)[:DRAWN_VIOLATIONS]
    )
    notes = _draw_shapes(folder, list(drawn), set(violating), out)
    _write_findings(
        out, problems, _index(data, len(ids), len(checked), problems, statistics, notes)
    )
    return problems


@functools.lru_cache(1)
def _open(data: Path, run: str) -> Folder:  # noqa: ARG001  `run` is a part of the cache's key
    """The folder as it was when a run began: each process lists its files once a run."""
    return Folder.open(data, read_settings(data)[0])


def _check_all(
    ids: list[str], data: Path, run: str, workers: int
) -> tuple[list[Problem], dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Problems in the order of `ids`, statistics and outlines.

    A statistic (n,) is over the shapes that have it; outlines are by id.
    """
    batches = [ids[first : first + BATCH] for first in range(0, len(ids), BATCH)]
    found: dict[str, list[Problem]] = {}
    columns: dict[str, array.array] = defaultdict(lambda: array.array("f"))
    outlines: dict[str, np.ndarray] = {}
    with progress_bar(total=len(ids), unit="shape", desc="inspect") as bar:
        for batch in results(partial(_check_batch, data=data, run=run), batches, workers):
            for shape_id, check in batch.items():
                if check.problems:
                    found[shape_id] = check.problems
                if check.outline is not None:
                    outlines[shape_id] = check.outline
                for name, value in check.statistics.items():
                    columns[name].append(value)
            bar.update(len(batch))
            bar.set_postfix(
                violations=sum(not p.warning for group in found.values() for p in group)
            )
    values = {name: np.array(column, dtype=np.float32) for name, column in columns.items()}
    numbers = {name: v[~np.isnan(v)] for name, v in values.items()}
    return [p for i in ids for p in found.get(i, ())], numbers, outlines


def _check_batch(ids: list[str], *, data: Path, run: str) -> dict[str, ShapeCheck]:
    folder = _open(data, run)
    return {shape_id: check_shape(folder, shape_id) for shape_id in ids}


@dataclass(frozen=True)
class _Overlay:
    """Surface points over one view."""

    title: str
    image: Image.Image
    note: str  # the share of points on the object
    bad: bool  # whether that share is too low


def _draw_shapes(folder: Folder, ids: list[str], violating: set[str], out: Path) -> dict[str, str]:
    """Writes <id>.ply, <id>.png and the contact sheet; returns a note on each shape."""
    notes, tiles = {}, []
    for shape_id in progress_bar(ids, unit="shape", desc="images"):
        try:
            samples = folder.read(shape_id)
        except (ValueError, OSError):  # listed as a problem already
            notes[shape_id] = "its samples cannot be read"
            continue
        with atomic_write(out / f"{shape_id}.ply") as f:
            f.write(query_cloud(samples))
        overlays, note = _overlays(folder, shape_id, samples.surface[:, :3])
        notes[shape_id] = note
        if overlays:
            overlay_tiles = [
                tile(o.image, o.title, o.note, side=OVERLAY_SIDE, flagged=o.bad) for o in overlays
            ]
            with atomic_write(out / f"{shape_id}.png") as f:
                f.write(png(sheet(overlay_tiles, columns=4)))
            first = min(overlays, key=lambda o: not o.bad)  # a bad one, else the first
        else:
            first = _Overlay("", _without_views(samples.surface), note, False)
        flagged = first.bad or shape_id in violating
        tiles.append(tile(first.image, shape_id, first.note, side=240, flagged=flagged))
    if tiles:
        with atomic_write(out / "contact_sheet.png") as f:
            f.write(png(sheet(tiles, columns=6)))
    return notes


def _without_views(surface: np.ndarray) -> Image.Image:
    """Surface points (N, 6) that face a fixed camera, on white."""
    camera = orbit(30.0, 20.0, 5.5, 35.0)
    facing = (surface[:, 3:] * (np.array(camera.position) - surface[:, :3])).sum(axis=1) > 0
    blank = View(Image.new("RGB", (OVERLAY_SIDE, OVERLAY_SIDE), "white"), None)
    return draw_overlay(blank, project(surface[facing, :3], camera))


def _overlays(folder: Folder, shape_id: str, points: np.ndarray) -> tuple[list[_Overlay], str]:
    """An overlay of `points` (N, 3) for each view with a camera, and a note on all of them."""
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
        coordinates = project(points, camera)
        note, bad = "object fills the frame", False
        if view.mask is not None:
            score = seen_at(coordinates[:SCORED_POINTS], view.mask).mean()
            bad = bool(score < FRAME_SCORE)
            note = f"{score:.1%} on the object" + (", frame?" if bad else "")
            scores.append(score)
        title = f"view {name.rpartition('/')[2].removesuffix('.png')}"
        overlays.append(_Overlay(title, draw_overlay(view, coordinates), note, bad))
    if not scores:
        return overlays, "no view shows where its object is"
    return overlays, f"{min(scores):.1%} on the object at least"


def _index(
    data: Path,
    total: int,
    checked: int,
    problems: list[Problem],
    statistics: dict[str, np.ndarray],
    drawn: dict[str, str],
) -> Iterator[str]:
    """The lines of index.md; `drawn` has a note on each shape that was drawn."""
    violations = [p for p in problems if not p.warning]
    warnings = [p for p in problems if p.warning]
    yield from (
        f"# Inspection of {data.resolve().name}",
        "",
        f"{checked:,} of {total:,} shapes checked: {len(violations):,} "
        f"violations, {len(warnings):,} warnings, all of them in [inspect.csv](inspect.csv).",
    )
    yield from _problem_table("Violations", violations)
    yield from _problem_table("Warnings", warnings)
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
    if drawn:
        yield from (
            "",
            "## Images",
            "",
            "Points over the views: blue on the object, vermilion beside it. Each shape has "
            "<id>.ply, and <id>.png where there are cameras.",
            "",
            "![contact sheet](contact_sheet.png)",
            "",
        )
        yield from markdown_table(
            ["shape", "points over its views"],
            [[f"`{escaped(i)}`", note] for i, note in drawn.items()],
        )


def _problem_table(title: str, problems: list[Problem]) -> Iterator[str]:
    """A table of the most frequent groups of problems; nothing without problems."""
    groups: dict[tuple[str, str], list[Problem]] = defaultdict(list)
    for problem in problems:
        groups[problem.key, problem.allowed].append(problem)
    most = sorted(groups.items(), key=lambda item: -len(item[1]))[:LISTED_GROUPS]
    if not most:
        return
    yield from ("", f"## {title}", "")
    yield from markdown_table(
        ["number", "key", "allowed", "the first"],
        [
            [
                f"{len(group):,}",
                key,
                escaped(allowed),
                escaped(f"{group[0].file}: {group[0].found}"),
            ]
            for (key, allowed), group in most
        ],
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
