"""Condition views of a shape: views/<id>/<k>.png, and of rendered ones (RGBA) cameras.json."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from tar3d.condition.image import load_image
from tar3d.config import ViewConfig
from tar3d.contracts import Mesh
from tar3d.data.folder import atomic_write, mesh_path, write_json
from tar3d.data.store import Files
from tar3d.mesh.load import load_mesh
from tar3d.mesh.render import Renderer, orbit_cameras, picture, rgba


def write_views(mesh: Mesh, folder: Path, config: ViewConfig, rng: np.random.Generator) -> None:
    """cameras.json is written last, so a folder that has it is complete."""
    cameras = orbit_cameras(config, rng)
    renderer = Renderer(mesh)
    for k, camera in enumerate(cameras):
        with atomic_write(folder / f"{k}.png") as f:
            Image.fromarray(rgba(renderer.render(camera, config.size))).save(f, format="PNG")
    write_json(folder / "cameras.json", [camera.to_json() for camera in cameras])


class Views:
    """The pictures of a data set folder's shapes, one by one or in tar shards."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder) / "views"
        self._files = Files(self.folder, ".png")
        self._names: dict[str, list[str]] = {}
        for name in self._files:
            self._names.setdefault(name.rpartition("/")[0], []).append(name)

    def names(self, shape_id: str) -> list[str]:
        """`<id>/<k>.png`, in the order of their numbers; none of an unknown shape."""
        return sorted(self._names.get(shape_id, ()), key=lambda name: (len(name), name))

    def load(self, name: str) -> Image.Image:
        """RGBA; an `ImageError` says where the picture lies."""
        return load_image(self._files.where(name), self._files.read(name))


def mesh_pictures(folder: Path, ids: list[str]) -> list[np.ndarray]:
    """One picture (S, S, 3) uint8 of each shape's mesh, for previews; a ValueError when a mesh is not there any more. Blank of a
    set that has no report.csv, so that no meshes are known of it."""
    known = (folder / "report.csv").is_file()
    return [picture(load_mesh(mesh_path(folder, shape_id)) if known else None) for shape_id in ids]
