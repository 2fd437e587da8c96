"""Meshes -> training samples, one .npz a shape:

    python -m tar3d.data.make_samples MESHES --out DATA --workers 2

MESHES is a folder of meshes (any depth), a data set folder with meshes/ in it or a CSV table of meshes; without --out the
samples go into that same folder. Pictures, captions and splits that lie beside the meshes are taken over
(`tar3d.data.sources`); of a shape without pictures views are rendered. Interrupted runs continue where they stopped. A mesh
or picture that cannot be used is listed in report.csv with the reason, the rest goes on, and the exit status is 1. What a
shape's samples are depends on its id and the settings alone, never on the order or the number of workers.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from tar3d import config as configuration
from tar3d.config import PrepareConfig, SampleConfig, ViewConfig
from tar3d.data.folder import complete_splits, write_csv, write_json
from tar3d.data.report import write_report
from tar3d.data.shapes import save_samples
from tar3d.data.sources import Shape, find_shapes, write_tables
from tar3d.data.views import complete_views, has_views
from tar3d.data.workers import parallel
from tar3d.mesh.load import MeshError, load_mesh
from tar3d.mesh.points import sample_shape

# What `sample_shape` says of a mesh.
FACTS = ["faces", "components", "watertight", "buried_share", "thin_share", "inside_share", "label_confidence"]
FIELDS = ["id", "file", "status", "reason", *FACTS, "seconds"]
FLUSH_EVERY = 200  # shapes between two writes of the report


def make_samples(source: Path, out: Path, config: SampleConfig, *, seed: int = 0, workers: int = 1,
                 views: ViewConfig | None = None) -> list[dict]:
    """Writes out/samples, report.csv, the tables and splits.json. out/views gets the pictures of `source`, and with `views` those
    of shapes without pictures. Returns the rows of the report."""
    shapes = find_shapes(source)
    _check_settings(out, {"samples": configuration.to_mapping(config), "seed": seed,
                          "views": configuration.to_mapping(views) if views else None})
    write_tables(shapes, source, out)
    rows = {r["id"]: r for r in _read_report(out)
            if r["status"] == "ok" and r["id"] in shapes and r["file"] == str(shapes[r["id"]].mesh)
            and (out / "samples" / f"{r['id']}.npz").is_file()
            and (not (views or shapes[r["id"]].pictures) or has_views(out / "views" / r["id"]))}
    waiting = {i: shape for i, shape in shapes.items() if i not in rows}
    job = partial(_one, out=out, config=config, seed=seed, views=views)
    with tqdm(total=len(shapes), initial=len(rows), unit="mesh", desc="samples") as bar:
        for done, row in enumerate(parallel(job, waiting.items(), workers), start=1):
            rows[row["id"]] = row
            bar.update()
            if done % FLUSH_EVERY == 0:
                _write_report(out, rows)
    _write_report(out, rows)
    complete_splits(out, [i for i, r in rows.items() if r["status"] == "ok"])
    return [rows[i] for i in sorted(rows)]


def _one(named: tuple[str, Shape], *, out: Path, config: SampleConfig, seed: int, views: ViewConfig | None) -> dict:
    start = time.perf_counter()
    shape_id, shape = named
    row = dict.fromkeys(FIELDS, "") | {"id": shape_id, "file": str(shape.mesh)}
    entropy = int.from_bytes(hashlib.sha256(f"{seed}:{shape_id}".encode()).digest()[:8], "big")
    try:
        mesh = load_mesh(shape.mesh)
        samples, facts = sample_shape(mesh, config, entropy)
        save_samples(samples, out / "samples" / f"{shape_id}.npz")
        rng = np.random.default_rng([entropy, 1])
        left_out = complete_views(mesh, shape.pictures, out / "views" / shape_id, views, rng)
        row |= {"status": "ok", "reason": "; ".join(left_out)}
        row |= {k: f"{v:.5f}" if isinstance(v, float) else v for k, v in facts.items()}
    except MeshError as e:
        row |= {"status": "refused", "reason": str(e)}
    return row | {"seconds": f"{time.perf_counter() - start:.3f}"}


def _check_settings(out: Path, wanted: dict) -> None:
    """Refuses settings that differ from those of an earlier run; views may be added to samples, and left out again."""
    path = out / "samples" / "settings.json"
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    for name, value in wanted.items():
        earlier = found.get(name)
        if name == "views" and earlier:
            earlier = configuration.completed(ViewConfig, earlier, str(path))
        if None not in (earlier, value) and earlier != value:
            raise ValueError(f"{out / 'samples'} was made with {name} {earlier}, not {value}: "
                             "use another --out, or delete that folder")
    write_json(path, {name: found.get(name) if value is None else value for name, value in wanted.items()})


def _read_report(out: Path) -> list[dict]:
    path = out / "report.csv"
    if not path.is_file():
        return []
    with open(path, encoding="utf-8", newline="") as f:
        return list(csv.DictReader(f))


def _write_report(out: Path, rows: dict[str, dict]) -> None:
    write_csv(out / "report.csv", FIELDS, [rows[i] for i in sorted(rows)])


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="folder of meshes, data set folder, or table id,file (.csv)")
    parser.add_argument("--out", type=Path, help="data set folder to write (default: where the source is)")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes (default: all cores)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("overrides", nargs="*", metavar="key=value",
                        help="settings of PrepareConfig, as in surface_points=16384 views.count=8; views.count=0 renders none")
    args = parser.parse_intermixed_args(argv)
    try:
        config = configuration.load(PrepareConfig, None, args.overrides)
        out = args.out or (args.source.parent if args.source.is_file() else args.source)
        rows = make_samples(args.source, out, config.samples, seed=args.seed, workers=args.workers,
                            views=config.views if config.views.count else None)
        write_report(out)
    except ValueError as e:
        parser.exit(2, f"{e}\n")
    refused = [r for r in rows if r["status"] != "ok"]
    print(f"{len(rows) - len(refused)} of {len(rows)} meshes sampled into {out / 'samples'}; "
          f"{len(refused)} refused ({out / 'report.csv'})")
    flawed = [r for r in rows if r["status"] == "ok" and r["reason"]]
    if flawed:
        print(f"pictures of {len(flawed)} shapes were left out, the first: {flawed[0]['reason']}; "
              f"to try again delete the shapes' folders in {out / 'views'}")
    return 1 if refused or flawed else 0


if __name__ == "__main__":
    sys.exit(main())
