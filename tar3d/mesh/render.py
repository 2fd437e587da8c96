"""Rendering of a `Mesh` by ray casting on the CPU (Embree): colour, coverage, normals and depth.

Needs no OpenGL and no display. Clay shading with a key light that moves with the camera and a fill
light from above; no shadows, no textures. A face is drawn the same from both sides, so a mesh whose
winding is wrong still reads well. Letters: S image side in pixels, K rays.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from embreex.mesh_construction import TriangleMesh
from embreex.rtcore_scene import EmbreeScene
from PIL import Image, ImageDraw, ImageFont
from scipy import sparse
from scipy.sparse import csgraph

from tar3d.contracts import Mesh
from tar3d.mesh.cameras import Camera, orbit
from tar3d.mesh.looks import Look, Surface, with_lines

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

_ALBEDO = np.array([0.80, 0.78, 0.75], dtype=np.float32)
_AMBIENT, _KEY, _FILL = 0.22, 0.62, 0.20
_KEY_DIRECTION = (-0.40, 0.45, 0.80)  # right, up, towards the viewer
# least cosine between a face's normal and the smooth one at its corner: edges of more than about 75
# degrees stay sharp
_CREASE_COSINE = 0.8
# A preview of a larger mesh draws it coarser: ray casting takes 200 bytes a face, and an image of a
# few hundred pixels shows no face of this size.
_PREVIEW_FACES = 2_000_000
_PREVIEW_CELL = 1 / 256  # about half a pixel of such an image
_GREYS = 64  # colours of an animation: clay has little else
_RAYS_AT_ONCE = 1 << 18  # bounds memory at about 60 MB for any image size


@dataclass(frozen=True)
class Render:
    """A rendered view.

    Without a `background`, `color` is the object's own even in pixels that it covers in part, and
    black where nothing is; with one, `color` is the finished image.
    """

    color: np.ndarray  # (S, S, 3) uint8
    mask: np.ndarray  # (S, S) float32, coverage in [0, 1]
    # (S, S, 3) float32, unit, world frame, on the viewer's side; zero where nothing is
    normal: np.ndarray
    depth: np.ndarray  # (S, S) float32, along the view direction; inf where nothing is
    background: tuple[int, int, int] | None = None


class Renderer:
    """Holds the ray-casting structure of one mesh, which costs more to build than an image."""

    def __init__(self, mesh: Mesh) -> None:
        self._scene = EmbreeScene()
        TriangleMesh(self._scene, mesh.vertices, mesh.faces.astype(np.int32))
        self._face_normals, self._corner_normals = _normals(mesh)
        self._faces = mesh.faces
        low, high = mesh.vertices.min(axis=0), mesh.vertices.max(axis=0)
        # (8, 3), the corners of the box around the mesh
        self._box = np.stack(np.meshgrid(*zip(low, high, strict=True)), axis=-1).reshape(-1, 3)

    def render(
        self,
        camera: Camera,
        size: int,
        *,
        supersample: int = 2,
        background: tuple[int, int, int] | None = None,
        look: Look | None = None,
    ) -> Render:
        """Renders `size` x `size` pixels, each the mean of supersample^2 rays; row 0 is the top.

        Without a `look` it is clay.

        Raises ValueError for a size or supersampling below 1.
        """
        if size < 1 or supersample < 1:
            raise ValueError(
                f"a render needs size >= 1 and supersample >= 1, got {size} and {supersample}"
            )
        left, top, right, bottom = self._extent(camera, size)
        rows = max(1, _RAYS_AT_ONCE // (max(1, right - left) * supersample**2))
        color, normal = (np.zeros((size, size, 3), dtype=np.float32) for _ in range(2))
        mask: np.ndarray = np.zeros((size, size), dtype=np.float32)
        depth = np.full_like(mask, np.inf)
        for start in range(top, bottom, rows):
            box = left, start, right, min(start + rows, bottom)
            where = np.s_[box[1] : box[3], left:right]
            color[where], mask[where], normal[where], depth[where] = self._band(
                camera, size, supersample, box, look
            )
        if look is not None and look.lines:
            color, mask = with_lines(color, mask, normal, depth, look)
        if background is not None:
            cover = mask[..., None]
            color = color * cover + np.asarray(background, dtype=np.float32) / 255 * (1 - cover)
        return Render(
            np.rint(color.clip(0, 1) * 255).astype(np.uint8), mask, normal, depth, background
        )

    def _extent(self, camera: Camera, size: int) -> tuple[int, int, int, int]:
        """Left, top, right and bottom of the pixels outside which no ray can hit the mesh."""
        right, up, depth = camera.axes() @ (self._box - np.asarray(camera.position)).T
        if depth.min() < 0.01 * depth.max():  # a corner that is not in front has no place
            return 0, 0, size, size
        focal = 1 / np.tan(np.radians(camera.field_of_view) / 2)
        x, y = right / depth * focal, -up / depth * focal  # in [-1, 1] within the image
        low, high = (
            ((np.array([edge(x), edge(y)]) + 1) * size / 2 + margin).clip(0, size).astype(int)
            for edge, margin in ((np.min, -1), (np.max, 2))
        )
        return int(low[0]), int(low[1]), int(high[0]), int(high[1])

    def _band(
        self,
        camera: Camera,
        size: int,
        supersample: int,
        box: tuple[int, int, int, int],
        look: Look | None,
    ) -> tuple[np.ndarray, ...]:
        """Color, coverage, normal and depth of the pixels in `box`: left, top, right, bottom."""
        left, top, right, bottom = box
        axes = camera.axes().astype(np.float32)
        fine = size * supersample
        half = np.tan(np.radians(camera.field_of_view) / 2)
        across = ((np.arange(fine, dtype=np.float32) + 0.5) / fine * 2 - 1) * np.float32(half)
        y = -across[top * supersample : bottom * supersample, None, None]
        x = across[left * supersample : right * supersample, None]
        # (K, 3), each one unit deep along the view direction
        rays = (x * axes[0] + y * axes[1] + axes[2]).reshape(-1, 3)
        origins = np.empty_like(rays)
        origins[:] = camera.position
        hits = self._scene.run(origins, rays, query="INTERSECT", output=True)
        hit = np.flatnonzero(hits["primID"] >= 0)
        face = hits["primID"][hit]

        u, v = hits["u"][hit, None], hits["v"][hit, None]
        corner = self._corner_normals[face]
        normal = corner[:, 0] * (1 - u - v) + corner[:, 1] * u + corner[:, 2] * v
        cosine = np.einsum("ij,ij->i", self._face_normals[face], rays[hit])
        is_back = cosine > 0
        normal = _unit(np.where(is_back[:, None], -normal, normal))

        width = right - left
        block = (bottom - top, supersample, width, supersample)
        pixel = np.arange(block[0] * width, dtype=np.int64).reshape(block[0], 1, width, 1)
        pixel = np.broadcast_to(pixel, block).reshape(-1)[hit]
        count = np.bincount(pixel, minlength=block[0] * width)
        weight = 1 / np.maximum(count, 1)

        def mean(values: np.ndarray) -> np.ndarray:
            total = np.bincount(pixel, values, minlength=len(count))
            return (total * weight).astype(np.float32).reshape(block[0], width)

        if look is None:
            color = mean(_light(normal, axes))[..., None] * _ALBEDO
        else:
            points = origins[hit] + hits["tfar"][hit, None] * rays[hit]
            surface = Surface(points, normal, -_unit(rays[hit]), self.parts[face], axes)
            shade = look.shade(surface)
            color = np.stack([mean(shade[:, i]) for i in range(3)], axis=-1)
        mask = (count / supersample**2).astype(np.float32).reshape(block[0], width)
        depth = np.where(mask > 0, mean(hits["tfar"][hit]), np.float32(np.inf))
        pixel_normal = _unit(np.stack([mean(normal[:, i]) for i in range(3)], axis=-1))
        return color, mask, pixel_normal, depth

    @cached_property
    def parts(self) -> np.ndarray:
        """The connected part of each face, (F,) int32 numbered from 0."""
        a, b, c = self._faces.T
        count = int(self._faces.max()) + 1
        ends = np.concatenate([a, b]), np.concatenate([b, c])
        edges = sparse.coo_array((np.ones(2 * len(a), dtype=bool), ends), (count, count))
        return csgraph.connected_components(edges, directed=False)[1][a]


def render(
    mesh: Mesh,
    camera: Camera,
    size: int,
    *,
    supersample: int = 2,
    background: tuple[int, int, int] | None = None,
) -> Render:
    """Renders one view; for several views of a mesh make one `Renderer`."""
    return Renderer(mesh).render(camera, size, supersample=supersample, background=background)


def rgba(view: Render) -> np.ndarray:
    """A render as (S, S, 4) uint8 with straight alpha, as in PNG files.

    Raises ValueError for a render with a background.
    """
    if view.background is not None:
        raise ValueError(
            "this render already has a background mixed in; render with background=None for an "
            "RGBA image"
        )
    alpha = np.rint(view.mask * 255).astype(np.uint8)
    return np.concatenate([view.color, alpha[..., None]], axis=-1)


def contact_sheet(rows: list[list[np.ndarray]], titles: list[str] | None = None) -> Image.Image:
    """A grid of images (S, S, 3) uint8 of one size on white, with `titles` above the columns.

    Raises ValueError without an image, and for images of different shapes.
    """
    if not rows or not rows[0]:
        raise ValueError("a contact sheet needs at least one image")
    height, width = rows[0][0].shape[:2]
    columns = max(len(row) for row in rows)
    gap, header = 4, 16 if titles else 0
    sheet = Image.new(
        "RGB", (columns * (width + gap) + gap, len(rows) * (height + gap) + gap + header), "white"
    )
    for i, row in enumerate(rows):
        for j, image in enumerate(row):
            if image.shape != (height, width, 3):
                raise ValueError(
                    f"the images of a contact sheet share one shape; got {image.shape} and "
                    f"{(height, width, 3)}"
                )
            corner = (gap + j * (width + gap), header + gap + i * (height + gap))
            sheet.paste(Image.fromarray(image), corner)
    draw = ImageDraw.Draw(sheet)
    for j, title in enumerate(titles or []):
        draw.text((gap + j * (width + gap), gap), title, fill="black")
    return sheet


def save_turntable(
    mesh: Mesh, path: Path, size: int = 256, frames: int = 36, seconds: float = 3.0
) -> None:
    """Saves a GIF of the mesh turning once about its up axis, in an endless loop."""
    images = [
        Image.fromarray(image).quantize(_GREYS)
        for image in render_previews(mesh, size, (360.0 * k / frames for k in range(frames)))
    ]
    images[0].save(
        path,
        save_all=True,
        append_images=images[1:],
        duration=round(1000 * seconds / frames),
        loop=0,
    )


def text_image(text: str, size: int) -> np.ndarray:
    """A text as an image (size, size, 3) uint8, for a contact sheet; cut after nine lines."""
    font = ImageFont.load_default(size / 14)
    image = Image.new("RGB", (size, size), "white")
    lines = textwrap.wrap(text, 24, max_lines=9, placeholder=" ...")
    ImageDraw.Draw(image).multiline_text(
        (size / 16, size / 16), "\n".join(lines), fill="black", font=font, spacing=size / 28
    )
    return np.asarray(image)


def _unit(vectors: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.where(length > 0, length, 1)


def _light(normal: np.ndarray, axes: np.ndarray) -> np.ndarray:
    """Brightness (K,) of unit normals that face the viewer, in [0, about 1]."""
    key = np.asarray(_KEY_DIRECTION, dtype=np.float32) / np.float32(np.linalg.norm(_KEY_DIRECTION))
    key = key @ (axes * np.array([[1], [1], [-1]], dtype=np.float32))
    return _AMBIENT + _KEY * np.maximum(normal @ key, 0) + _FILL * (0.5 + 0.5 * normal[:, 1])


def _normals(mesh: Mesh) -> tuple[np.ndarray, np.ndarray]:
    """Unit normals of the faces (F, 3) and of their corners (F, 3, 3), float32.

    The normal at a corner is the mean around its vertex, or the face's own at a crease.
    """
    corners = mesh.vertices[mesh.faces]  # (F, 3, 3)
    following = _unit(np.roll(corners, -1, axis=1) - corners)
    preceding = _unit(np.roll(corners, 1, axis=1) - corners)
    # weighing by the angle at the corner makes the mean independent of how a flat side is cut into
    # triangles
    angle = np.arccos(np.einsum("fij,fij->fi", following, preceding).clip(-1, 1))
    flat = _unit(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]))
    vertex, count = mesh.faces.ravel(), len(mesh.vertices)
    around = np.stack(
        [np.bincount(vertex, (angle * flat[:, i, None]).ravel(), count) for i in range(3)], axis=-1
    )
    smooth = _unit(around).astype(np.float32)[mesh.faces]  # (F, 3, 3)
    is_smooth = np.einsum("fij,fj->fi", smooth, flat) > _CREASE_COSINE
    return flat, np.where(is_smooth[..., None], smooth, flat[:, None])


def _clustered(mesh: Mesh, cell: float) -> Mesh:
    """`mesh` with the vertices of each cell of a grid merged into their mean.

    Faces that lose their area are dropped. A mesh that would lose all is returned as it is.
    """
    index = ((mesh.vertices - mesh.vertices.min(axis=0)) / cell).astype(np.int64)
    side = index.max(axis=0) + 1
    _, cluster = np.unique(np.ravel_multi_index(tuple(index.T), tuple(side)), return_inverse=True)
    cluster = cluster.astype(np.int32)
    count = np.bincount(cluster)
    vertices = np.stack(
        [np.bincount(cluster, mesh.vertices[:, i]) / count for i in range(3)], axis=-1
    )
    faces = cluster[mesh.faces]
    a, b, c = faces.T
    has_area = (a != b) & (b != c) & (c != a)
    return Mesh(vertices, faces[has_area]) if has_area.any() else mesh


def render_preview(
    mesh: Mesh | None, size: int = 192, azimuth: float = 30.0, elevation: float = 20.0
) -> np.ndarray:
    """A preview of a mesh on white, (size, size, 3) uint8; blank without a mesh.

    `azimuth` and `elevation` are in degrees (`orbit`). A very fine mesh is drawn coarser. For
    several previews of a mesh use `render_previews`.
    """
    return next(render_previews(mesh, size, [azimuth], elevation))


def render_previews(
    mesh: Mesh | None, size: int, azimuths: Iterable[float], elevation: float = 20.0
) -> Iterator[np.ndarray]:
    """The previews of `render_preview` from several azimuths, through one `Renderer`."""
    if mesh is not None and len(mesh.faces) > _PREVIEW_FACES:
        mesh = _clustered(mesh, _PREVIEW_CELL)
    renderer = None if mesh is None else Renderer(mesh)
    for azimuth in azimuths:
        if renderer is None:
            yield np.full((size, size, 3), 255, dtype=np.uint8)
        else:
            camera = orbit(azimuth, elevation, 5.5, 35.0)
            yield renderer.render(camera, size, background=(255, 255, 255)).color
