"""Meshes -> training samples, one .npz a shape:

    python -m tar3d.data.make_samples MESHES --out DATA --workers 2

MESHES is a folder of meshes (any depth) or a data set folder with meshes/ in it; without --out the samples go into that
same folder. A run that was interrupted or killed continues where it stopped. A mesh that cannot be used, or takes more time or
memory than is allowed, is listed in report.csv with the reason, the rest goes on, and the exit status is 1. What a shape's
samples are depends on its id and the settings alone, never on the order, the number of workers, or where they ran.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import sys
from functools import partial
from pathlib import Path

from tqdm import tqdm

from tar3d import config as configuration
from tar3d.config import SampleConfig, ViewConfig
from tar3d.data.cluster import parallel_on_ray
from tar3d.data.folder import complete_splits, write_json
from tar3d.data.output import Output, read_report
from tar3d.data.sample_mesh import Made, MeshJob, sample_mesh
from tar3d.data.store import Files
from tar3d.data.workers import Lost, check_limits, parallel
from tar3d.mesh.load import SUPPORTED, list_meshes

FACTS = ["faces", "components", "watertight", "inside_share", "label_confidence"]  # as `sample_shape` gives them
FIELDS = ["id", "file", "status", "reason", *FACTS, "seconds"]
# For one mesh. 9.9 M faces, about the most that `load_mesh` takes, need 70 s and 4 GB; text files up to ten times their size,
# which may be 1 GiB.
SECONDS, GIGABYTES = 300.0, 12.0


def make_samples(source: Path, out: Path, config: SampleConfig, *, seed: int = 0, workers: int | None = 1,
                 views: ViewConfig | None = None, shard_size: int = 0, seconds: float | None = None,
                 gigabytes: float | None = None, ray: str | None = None) -> list[dict]:
    """Writes out/samples, report.csv and splits.json; with `views`, also out/views. Returns the rows of the report.

    With a `shard_size`, that many shapes go into one tar. `seconds` and `gigabytes` are limits for one mesh; without them and
    with one worker all happens in this process, which is for meshes that one trusts. `ray` is the address of a cluster.
    `workers` None means all cores.
    """
    check_limits(seconds, gigabytes)
    meshes = mesh_ids(source)
    _check_settings(out, {"samples": configuration.to_mapping(config), "seed": seed,
                          "views": configuration.to_mapping(views) if views else None})
    kept, jobs = _what_is_missing(out, meshes, with_views=views is not None)
    refused = 0
    function = partial(sample_mesh, config=config, seed=seed, views=views)
    limits = {"seconds": seconds, "gigabytes": gigabytes}
    if ray is None:
        made = parallel(function, jobs, (os.cpu_count() or 1) if workers is None else workers, **limits)
    else:
        made = parallel_on_ray(function, jobs, ray, workers, **limits)
    with (Output(out, FIELDS, dict(kept), shard_size) as output, contextlib.closing(made),
          tqdm(total=len(meshes), initial=len(meshes) - len(jobs), unit="mesh", desc="samples") as bar):
        for job, result in made:
            if isinstance(result, Lost):
                result = Made({"status": "refused", "reason": f"{job.path}: {result.reason}"})
            good = result.row["status"] == "ok"
            facts = kept.get(job.id, {}) if good else {}  # of samples that only lacked views
            output.add(dict.fromkeys(FIELDS, "") | facts | {"id": job.id, "file": str(job.path)} | result.row, result.files)
            refused += not good
            bar.set_postfix(refused=refused, refresh=False)
            bar.update()
    rows = output.rows
    for name in ("splits.json", "captions.csv", "manifest.csv"):
        if (source / name).is_file() and not (out / name).exists():
            shutil.copyfile(source / name, out / name)
    complete_splits(out, [i for i, r in rows.items() if r["status"] == "ok"])
    return [rows[i] for i in sorted(rows)]


def _what_is_missing(out: Path, meshes: dict[str, Path], with_views: bool) -> tuple[dict[str, dict], list[MeshJob]]:
    """The rows of earlier runs that hold for `meshes`, by id, and what is still to be made."""
    earlier = read_report(out, FIELDS)
    names = {"samples": "{}.npz"} | ({"views": "{}/cameras.json"} if with_views else {})
    there = {part: Files(out / part, name.format("")) for part, name in names.items()}
    kept, jobs = {}, []
    for shape_id, path in meshes.items():
        row = earlier.get(shape_id)
        if row and row["status"] == "ok" and row["file"] == str(path):
            kept[shape_id] = row
        parts = tuple(p for p, name in names.items() if shape_id not in kept or name.format(shape_id) not in there[p])
        if parts:
            jobs.append(MeshJob(shape_id, path, parts))
    return kept, jobs


def mesh_ids(source: Path) -> dict[str, Path]:
    """Ids of the meshes under `source` (or source/meshes): the path below it without suffix, folders joined by "__"."""
    root = source / "meshes" if (source / "meshes").is_dir() else source
    if not root.is_dir():
        raise ValueError(f"{root} is not a folder of meshes")
    paths = list_meshes(root)
    if not paths:
        raise ValueError(f"{root} holds no meshes; looked for {', '.join(SUPPORTED)} at any depth")
    named: dict[str, Path] = {}
    for path in paths:
        relative = path.relative_to(root)
        short = "__".join(relative.with_suffix("").parts)
        taken = short in named  # a.obj beside a.glb: the later one keeps its suffix
        named["__".join(relative.parts) if taken else short] = path
    return named


def _check_settings(out: Path, wanted: dict) -> None:
    """Refuses settings that differ from those of an earlier run; views may be added to samples, and left out again."""
    path = out / "samples" / "settings.json"
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    for name, value in wanted.items():
        earlier = found.get(name)
        if None not in (earlier, value) and earlier != value:
            raise ValueError(f"{out / 'samples'} was made with {name} {earlier}, not {value}: "
                             "use another --out, or delete that folder")
    write_json(path, {name: found.get(name) if value is None else value for name, value in wanted.items()})


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="folder of meshes, or data set folder with meshes/ in it")
    parser.add_argument("--out", type=Path, help="data set folder to write (default: the source folder)")
    parser.add_argument("--workers", type=int, help="meshes at a time (default: all cores, of all machines with --ray)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--views", type=int, default=0, metavar="K", help="also render K views of each mesh (default: none)")
    parser.add_argument("--seconds", type=float, default=SECONDS,
                        help="a mesh that takes longer is refused (default: %(default)g)")
    parser.add_argument("--gigabytes", type=float, default=GIGABYTES,
                        help="a mesh that needs more memory is refused; only on Linux (default: %(default)g)")
    parser.add_argument("--shard-size", type=int, default=0, metavar="N", help="pack N shapes into a tar (default: loose files)")
    parser.add_argument("--ray", metavar="ADDRESS", help="run on the Ray cluster at this address; local starts one here")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings of SampleConfig, as in surface_points=16384")
    args = parser.parse_intermixed_args(argv)
    try:
        config = configuration.load(SampleConfig, None, args.overrides)
        views = ViewConfig(count=args.views) if args.views else None
        out = args.out or args.source
        rows = make_samples(args.source, out, config, seed=args.seed, workers=args.workers, views=views,
                            shard_size=args.shard_size, seconds=args.seconds, gigabytes=args.gigabytes, ray=args.ray)
    except ValueError as e:
        parser.exit(2, f"{e}\n")
    refused = [r for r in rows if r["status"] != "ok"]
    print(f"{len(rows) - len(refused)} of {len(rows)} meshes sampled into {out / 'samples'}; "
          f"{len(refused)} refused ({out / 'report.csv'})")
    return 1 if refused else 0


if __name__ == "__main__":
    sys.exit(main())
