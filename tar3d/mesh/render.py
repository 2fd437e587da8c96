"""`Mesh` -> pictures by ray casting on the CPU (Embree): colour, coverage, normals and depth. Needs
no OpenGL, no display.

Clay shading with a key light that moves with the camera and a fill light from above; no shadows, no
textures. A face is drawn the same from both sides, so a mesh whose winding is wrong still reads
well. Letters: S picture side, K rays.
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
    from pathlib import Path

    from tar3d.config import ViewConfig

_ALBEDO = np.array([0.80, 0.78, 0.75], dtype=np.float32)
_AMBIENT, _KEY, _FILL = 0.22, 0.62, 0.20
_KEY_DIRECTION = (-0.40, 0.45, 0.80)  # right, up, towards the viewer
# of a face to the mean around its corner: edges of more than about 75 degrees stay sharp
_CREASE_COSINE = 0.8
# ray casting takes 200 bytes a face, and a picture of a few hundred pixels shows none of them
_PREVIEW_FACES = 2_000_000
_PREVIEW_CELL = 1 / 256  # about half a pixel of such a picture
_GREYS = 64  # colours of an animation: clay has little else
_RAYS_AT_ONCE = 1 << 18  # bounds memory at about 60 MB whatever the picture's size


@dataclass(frozen=True)
class Camera:
    """A pinhole camera with a square picture; `field_of_view` in degrees, `up` not parallel to the
    view direction."""

    position: tuple[float, float, float]
    target: tuple[float, float, float] = (0.0, 0.0, 0.0)
    up: tuple[float, float, float] = (0.0, 1.0, 0.0)
    field_of_view: float = 35.0

    def __post_init__(self) -> None:
        if not 0.0 < self.field_of_view < 180.0:
            raise ValueError(f"field_of_view must be in (0, 180) degrees, got {self.field_of_view}")
        forward = np.subtract(self.target, self.position)
        if not np.linalg.norm(np.cross(forward, self.up)) > 1e-9 * np.linalg.norm(forward):
            raise ValueError(
                f"a camera at {self.position} that looks at {self.target} cannot have up = {self.up}"
            )

    def axes(self) -> np.ndarray:
        """Unit rows right, up, forward in world coordinates, (3, 3)."""
        forward = np.subtract(self.target, self.position).astype(np.float64)
        forward /= np.linalg.norm(forward)
        right = np.cross(forward, self.up)
        right /= np.linalg.norm(right)
        return np.stack([right, np.cross(right, forward), forward])

    def to_json(self) -> dict:
        vectors = {name: list(getattr(self, name)) for name in ("position", "target", "up")}
        return {**vectors, "field_of_view": self.field_of_view}

    @classmethod
    def from_json(cls, values: dict) -> Camera:
        vectors = {name: tuple(map(float, values[name])) for name in ("position", "target", "up")}
        return cls(**vectors, field_of_view=float(values["field_of_view"]))


@dataclass(frozen=True)
class Render:
    """`color` (S, S, 3) uint8; `mask` (S, S) coverage in [0, 1]; `normal` (S, S, 3) unit, world
    frame, on the viewer's side, zero where nothing is; `depth` (S, S) along the view direction, inf
    where nothing is; the last three float32.

    Without a `background`, `color` is the object's own even in pixels it covers in part (black
    where nothing is); with one, it is the finished picture.
    """

    color: np.ndarray
    mask: np.ndarray
    normal: np.ndarray
    depth: np.ndarray
    background: tuple[int, int, int] | None = None


class Renderer:
    """Holds the ray-casting structure of one mesh, which costs more to build than a picture."""

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
        """A picture of `size` x `size` pixels, the mean of supersample^2 rays in each; row 0 is the
        top."""
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
            shade = shade * mask[..., None] + np.asarray(background, dtype=np.float32) / 255 * (
                1 - mask[..., None]
            )
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
        rays = (
            x.reshape(-1, 1) * axes[0] + y.reshape(-1, 1) * axes[1] + axes[2]
        )  # (K, 3), one unit deep each
        origins = np.broadcast_to(np.asarray(camera.position, dtype=np.float32), rays.shape)
        hits = self._scene.run(np.ascontiguousarray(origins), rays, query="INTERSECT", output=True)
        hit = np.flatnonzero(hits["primID"] >= 0)

        u, v = hits["u"][hit, None], hits["v"][hit, None]
        corner = self._corner_normals[hits["primID"][hit]]
        normal = corner[:, 0] * (1 - u - v) + corner[:, 1] * u + corner[:, 2] * v
        away = (
            np.einsum("ij,ij->i", self._face_normals[hits["primID"][hit]], rays[hit]) > 0
        )  # seen from its back
        normal = _unit(np.where(away[:, None], -normal, normal))

        block = (bottom - top, supersample, size, supersample)
        pixel = np.arange(block[0] * size, dtype=np.int64).reshape(block[0], 1, size, 1)
        pixel = np.broadcast_to(pixel, block).reshape(-1)[hit]
        count = np.bincount(pixel, minlength=block[0] * size)
        weight = 1 / np.maximum(count, 1)

        def mean(values: np.ndarray) -> np.ndarray:
            return (
                (np.bincount(pixel, values, minlength=len(count)) * weight)
                .astype(np.float32)
                .reshape(block[0], size)
            )

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
    """One picture; for several views of a mesh make one `Renderer`."""
    return Renderer(mesh).render(camera, size, supersample=supersample, background=background)


def rgba(picture: Render) -> np.ndarray:
    """(S, S, 4) uint8 with straight alpha, as PNG wants it; of a render without a background."""
    if picture.background is not None:
        raise ValueError(
            "this render already has a background mixed in; render with background=None for an RGBA picture"
        )
    alpha = np.rint(picture.mask * 255).astype(np.uint8)
    return np.concatenate([picture.color, alpha[..., None]], axis=-1)


def orbit(azimuth: float, elevation: float, distance: float, fov: float) -> Camera:
    """A camera that looks at the origin; angles in degrees, azimuth 0 from +Z, positive towards +X,
    elevation towards +Y."""
    a, e = np.radians(azimuth), np.radians(elevation)
    outward = np.array([np.cos(e) * np.sin(a), np.sin(e), np.cos(e) * np.cos(a)])
    up = np.array(
        [-np.sin(e) * np.sin(a), np.cos(e), -np.sin(e) * np.cos(a)]
    )  # also defined straight above
    return Camera(tuple((distance * outward).tolist()), (0.0, 0.0, 0.0), tuple(up.tolist()), fov)


def orbit_cameras(config: ViewConfig, rng: np.random.Generator) -> list[Camera]:
    """`config.count` cameras with angles uniform in the ranges of `config`."""
    angles = [
        (rng.uniform(*config.azimuth), rng.uniform(*config.elevation)) for _ in range(config.count)
    ]
    return [
        orbit(azimuth, elevation, config.distance, config.field_of_view)
        for azimuth, elevation in angles
    ]


def contact_sheet(rows: list[list[np.ndarray]], titles: list[str] | None = None) -> Image.Image:
    """Pictures (S, S, 3) uint8 of one size in a grid on white; `titles` are written above the
    columns."""
    if not rows or not rows[0]:
        raise ValueError("a contact sheet needs at least one picture")
    height, width = rows[0][0].shape[:2]
    columns = max(len(row) for row in rows)
    gap, header = 4, 16 if titles else 0
    sheet = Image.new(
        "RGB", (columns * (width + gap) + gap, len(rows) * (height + gap) + gap + header), "white"
    )
    for i, row in enumerate(rows):
        for j, picture in enumerate(row):
            if picture.shape != (height, width, 3):
                raise ValueError(
                    f"the pictures of a contact sheet share one shape; got {picture.shape} and {(height, width, 3)}"
                )
            sheet.paste(
                Image.fromarray(picture),
                (gap + j * (width + gap), header + gap + i * (height + gap)),
            )
    draw = ImageDraw.Draw(sheet)
    for j, title in enumerate(titles or []):
        draw.text((gap + j * (width + gap), gap), title, fill="black")
    return sheet


def save_turntable(
    mesh: Mesh, path: Path, size: int = 256, frames: int = 36, seconds: float = 3.0
) -> None:
    """A GIF of the mesh turning once about its up axis, without end."""
    pictures = [
        Image.fromarray(picture(mesh, size, 360.0 * k / frames)).quantize(_GREYS)
        for k in range(frames)
    ]
    pictures[0].save(
        path,
        save_all=True,
        append_images=pictures[1:],
        duration=round(1000 * seconds / frames),
        loop=0,
    )


def text_picture(text: str, size: int) -> np.ndarray:
    """(S, S, 3) uint8: a text where a picture would stand, in lines that fit; what does not is
    cut."""
    font = ImageFont.load_default(size / 14)
    image, lines = (
        Image.new("RGB", (size, size), "white"),
        textwrap.wrap(text, 24, max_lines=9, placeholder=" ..."),
    )
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
    """Unit normals of the faces (F, 3) and of their corners (F, 3, 3), float32: at a corner, the
    mean around its vertex, or the face's own where the two part at a crease."""
    corners = mesh.vertices[mesh.faces]  # (F, 3, 3)
    ahead = _unit(np.roll(corners, -1, axis=1) - corners)
    back = _unit(np.roll(corners, 1, axis=1) - corners)
    # weighing by the angle at the corner makes the mean independent of how a flat side is cut into
    # triangles
    angle = np.arccos(np.einsum("fij,fij->fi", ahead, back).clip(-1, 1))
    flat = _unit(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]))
    place, count = mesh.faces.ravel(), len(mesh.vertices)
    around = np.stack(
        [np.bincount(place, (angle * flat[:, i, None]).ravel(), count) for i in range(3)], axis=-1
    )
    smooth = _unit(around).astype(np.float32)[mesh.faces]  # (F, 3, 3)
    agree = np.einsum("fij,fj->fi", smooth, flat) > _CREASE_COSINE
    return flat, np.where(agree[..., None], smooth, flat[:, None])


def _clustered(mesh: Mesh, cell: float) -> Mesh:
    """`mesh` with the vertices of each cell of a grid drawn together in their mean, and without the
    faces that this closes."""
    place = ((mesh.vertices - mesh.vertices.min(axis=0)) / cell).astype(np.int64)
    side = place.max(axis=0) + 1
    _, cluster = np.unique(np.ravel_multi_index(tuple(place.T), tuple(side)), return_inverse=True)
    cluster = cluster.astype(np.int32)
    count = np.bincount(cluster)
    vertices = np.stack(
        [np.bincount(cluster, mesh.vertices[:, i]) / count for i in range(3)], axis=-1
    )
    faces = cluster[mesh.faces]
    a, b, c = faces.T
    kept = (a != b) & (b != c) & (c != a)
    return Mesh(vertices, faces[kept]) if kept.any() else mesh


def picture(
    mesh: Mesh | None, size: int = 192, azimuth: float = 30.0, elevation: float = 20.0
) -> np.ndarray:
    """The mesh on white, (size, size, 3) uint8, for previews; blank without a mesh. A very fine
    mesh is drawn coarser."""
    if mesh is None:
        return np.full((size, size, 3), 255, dtype=np.uint8)
    if len(mesh.faces) > _PREVIEW_FACES:
        mesh = _clustered(mesh, _PREVIEW_CELL)
    return render(
        mesh, orbit(azimuth, elevation, 5.5, 35.0), size, background=(255, 255, 255)
    ).color
