"""Views that a shape is conditioned on: views/<id>/<k>.png.

They are images of the user, or rendered ones; rendered ones have their cameras in cameras.json.
"""

from __future__ import annotations

import io
import os
import shutil
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from tar3d.condition.foreground import VISIBLE_ALPHA
from tar3d.condition.image import ImageError, load_image
from tar3d.data.formats.dataset_folder import mesh_path
from tar3d.data.formats.shards import ShardedFiles
from tar3d.io import json_bytes
from tar3d.mesh.cameras import orbit_cameras
from tar3d.mesh.load import MeshError, load_mesh
from tar3d.mesh.looks import draw_look
from tar3d.mesh.render import Renderer, render_preview, rgba

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tar3d.config import ViewConfig
    from tar3d.contracts import Mesh

WHITE = (255, 255, 255)


def write_views(mesh: Mesh, folder: Path, config: ViewConfig, rng: np.random.Generator) -> None:
    """Renders the views of a mesh into `folder`, which is replaced."""
    _write_folder(folder, view_files(mesh, config, rng))


def view_files(mesh: Mesh, config: ViewConfig, rng: np.random.Generator) -> dict[str, bytes]:
    """Renders the views of a mesh; returns their files and cameras.json, name -> content.

    Raises `MeshError` for a mesh of which a view shows nothing.
    """
    cameras, renderer, files = orbit_cameras(config, rng), Renderer(mesh), {}
    streams = rng.spawn(config.count) if config.variety else []
    for k, camera in enumerate(cameras):
        white = config.background == "white"
        look = draw_look(streams[k], config.variety) if config.variety else None
        background = WHITE if white else None
        view = renderer.render(camera, config.size, background=background, look=look)
        if not (np.rint(view.mask * 255) >= VISIBLE_ALPHA).any():
            raise MeshError(
                f"its view {k} of {config.size} pixels shows nothing: it is thinner than a pixel, "
                "or a stray part far away makes it small"
            )
        files[f"{k}.png"] = _png(Image.fromarray(view.color if white else rgba(view)))
    return files | {"cameras.json": json_bytes([camera.to_json() for camera in cameras])}


def image_files(images: Sequence[Path]) -> tuple[dict[str, bytes], list[str]]:
    """Images of the user as files of views, name -> content, and why some were left out.

    PNG files are copied, others are converted. Images of a views/ folder keep their cameras.json.
    """
    files: dict[str, bytes] = {}
    left_out = []
    for path in images:
        try:
            image = load_image(path)
        except ImageError as e:
            left_out.append(str(e))
        else:
            files[f"{len(files)}.png"] = (
                path.read_bytes() if path.suffix.lower() == ".png" else _png(image)
            )
    folders = {path.parent for path in images}
    if len(folders) == 1 and not left_out:
        cameras = folders.pop() / "cameras.json"
        if cameras.parent.parent.name == "views" and cameras.is_file():
            files["cameras.json"] = cameras.read_bytes()
    return files, left_out


def _png(image: Image.Image) -> bytes:
    content = io.BytesIO()
    image.save(content, format="PNG")
    return content.getvalue()


def _write_folder(folder: Path, files: dict[str, bytes]) -> None:
    """Replaces a folder by `files`, name -> content: all of them or none."""
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for name, content in files.items():
        (partial / name).write_bytes(content)
    shutil.rmtree(folder, ignore_errors=True)
    partial.replace(folder)


def view_names(views: ShardedFiles, ids: set[str] | None = None) -> dict[str, list[str]]:
    """Names of the .png files in `views` by shape id, in the order of their numbers.

    With `ids`, only those of these shapes.
    """
    names: dict[str, list[str]] = {}
    for name in views:
        shape_id, _, file = name.partition("/")
        if file.endswith(".png") and "/" not in file and (ids is None or shape_id in ids):
            names.setdefault(shape_id, []).append(name)
    for names_of_shape in names.values():
        names_of_shape.sort(key=lambda name: (len(PurePosixPath(name).stem), name))
    return names


class Views:
    """The views of a data set folder's shapes, one by one or in tar shards."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder) / "views"
        self.files = ShardedFiles(self.folder, ".png")
        self._names = view_names(self.files)

    def names(self, shape_id: str) -> list[str]:
        """`<id>/<k>.png` in the order of their numbers; empty for an unknown shape."""
        return self._names.get(shape_id, [])

    def load(self, name: str) -> Image.Image:
        """A view as RGBA; an `ImageError` names the file that cannot be used."""
        return load_image(self.files.where(name), self.files.read(name))


def mesh_images(folder: Path, ids: list[str]) -> list[np.ndarray]:
    """One rendered image (S, S, 3) uint8 of each shape's mesh, for previews.

    Blank for a set without report.csv, whose meshes are unknown. Raises ValueError when a mesh that
    report.csv names is gone.
    """
    known = (folder / "report.csv").is_file()
    return [
        render_preview(load_mesh(mesh_path(folder, shape_id)) if known else None)
        for shape_id in ids
    ]
