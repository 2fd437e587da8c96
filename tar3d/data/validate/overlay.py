"""Drawings that show a wrong frame or wrong labels: points over views, and a coloured cloud.

A camera of cameras.json says where each surface point must appear in its view. Points beside the
object mean that views and samples are not in one frame: another axis is up, the scale differs, or
the cameras are those of another shape.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from tar3d.condition.foreground import find_foreground

if TYPE_CHECKING:
    from tar3d.contracts import ShapeSamples
    from tar3d.mesh.cameras import Camera

# vermilion and blue, which every kind of colour vision distinguishes
INSIDE, OUTSIDE = (213, 94, 0, 255), (0, 114, 178, 60)
_ON, _OFF = (0, 114, 178), (213, 94, 0)
OVERLAY_SIDE = 320  # pixels
_DRAWN_POINTS = 1500


@dataclass(frozen=True)
class View:
    """A view, and where its object is."""

    image: Image.Image  # RGB on white
    mask: np.ndarray | None  # (height, width) bool, True on the object; None if that is unknown

    @classmethod
    def of(cls, rgba: Image.Image) -> View:
        """A view from an image of `load_image`; an `ImageError` if no object stands out."""
        found = find_foreground(rgba)
        return cls(found.image, None if found.found_by == "frame" else found.mask)


def project(points: np.ndarray, camera: Camera) -> np.ndarray:
    """Image coordinates (N, 2) of `points` (N, 3): column and row, in [0, 1] within the image.

    NaN behind the camera.
    """
    right, up, forward = camera.axes()
    from_camera = points.astype(np.float64) - camera.position
    depth = from_camera @ forward
    reach = np.where(depth > 0, depth, np.nan) * np.tan(np.radians(camera.field_of_view) / 2)
    return np.stack([1 + from_camera @ right / reach, 1 - from_camera @ up / reach], axis=1) / 2


def seen_at(coordinates: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """(N,) bool: True for image coordinates (N, 2) on the object or within a pixel of it."""
    height, width = mask.shape
    wide = np.asarray(Image.fromarray(mask).convert("L").filter(ImageFilter.MaxFilter(3)))
    in_range = (coordinates >= 0) & (coordinates < 1)  # False for NaN
    within = in_range[:, 0] & in_range[:, 1]
    column, row = (np.where(within[:, None], coordinates, 0) * (width, height)).astype(int).T
    return within & (wide[row, column] > 0)


def draw_overlay(view: View, coordinates: np.ndarray) -> Image.Image:
    """The image, pale, with points (N, 2) over it: blue on the object, vermilion beside it.

    Only the first of the points are drawn: a few hundred are enough to see.
    """
    height, width = view.mask.shape if view.mask is not None else view.image.size[::-1]
    scale = OVERLAY_SIDE / max(height, width)
    size = (round(width * scale), round(height * scale))
    white = Image.new("RGB", view.image.size, "white")
    overlay = Image.blend(view.image, white, 0.35).resize(size, Image.Resampling.LANCZOS)
    draw = ImageDraw.Draw(overlay)
    drawn = coordinates[:_DRAWN_POINTS]  # surface points are stored in random order
    on = seen_at(drawn, view.mask) if view.mask is not None else np.ones(len(drawn), bool)
    for chosen, colour, radius in ((on, _ON, 0.8), (~on, _OFF, 1.5)):
        for x, y in drawn[chosen & np.isfinite(drawn).all(axis=1)] * size:
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
    return overlay


def query_cloud(samples: ShapeSamples) -> bytes:
    """All query points as a binary PLY: vermilion inside, blue and mostly transparent outside.

    Outside points of the volume hide the rest; a viewer can filter by the properties `inside` and
    `near`, which are 1 or 0.
    """
    cloud = np.empty(
        len(samples.points),
        [("xyz", "<f4", 3), ("rgba", "u1", 4), ("inside", "u1"), ("near", "u1")],
    )
    cloud["xyz"] = samples.points
    cloud["rgba"] = np.where(
        samples.inside[:, None], np.array(INSIDE, np.uint8), np.array(OUTSIDE, np.uint8)
    )
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
    """The content of a PNG file."""
    stream = io.BytesIO()
    image.save(stream, format="PNG")
    return stream.getvalue()
