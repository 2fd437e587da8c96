"""Meshes -> training samples, one .npz a shape:

    python -m tar3d.data.make_samples MESHES --out DATA --workers 2

MESHES is a folder of meshes (any depth), a data set folder with meshes/ in it or a CSV table of
meshes; without --out the samples go into that same folder. Pictures, captions and splits that lie
beside the meshes are taken over (`tar3d.data.prepare.mesh_list`); of a shape without pictures views are
rendered. A run that was interrupted or killed continues where it stopped. A mesh or picture that
cannot be used, or a mesh that takes more time or memory than is allowed, is listed in report.csv
with the reason, the rest goes on, and the exit status is 1. What a shape's samples are depends on
its id and the settings alone, never on the order, the number of workers, or where they ran.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
from functools import partial
from pathlib import Path

from tqdm import tqdm

from tar3d import config as configuration
from tar3d.config import PointSamplingConfig, PrepareConfig, ViewConfig
from tar3d.data.formats.dataset_folder import complete_splits
from tar3d.data.formats.shards import ShardedFiles
from tar3d.data.prepare.mesh_list import Shape, find_shapes, write_tables
from tar3d.data.prepare.report import write_report
from tar3d.data.prepare.sample_mesh import MeshJob, SampleResult, sample_mesh
from tar3d.data.prepare.sample_writer import SampleWriter, read_report
from tar3d.io import write_json
from tar3d.parallel.processes import JobFailure, check_limits, parallel
from tar3d.parallel.ray_cluster import parallel_on_ray

# What `sample_shape` says of a mesh.
FACTS = [
    "faces",
    "components",
    "watertight",
    "buried_share",
    "thin_share",
    "inside_share",
    "label_confidence",
]
FIELDS = ["id", "file", "status", "reason", *FACTS, "seconds"]
# For one mesh. 9.9 M faces, about the most that `load_mesh` takes, need two minutes and 5 GB; text
# files up to ten times their size, which may be 1 GiB.
SECONDS, GIGABYTES = 300.0, 12.0
SETTINGS = {
    "samples": PointSamplingConfig,
    "views": ViewConfig,
}  # that may gain keys from version to version


def make_samples(
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
    """Writes out/samples, report.csv, the tables and splits.json. out/views gets the pictures of
    `source`, and with `views` those of shapes without pictures. Returns the rows of the report.

    With a `shard_size`, that many shapes go into one tar. `seconds` and `gigabytes` are limits for
    one mesh; without them and with one worker all happens in this process, which is for meshes that
    one trusts. `ray` is the address of a cluster. `workers` None means all cores.
    """
    check_limits(seconds, gigabytes)
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
    kept, jobs = _what_is_missing(out, shapes, with_views=views is not None)
    refused = 0
    function = partial(sample_mesh, config=config, seed=seed, views=views)
    limits = {"seconds": seconds, "gigabytes": gigabytes}
    if ray is None:
        made = parallel(
            function, jobs, (os.cpu_count() or 1) if workers is None else workers, **limits
        )
    else:
        made = parallel_on_ray(function, jobs, ray, workers, **limits)
    with (
        SampleWriter(out, FIELDS, dict(kept), shard_size) as output,
        contextlib.closing(made),
        tqdm(
            total=len(shapes), initial=len(shapes) - len(jobs), unit="mesh", desc="samples"
        ) as bar,
    ):
        for job, result in made:
            if isinstance(result, JobFailure):
                result = SampleResult(
                    {"status": "refused", "reason": f"{job.path}: {result.reason}"}
                )
            good = result.row["status"] == "ok"
            facts = kept.get(job.id, {}) if good else {}  # of samples that only lacked views
            output.add(
                dict.fromkeys(FIELDS, "")
                | facts
                | {"id": job.id, "file": str(job.path)}
                | result.row,
                result.files,
            )
            refused += not good
            bar.set_postfix(refused=refused, refresh=False)
            bar.update()
    rows = output.rows
    complete_splits(out, [i for i, r in rows.items() if r["status"] == "ok"])
    return [rows[i] for i in sorted(rows)]


def _what_is_missing(
    out: Path, shapes: dict[str, Shape], with_views: bool
) -> tuple[dict[str, dict], list[MeshJob]]:
    """The rows of earlier runs that hold for `shapes`, by id, and what is still to be made. Views
    that are there stay."""
    earlier = read_report(out, FIELDS)
    sampled = {name.removesuffix(".npz") for name in ShardedFiles(out / "samples", ".npz")}
    seen = {name.rpartition("/")[0] for name in ShardedFiles(out / "views", ".png")}
    kept, jobs = {}, []
    for shape_id, shape in shapes.items():
        row = earlier.get(shape_id)
        if row and row["status"] == "ok" and row["file"] == str(shape.mesh):
            kept[shape_id] = row
        parts = []
        if shape_id not in kept or shape_id not in sampled:
            parts.append("samples")
        if (with_views or shape.pictures) and shape_id not in seen:
            parts.append("views")
        if parts:
            jobs.append(MeshJob(shape_id, shape.mesh, shape.pictures, tuple(parts)))
    return kept, jobs


def _check_settings(out: Path, wanted: dict) -> None:
    """Refuses settings that differ from those of an earlier run; views may be added to samples, and
    left out again."""
    path = out / "samples" / "settings.json"
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    for name, value in wanted.items():
        earlier = found.get(name)
        if earlier and name in SETTINGS:
            earlier = configuration.with_defaults(SETTINGS[name], earlier, str(path))
        if None not in (earlier, value) and earlier != value:
            raise ValueError(
                f"{out / 'samples'} was made with {name} {earlier}, not {value}: "
                "use another --out, or delete that folder"
            )
    write_json(
        path, {name: found.get(name) if value is None else value for name, value in wanted.items()}
    )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "source", type=Path, help="folder of meshes, data set folder, or table id,file (.csv)"
    )
    parser.add_argument(
        "--out", type=Path, help="data set folder to write (default: where the source is)"
    )
    parser.add_argument(
        "--workers",
        type=int,
        help="meshes at a time (default: all cores, of all machines with --ray)",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--seconds",
        type=float,
        default=SECONDS,
        help="a mesh that takes longer is refused (default: %(default)g)",
    )
    parser.add_argument(
        "--gigabytes",
        type=float,
        default=GIGABYTES,
        help="a mesh that needs more memory is refused; only on Linux (default: %(default)g)",
    )
    parser.add_argument(
        "--shard-size",
        type=int,
        default=0,
        metavar="N",
        help="pack N shapes into a tar (default: loose files)",
    )
    parser.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="run on the Ray cluster at this address; local starts one here",
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="settings of PrepareConfig, as in surface_points=16384 views.count=8; views.count=0 renders none",
    )
    args = parser.parse_intermixed_args(argv)
    try:
        config = configuration.load(PrepareConfig, None, args.overrides)
        out = args.out or (args.source.parent if args.source.is_file() else args.source)
        rows = make_samples(
            args.source,
            out,
            config.samples,
            seed=args.seed,
            workers=args.workers,
            views=config.views if config.views.count else None,
            shard_size=args.shard_size,
            seconds=args.seconds,
            gigabytes=args.gigabytes,
            ray=args.ray,
        )
        write_report(out)
    except ValueError as e:
        parser.exit(2, f"{e}\n")
    refused = [r for r in rows if r["status"] != "ok"]
    print(
        f"{len(rows) - len(refused)} of {len(rows)} meshes sampled into {out / 'samples'}; "
        f"{len(refused)} refused ({out / 'report.csv'})"
    )
    flawed = [r for r in rows if r["status"] == "ok" and r["reason"]]
    if flawed:
        print(
            f"pictures of {len(flawed)} shapes were left out, the first: {flawed[0]['reason']}; "
            f"to try again delete the shapes' folders in {out / 'views'}"
        )
    return 1 if refused or flawed else 0
