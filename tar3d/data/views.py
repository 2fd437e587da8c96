"""Rendered condition views of a shape: views/<id>/<k>.png (RGBA) and cameras.json."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from tar3d.config import ViewConfig
from tar3d.contracts import Mesh
from tar3d.data.folder import atomic_write, json_bytes, mesh_path
from tar3d.mesh.load import load_mesh
from tar3d.mesh.render import Renderer, orbit_cameras, picture, rgba


def write_views(mesh: Mesh, folder: Path, config: ViewConfig, rng: np.random.Generator) -> None:
    """cameras.json is written last, so a folder that has it is complete."""
    for name, content in view_files(mesh, config, rng).items():
        with atomic_write(folder / name) as f:
            f.write(content)


def view_files(mesh: Mesh, config: ViewConfig, rng: np.random.Generator) -> dict[str, bytes]:
    """What a shape's folder of views holds, by name, in the order in which it is to be written."""
    cameras = orbit_cameras(config, rng)
    renderer = Renderer(mesh)
    files = {}
    for k, camera in enumerate(cameras):
        content = io.BytesIO()
        Image.fromarray(rgba(renderer.render(camera, config.size))).save(content, format="PNG")
        files[f"{k}.png"] = content.getvalue()
    return files | {"cameras.json": json_bytes([camera.to_json() for camera in cameras])}


def list_views(folder: Path, shape_id: str) -> list[Path]:
    """The pictures of a shape, in the order of their names."""
    return sorted((folder / "views" / shape_id).glob("*.png"), key=lambda p: (len(p.stem), p.stem))


def mesh_pictures(folder: Path, ids: list[str]) -> list[np.ndarray]:
    """One picture (S, S, 3) uint8 of each shape's mesh, for previews; a ValueError when a mesh is not there any more."""
    return [picture(load_mesh(mesh_path(folder, shape_id))) for shape_id in ids]
