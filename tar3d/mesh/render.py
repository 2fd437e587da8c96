"""Rendering of a `Mesh` by ray casting on the CPU (Embree): colour, coverage, normals and depth.

Needs no OpenGL and no display. Clay shading with a key light that moves with the camera and a fill
light from above; no shadows, no textures. A face is drawn the same from both sides, so a mesh whose
winding is wrong still reads well. Letters: S image side in pixels, K rays.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from embreex.mesh_construction import TriangleMesh
from embreex.rtcore_scene import EmbreeScene
from PIL import Image, ImageDraw, ImageFont

from tar3d.contracts import Mesh

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from tar3d.config import ViewConfig

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
Vector = tuple[float, float, float]


@dataclass(frozen=True)
class Camera:
    """A pinhole camera with a square image.

    Raises ValueError for a field of view outside (0, 180) and for `up` along the view direction.
    """

    position: Vector
    target: Vector = (0.0, 0.0, 0.0)
    up: Vector = (0.0, 1.0, 0.0)
    field_of_view: float = 35.0  # degrees

    def __post_init__(self) -> None:
        if not 0.0 < self.field_of_view < 180.0:
            raise ValueError(f"field_of_view must be in (0, 180) degrees, got {self.field_of_view}")
        forward = np.subtract(self.target, self.position)
        if not np.linalg.norm(np.cross(forward, self.up)) > 1e-9 * np.linalg.norm(forward):
            raise ValueError(
                f"a camera at {self.position} that looks at {self.target} cannot have "
                f"up = {self.up}"
            )

    def axes(self) -> np.ndarray:
        """Unit rows right, up, forward in world coordinates, (3, 3)."""
        forward = np.subtract(self.target, self.position).astype(np.float64)
        forward /= np.linalg.norm(forward)
        right = np.cross(forward, self.up)
        right /= np.linalg.norm(right)
        return np.stack([right, np.cross(right, forward), forward])

    def to_json(self) -> dict:
        """The camera as plain values, for a JSON file."""
        vectors = {name: list(getattr(self, name)) for name in ("position", "target", "up")}
        return {**vectors, "field_of_view": self.field_of_view}

    @classmethod
    def from_json(cls, values: dict) -> Camera:
        """The camera of such values; KeyError, TypeError or ValueError where they make none."""
        position, target, up = (_vector(values[name]) for name in ("position", "target", "up"))
        return cls(position, target, up, float(values["field_of_view"]))


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

    def render(
        self,
        camera: Camera,
        size: int,
        *,
        supersample: int = 2,
        background: tuple[int, int, int] | None = None,
    ) -> Render:
        """Renders `size` x `size` pixels, each the mean of supersample^2 rays; row 0 is the top.

        Raises ValueError for a size or supersampling below 1.
        """
        if size < 1 or supersample < 1:
            raise ValueError(
                f"a render needs size >= 1 and supersample >= 1, got {size} and {supersample}"
            )
        rows = max(1, _RAYS_AT_ONCE // (size * supersample**2))
        bands = [
            self._band(camera, size, supersample, top, min(top + rows, size))
            for top in range(0, size, rows)
        ]
        shade, mask, normal, depth = (np.concatenate(parts) for parts in zip(*bands, strict=True))
        if background is not None:
            cover = mask[..., None]
            shade = shade * cover + np.asarray(background, dtype=np.float32) / 255 * (1 - cover)
        color = np.rint(shade.clip(0, 1) * 255).astype(np.uint8)
        return Render(color, mask, normal, depth, background)

    def _band(
        self, camera: Camera, size: int, supersample: int, top: int, bottom: int
    ) -> tuple[np.ndarray, ...]:
        """Shade, coverage, normal and depth of the pixel rows top..bottom."""
        axes = camera.axes().astype(np.float32)
        fine = size * supersample
        half = np.tan(np.radians(camera.field_of_view) / 2)
        across = ((np.arange(fine, dtype=np.float32) + 0.5) / fine * 2 - 1) * np.float32(half)
        y, x = np.meshgrid(-across[top * supersample : bottom * supersample], across, indexing="ij")
        # (K, 3), each one unit deep along the view direction
        rays = x.reshape(-1, 1) * axes[0] + y.reshape(-1, 1) * axes[1] + axes[2]
        origins = np.broadcast_to(np.asarray(camera.position, dtype=np.float32), rays.shape)
        hits = self._scene.run(np.ascontiguousarray(origins), rays, query="INTERSECT", output=True)
        hit = np.flatnonzero(hits["primID"] >= 0)

        u, v = hits["u"][hit, None], hits["v"][hit, None]
        corner = self._corner_normals[hits["primID"][hit]]
        normal = corner[:, 0] * (1 - u - v) + corner[:, 1] * u + corner[:, 2] * v
        cosine = np.einsum("ij,ij->i", self._face_normals[hits["primID"][hit]], rays[hit])
        is_back = cosine > 0
        normal = _unit(np.where(is_back[:, None], -normal, normal))

        block = (bottom - top, supersample, size, supersample)
        pixel = np.arange(block[0] * size, dtype=np.int64).reshape(block[0], 1, size, 1)
        pixel = np.broadcast_to(pixel, block).reshape(-1)[hit]
        count = np.bincount(pixel, minlength=block[0] * size)
        weight = 1 / np.maximum(count, 1)

        def mean(values: np.ndarray) -> np.ndarray:
            total = np.bincount(pixel, values, minlength=len(count))
            return (total * weight).astype(np.float32).reshape(block[0], size)

        shade = _light(normal, axes)
        mask = (count / supersample**2).astype(np.float32).reshape(block[0], size)
        depth = np.where(mask > 0, mean(hits["tfar"][hit]), np.float32(np.inf))
        pixel_normal = _unit(np.stack([mean(normal[:, i]) for i in range(3)], axis=-1))
        return mean(shade)[..., None] * _ALBEDO, mask, pixel_normal, depth


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


def orbit(azimuth: float, elevation: float, distance: float, fov: float) -> Camera:
    """A camera that looks at the origin from `distance`; all angles in degrees.

    Azimuth 0 is on +Z, positive towards +X; elevation is positive towards +Y.
    """
    a, e = np.radians(azimuth), np.radians(elevation)
    outward = np.array([np.cos(e) * np.sin(a), np.sin(e), np.cos(e) * np.cos(a)])
    # also defined straight above the origin
    up = np.array([-np.sin(e) * np.sin(a), np.cos(e), -np.sin(e) * np.cos(a)])
    return Camera(_vector(distance * outward), (0.0, 0.0, 0.0), _vector(up), fov)


def _vector(values: Iterable[float]) -> Vector:
    x, y, z = map(float, values)
    return x, y, z


def orbit_cameras(config: ViewConfig, rng: np.random.Generator) -> list[Camera]:
    """`config.count` cameras with angles uniform in the ranges of `config`."""
    (left, right), (low, high) = config.azimuth, config.elevation
    angles = [(rng.uniform(left, right), rng.uniform(low, high)) for _ in range(config.count)]
    return [
        orbit(azimuth, elevation, config.distance, config.field_of_view)
        for azimuth, elevation in angles
    ]


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
