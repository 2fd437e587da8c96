"""Makes the procedural data set: meshes, views and captions of chairs, cars, mugs and the like.

    python -m tar3d.data.toy --out data/toy --num 2000 --seed 0

It writes meshes/<id>.glb, views/<id>/<k>.png with cameras.json, captions.csv (up to four a shape,
the first names everything), manifest.csv (every parameter) and splits.json. The same seed gives the
same bytes with any number of processes, and shape i is the same in a set of any size. An
interrupted or smaller set is completed; one made with other settings is refused.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from tar3d import config as configuration
from tar3d.config import ToyConfig, ViewConfig
from tar3d.data.formats.dataset_folder import split_ids
from tar3d.data.formats.views import write_views
from tar3d.data.toy.shapes import generate
from tar3d.io import write_csv, write_json
from tar3d.mesh.export import save_mesh
from tar3d.mesh.points import signed_volume
from tar3d.parallel.processes import results

MANIFEST = ["id", "category", "faces", "volume", "parameters"]
VERSION = 2  # raise it when a seed gives other shapes than before


def make_toy_data(out: Path, num: int, seed: int, views: ViewConfig | None, workers: int) -> Path:
    """Writes or completes the set of `num` shapes; `views` None renders none. Returns `out`.

    Raises ValueError when `out` holds a set made with other settings.
    """
    if num < 1 or seed < 0 or workers < 1:
        raise ValueError(
            "a procedural set needs num >= 1, seed >= 0 and workers >= 1, "
            f"got {num}, {seed} and {workers}"
        )
    _check_stamp(
        out / "toy.json",
        {"version": VERSION, "seed": seed, "views": asdict(views) if views else None},
    )
    job = partial(_write_shape, out=out, seed=seed, views=views)
    rows = sorted(
        tqdm(results(job, range(num), workers), total=num, unit="shape", desc="shapes"),
        key=lambda row: row["index"],
    )
    write_csv(
        out / "captions.csv",
        ["id", "caption"],
        [{"id": r["id"], "caption": c} for r in rows for c in r["captions"]],
    )
    write_csv(out / "manifest.csv", MANIFEST, [{name: r[name] for name in MANIFEST} for r in rows])
    write_json(out / "splits.json", split_ids([r["id"] for r in rows]))
    return out


def _check_stamp(path: Path, settings: dict) -> None:
    """Writes the settings, or refuses those that differ from the ones that are there."""
    if not path.is_file():
        write_json(path, settings)
        return
    found = json.loads(path.read_text(encoding="utf-8"))
    if found.get("views"):
        found["views"] = configuration.with_defaults(ViewConfig, found["views"], str(path))
    if found != settings:
        raise ValueError(
            f"{path.parent} holds a procedural set made with {found}, not {settings}: "
            "choose another folder or delete it"
        )


def _write_shape(index: int, out: Path, seed: int, views: ViewConfig | None) -> dict:
    """Writes the missing files of one shape; returns its row of the manifest and its captions."""
    shape = generate(index, seed)
    mesh_file = out / "meshes" / f"{shape.id}.glb"
    if not mesh_file.is_file():
        save_mesh(shape.mesh, mesh_file)
    view_folder = out / "views" / shape.id
    if views is not None and not (view_folder / "cameras.json").is_file():
        write_views(shape.mesh, view_folder, views, np.random.default_rng([seed, index, 1]))
    return {
        "index": index,
        "id": shape.id,
        "captions": shape.captions,
        "category": shape.category,
        "faces": len(shape.mesh.faces),
        "volume": f"{signed_volume(shape.mesh):.6f}",
        "parameters": json.dumps(shape.parameters),
    }


def parse_arguments(argv: list[str] | None) -> tuple[argparse.Namespace, argparse.ArgumentParser]:
    """The parsed command line, and the parser for errors that are found later."""
    parser = argparse.ArgumentParser(
        prog="python -m tar3d.data.toy",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, help="data set folder to write")
    parser.add_argument(
        "--num", type=int, default=2000, help="number of shapes (default: %(default)s)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="another seed gives other shapes (default: %(default)s)"
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=os.cpu_count(),
        help="processes that make shapes at the same time (default: all cores)",
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="settings of the views, as in views.count=2 views.size=64; views.count=0 for none",
    )
    return parser.parse_intermixed_args(argv), parser


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    args, parser = parse_arguments(argv)
    try:
        views = configuration.load(ToyConfig, None, args.overrides).views
        make_toy_data(args.out, args.num, args.seed, views if views.count else None, args.workers)
    except ValueError as e:
        parser.exit(2, f"{e}\n")
    print(
        f"{args.num} shapes of seed {args.seed} in {args.out}; "
        f"next: python -m tar3d.data.make_samples {args.out}"
    )
    return 0
