"""Meshes -> training samples, one .npz a shape:

    python -m tar3d.data.make_samples MESHES --out DATA --workers 2

MESHES is a folder of meshes (any depth) or a data set folder with meshes/ in it; without --out the samples go into that
same folder. Interrupted runs continue where they stopped. A mesh that cannot be used is listed in report.csv with the
reason, the rest goes on, and the exit status is 1. What a shape's samples are depends on its id and the settings alone,
never on the order or the number of workers.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import shutil
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from tar3d import config as configuration
from tar3d.config import SampleConfig, ViewConfig
from tar3d.data.folder import complete_splits, write_csv, write_json
from tar3d.data.report import write_report
from tar3d.data.shapes import save_samples
from tar3d.data.views import write_views
from tar3d.data.workers import parallel
from tar3d.mesh.load import SUPPORTED, MeshError, list_meshes, load_mesh
from tar3d.mesh.points import sample_shape

FACTS = ["faces", "components", "watertight", "inside_share", "label_confidence"]  # as `sample_shape` gives them
FIELDS = ["id", "file", "status", "reason", *FACTS, "seconds"]
FLUSH_EVERY = 200  # shapes between two writes of the report


def make_samples(source: Path, out: Path, config: SampleConfig, *, seed: int = 0, workers: int = 1,
                 views: ViewConfig | None = None) -> list[dict]:
    """Writes out/samples, report.csv and splits.json; with `views`, also out/views. Returns the rows of the report."""
    meshes = mesh_ids(source)
    _check_settings(out, {"samples": configuration.to_mapping(config), "seed": seed,
                          "views": configuration.to_mapping(views) if views else None})
    rows = {r["id"]: r for r in _read_report(out) if r["status"] == "ok" and r["file"] == str(meshes.get(r["id"]))
            and (out / "samples" / f"{r['id']}.npz").is_file()
            and (views is None or (out / "views" / r["id"] / "cameras.json").is_file())}
    waiting = {i: p for i, p in meshes.items() if i not in rows}
    job = partial(_one, out=out, config=config, seed=seed, views=views)
    with tqdm(total=len(meshes), initial=len(rows), unit="mesh", desc="samples") as bar:
        for done, row in enumerate(parallel(job, waiting.items(), workers), start=1):
            rows[row["id"]] = row
            bar.update()
            if done % FLUSH_EVERY == 0:
                _write_report(out, rows)
    _write_report(out, rows)
    for name in ("splits.json", "captions.csv", "manifest.csv"):
        if (source / name).is_file() and not (out / name).exists():
            shutil.copyfile(source / name, out / name)
    complete_splits(out, [i for i, r in rows.items() if r["status"] == "ok"])
    return [rows[i] for i in sorted(rows)]


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


def _one(named: tuple[str, Path], *, out: Path, config: SampleConfig, seed: int, views: ViewConfig | None) -> dict:
    start = time.perf_counter()
    shape_id, path = named
    row = dict.fromkeys(FIELDS, "") | {"id": shape_id, "file": str(path)}
    entropy = int.from_bytes(hashlib.sha256(f"{seed}:{shape_id}".encode()).digest()[:8], "big")
    try:
        mesh = load_mesh(path)
        samples, facts = sample_shape(mesh, config, entropy)
        save_samples(samples, out / "samples" / f"{shape_id}.npz")
        if views is not None:
            write_views(mesh, out / "views" / shape_id, views, np.random.default_rng([entropy, 1]))
        row |= {"status": "ok"} | {k: f"{v:.5f}" if isinstance(v, float) else v for k, v in facts.items()}
    except MeshError as e:
        row |= {"status": "refused", "reason": str(e)}
    return row | {"seconds": f"{time.perf_counter() - start:.3f}"}


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
    parser.add_argument("source", type=Path, help="folder of meshes, or data set folder with meshes/ in it")
    parser.add_argument("--out", type=Path, help="data set folder to write (default: the source folder)")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes (default: all cores)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--views", type=int, default=0, metavar="K", help="also render K views of each mesh (default: none)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings of SampleConfig, as in surface_points=16384")
    args = parser.parse_intermixed_args(argv)
    try:
        config = configuration.load(SampleConfig, None, args.overrides)
        views = ViewConfig(count=args.views) if args.views else None
        out = args.out or args.source
        rows = make_samples(args.source, out, config, seed=args.seed, workers=args.workers, views=views)
        write_report(out)
    except ValueError as e:
        parser.exit(2, f"{e}\n")
    refused = [r for r in rows if r["status"] != "ok"]
    print(f"{len(rows) - len(refused)} of {len(rows)} meshes sampled into {out / 'samples'}; "
          f"{len(refused)} refused ({out / 'report.csv'})")
    return 1 if refused else 0


if __name__ == "__main__":
    sys.exit(main())
