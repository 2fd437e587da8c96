"""The work of `python -m tar3d.data.toy`: meshes, views and captions of procedural shapes."""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from tar3d import config as configuration
from tar3d.config import ViewConfig
from tar3d.data.formats.dataset_folder import split_ids
from tar3d.data.formats.views import write_views
from tar3d.data.toy.shapes import generate
from tar3d.io import write_csv, write_json
from tar3d.mesh.export import save_mesh
from tar3d.mesh.points import signed_volume
from tar3d.parallel.processes import results
from tar3d.runtime import progress_bar

if TYPE_CHECKING:
    from pathlib import Path

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
        progress_bar(results(job, range(num), workers), total=num, unit="shape", desc="shapes"),
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
