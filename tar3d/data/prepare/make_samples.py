"""The work of `python -m tar3d.data.make_samples`: a .npz of samples for each mesh of a source."""

from __future__ import annotations

import contextlib
import os
from functools import partial
from typing import TYPE_CHECKING, Any

from tar3d import config as configuration
from tar3d.config import PointSamplingConfig, ViewConfig
from tar3d.data.formats.dataset_folder import complete_splits
from tar3d.data.formats.shards import ShardedFiles
from tar3d.data.prepare.dataset_tables import write_tables
from tar3d.data.prepare.find_shapes import Shape, find_shapes
from tar3d.data.prepare.sample_mesh import MeshJob, SampleResult, sample_mesh
from tar3d.data.prepare.sample_writer import SampleWriter, read_report
from tar3d.folders import printable, probe_output
from tar3d.io import read_json, write_json
from tar3d.parallel.processes import JobFailure, check_limits, parallel
from tar3d.parallel.ray_cluster import parallel_on_ray
from tar3d.runtime import progress_bar

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

# Columns of report.csv that `sample_shape` fills.
FACTS = [
    "faces",
    "components",
    "watertight",
    "buried_share",
    "thin_share",
    "inside_share",
    "label_confidence",
    "background_share",
    "object_span",
]
FIELDS = ["id", "file", "status", "reason", *FACTS, "seconds"]
# Settings that may gain keys from version to version.
SETTINGS = {"samples": PointSamplingConfig, "views": ViewConfig}


def make_samples(  # noqa: PLR0913  the flags of the command, one to one
    source: Path,
    out: Path,
    config: PointSamplingConfig,
    *,
    seed: int = 0,
    workers: int | None = 1,
    views: ViewConfig | None = None,
    shard_size: int = 0,
    seconds: float | None = None,
    gigabytes: float | None = None,
    ray: str | None = None,
) -> list[dict]:
    """Samples the meshes of `source` into the data set folder `out`; returns the report's rows.

    Writes samples/, report.csv, the tables and splits.json; views/ gets the images of `source`, and
    with `views` rendered views of the other shapes. `shard_size` packs that many shapes into a tar.
    `seconds` and `gigabytes` are limits for one mesh; without limits, one worker runs in this
    process, which suits meshes that are trusted. `workers` None means all cores; `ray` is the
    address of a cluster. Raises ValueError for settings that differ from those of an earlier run.
    """
    check_limits(seconds, gigabytes)
    probe_output(out, "--out")
    shapes = find_shapes(source)
    _check_settings(
        out,
        {
            "samples": configuration.to_mapping(config),
            "seed": seed,
            "views": configuration.to_mapping(views) if views else None,
        },
    )
    write_tables(shapes, source, out)
    usable = {shape_id: shape for shape_id, shape in shapes.items() if not shape.problem}
    done, jobs = _missing(out, usable, with_views=views is not None)
    function = partial(sample_mesh, config=config, seed=seed, views=views)
    limits = {"seconds": seconds, "gigabytes": gigabytes}
    if ray is None:
        num_workers = (os.cpu_count() or 1) if workers is None else workers
        results = parallel(function, jobs, num_workers, **limits)
    else:
        results = parallel_on_ray(function, jobs, ray, workers, **limits)
    with SampleWriter(out, FIELDS, dict(done), shard_size) as writer:
        for name, shape in shapes.items():
            if shape.problem:
                row = {"id": name, "file": printable(shape.mesh), "reason": shape.problem}
                writer.add(dict.fromkeys(FIELDS, "") | row | {"status": "refused"}, {})
        _write_results(results, writer, done, total=len(usable), missing=len(jobs))
    rows = writer.rows
    complete_splits(out, [i for i, r in rows.items() if r["status"] == "ok"])
    return [rows[i] for i in sorted(rows)]


def _write_results(
    results: Generator[tuple[MeshJob, SampleResult | JobFailure], None, None],
    writer: SampleWriter,
    done: dict[str, dict],
    *,
    total: int,
    missing: int,
) -> None:
    """Writes each result as it comes, with a progress bar; `done` has the rows of earlier runs."""
    refused = 0
    with (
        contextlib.closing(results),
        progress_bar(total=total, initial=total - missing, unit="mesh", desc="samples") as bar,
    ):
        for job, result in results:
            if isinstance(result, JobFailure):
                result = SampleResult(
                    {"status": "refused", "reason": f"{job.path}: {result.reason}"}
                )
            good = result.row["status"] == "ok"
            # a shape that only lacked views keeps the facts of its samples
            facts = done.get(job.id, {}) if good else {}
            row = dict.fromkeys(FIELDS, "") | facts | {"id": job.id, "file": str(job.path)}
            writer.add(row | result.row, result.files)
            refused += not good
            bar.set_postfix(refused=refused, refresh=False)
            bar.update()


def _missing(
    out: Path, shapes: dict[str, Shape], with_views: bool
) -> tuple[dict[str, dict], list[MeshJob]]:
    """Valid rows of earlier runs by id, and the jobs that are left; existing views are kept."""
    earlier = read_report(out, FIELDS)
    with_samples = {name.removesuffix(".npz") for name in ShardedFiles(out / "samples", ".npz")}
    viewed = {name.rpartition("/")[0] for name in ShardedFiles(out / "views", ".png")}
    done, jobs = {}, []
    for shape_id, shape in shapes.items():
        row = earlier.get(shape_id)
        if row and row["status"] == "ok" and row["file"] == str(shape.mesh):
            done[shape_id] = row
        parts = []
        if shape_id not in done or shape_id not in with_samples:
            parts.append("samples")
        if (with_views or shape.images) and shape_id not in viewed:
            parts.append("views")
        if parts:
            jobs.append(MeshJob(shape_id, shape.mesh, shape.images, tuple(parts)))
    return done, jobs


def _check_settings(out: Path, settings: dict[str, Any]) -> None:
    """Refuses settings that differ from those of an earlier run, and writes settings.json.

    Views may be added to samples later, and left out again.
    """
    path = out / "samples" / "settings.json"
    found = read_json(path) if path.is_file() else {}
    for name, value in settings.items():
        earlier = found.get(name)
        if earlier and name in SETTINGS:
            earlier = configuration.with_defaults(SETTINGS[name], earlier, str(path))
        if None not in (earlier, value) and earlier != value:
            raise ValueError(
                f"{out / 'samples'} was made with {name} {earlier}, not {value}: "
                "use another --out, or delete that folder"
            )
    write_json(
        path,
        {name: found.get(name) if value is None else value for name, value in settings.items()},
    )
