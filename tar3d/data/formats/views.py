"""Condition views of a shape: views/<id>/<k>.png, given or rendered, and cameras.json where they
were rendered."""

from __future__ import annotations

import io
import os
import shutil
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from PIL import Image

from tar3d.condition.image import ImageError, load_image
from tar3d.data.formats.dataset_folder import mesh_path
from tar3d.data.formats.shards import ShardedFiles
from tar3d.io import json_bytes
from tar3d.mesh.load import load_mesh
from tar3d.mesh.render import Camera, Renderer, orbit_cameras, picture, rgba

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from tar3d.config import ViewConfig
    from tar3d.contracts import Mesh

WHITE = (255, 255, 255)


def write_views(mesh: Mesh, folder: Path, config: ViewConfig, rng: np.random.Generator) -> None:
    """Renders into `folder`, which is replaced."""
    _write_folder(folder, view_files(mesh, config, rng))


def view_files(mesh: Mesh, config: ViewConfig, rng: np.random.Generator) -> dict[str, bytes]:
    """Rendered views by the names of their files, and cameras.json."""
    cameras, renderer = orbit_cameras(config, rng), Renderer(mesh)
    files = {
        f"{k}.png": _png(Image.fromarray(_pixels(renderer, camera, config)))
        for k, camera in enumerate(cameras)
    }
    return files | {"cameras.json": json_bytes([camera.to_json() for camera in cameras])}


def picture_files(pictures: Sequence[Path]) -> tuple[dict[str, bytes], list[str]]:
    """Given pictures by the names they get as views, and why some were left out. PNG files are
    copied, others converted; the cameras of views that were rendered come along."""
    files: dict[str, bytes] = {}
    left_out = []
    for path in pictures:
        try:
            image = load_image(path)
        except ImageError as e:
            left_out.append(str(e))
        else:
            files[f"{len(files)}.png"] = (
                path.read_bytes() if path.suffix.lower() == ".png" else _png(image)
            )
    folders = {path.parent for path in pictures}
    if len(folders) == 1 and not left_out:
        cameras = folders.pop() / "cameras.json"
        if cameras.parent.parent.name == "views" and cameras.is_file():
            files["cameras.json"] = cameras.read_bytes()
    return files, left_out


def _pixels(renderer: Renderer, camera: Camera, config: ViewConfig) -> np.ndarray:
    """(S, S, 4) uint8, or (S, S, 3) on white."""
    if config.background == "white":
        return renderer.render(camera, config.size, background=WHITE).color
    return rgba(renderer.render(camera, config.size))


def _png(image: Image.Image) -> bytes:
    content = io.BytesIO()
    image.save(content, format="PNG")
    return content.getvalue()


def _write_folder(folder: Path, files: dict[str, bytes]) -> None:
    """All of the files or none, in place of the folder that was there."""
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for name, content in files.items():
        (partial / name).write_bytes(content)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)


def view_names(views: ShardedFiles, wanted: set[str] | None = None) -> dict[str, list[str]]:
    """Shape id -> names of its .png pictures in `views`, in the order of their numbers; of the
    `wanted` ids alone, if given."""
    names: dict[str, list[str]] = {}
    for name in views:
        shape_id, _, file = name.partition("/")
        if file.endswith(".png") and "/" not in file and (wanted is None or shape_id in wanted):
            names.setdefault(shape_id, []).append(name)
    for of_one in names.values():
        of_one.sort(key=lambda name: (len(PurePosixPath(name).stem), name))
    return names


class Views:
    """The pictures of a data set folder's shapes, one by one or in tar shards."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder) / "views"
        self._files = ShardedFiles(self.folder, ".png")
        self._names = view_names(self._files)

    def names(self, shape_id: str) -> list[str]:
        """`<id>/<k>.png`, in the order of their numbers; none of an unknown shape."""
        return self._names.get(shape_id, [])

    def load(self, name: str) -> Image.Image:
        """RGBA; an `ImageError` says where the picture lies."""
        return load_image(self._files.where(name), self._files.read(name))


def mesh_pictures(folder: Path, ids: list[str]) -> list[np.ndarray]:
    """One picture (S, S, 3) uint8 of each shape's mesh, for previews; a ValueError when a mesh is
    not there any more. Blank of a set that has no report.csv, so that no meshes are known of it."""
    known = (folder / "report.csv").is_file()
    return [picture(load_mesh(mesh_path(folder, shape_id)) if known else None) for shape_id in ids]
