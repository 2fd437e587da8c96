"""What shows a wrong frame or wrong labels at a glance: surface points drawn over the views, query
points as a coloured cloud.

A camera of cameras.json says where each point of the surface must appear in its picture. Points
beside the object mean that pictures and samples are not in one frame: another axis is up, another
scale, the cameras of another shape.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from tar3d.condition.image import find_foreground

if TYPE_CHECKING:
    from tar3d.contracts import ShapeSamples
    from tar3d.mesh.render import Camera

INSIDE, OUTSIDE = (
    (213, 94, 0, 255),
    (0, 114, 178, 60),
)  # vermilion and blue: told apart by every kind of colour vision
_ON, _OFF = (0, 114, 178), (213, 94, 0)
OVERLAY_SIDE = 320  # of an overlay, pixels
_DRAWN_POINTS = 1500


@dataclass(frozen=True)
class View:
    """A picture (RGB on white) with the pixels where its object is, (height, width) bool, or None
    where that cannot be told."""

    picture: Image.Image
    mask: np.ndarray | None

    @classmethod
    def of(cls, rgba: Image.Image) -> View:
        """From what `tar3d.condition.image.load_image` gives; an `ImageError` where nothing stands
        out."""
        picture, mask, foreground = find_foreground(rgba)
        return cls(picture, None if foreground == "frame" else mask)


def project(points: np.ndarray, camera: Camera) -> np.ndarray:
    """`points` (N, 3) -> (N, 2) column and row in units of the picture's side, in [0, 1] within it;
    NaN behind the camera."""
    right, up, forward = camera.axes()
    from_camera = points.astype(np.float64) - camera.position
    depth = from_camera @ forward
    reach = np.where(depth > 0, depth, np.nan) * np.tan(np.radians(camera.field_of_view) / 2)
    return np.stack([1 + from_camera @ right / reach, 1 - from_camera @ up / reach], axis=1) / 2


def seen_at(places: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """(N,) bool: whether `places` (N, 2) as `project` gives them are on the object, or within one
    pixel of it."""
    height, width = mask.shape
    wide = np.asarray(Image.fromarray(mask).convert("L").filter(ImageFilter.MaxFilter(3))) > 0
    within = ((places >= 0) & (places < 1)).all(axis=1)  # False for NaN
    column, row = (np.where(within[:, None], places, 0) * (width, height)).astype(int).T
    return within & wide[row, column]


def draw_overlay(view: View, places: np.ndarray) -> Image.Image:
    """The picture, pale, with points over it: blue on the object, vermilion beside it; a few
    hundred are enough to see."""
    height, width = view.mask.shape if view.mask is not None else view.picture.size[::-1]
    scale = OVERLAY_SIDE / max(height, width)
    size = (round(width * scale), round(height * scale))
    overlay = Image.blend(view.picture, Image.new("RGB", view.picture.size, "white"), 0.35).resize(
        size, Image.Resampling.LANCZOS
    )
    draw = ImageDraw.Draw(overlay)
    places = places[:_DRAWN_POINTS]  # surface points are stored in random order
    on = seen_at(places, view.mask) if view.mask is not None else np.ones(len(places), bool)
    for chosen, colour, radius in ((on, _ON, 0.8), (~on, _OFF, 1.5)):
        for x, y in places[chosen & np.isfinite(places).all(axis=1)] * size:
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
    return overlay


def query_cloud(samples: ShapeSamples) -> bytes:
    """All query points as a binary PLY: vermilion inside, blue and mostly transparent outside.

    The properties `inside` and `near` (1 or 0) let a viewer filter, for the outside points of the
    volume hide the rest.
    """
    cloud = np.empty(
        len(samples.points),
        [("xyz", "<f4", 3), ("rgba", "u1", 4), ("inside", "u1"), ("near", "u1")],
    )
    cloud["xyz"] = samples.points
    cloud["rgba"] = np.where(samples.inside[:, None], np.uint8(INSIDE), np.uint8(OUTSIDE))
    cloud["inside"], cloud["near"] = samples.inside, samples.is_near
    properties = [f"float {axis}" for axis in "xyz"]
    properties += [f"uchar {name}" for name in ("red", "green", "blue", "alpha", "inside", "near")]
    header = [
        "ply",
        "format binary_little_endian 1.0",
        f"element vertex {len(cloud)}",
        *(f"property {p}" for p in properties),
        "end_header",
    ]
    return "\n".join(header).encode() + b"\n" + cloud.tobytes()


def png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format="PNG")
    return stream.getvalue()
