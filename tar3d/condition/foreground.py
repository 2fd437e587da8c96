"""Where the object of an image is, and what is uncertain about that.

`find_foreground` tells the object by the alpha channel of a cut-out, else by its difference to a
plain background (`tar3d.condition.background`). Pieces that are small beside the largest one and
lie apart from it are left out (`tar3d.condition.pieces`), and lines from side to side
(`tar3d.condition.lines`). A card, a frame line or a plate with
rounded corners is looked through: the object is what lies on it. Whatever was left out or is
uncertain is said in `Foreground.notes`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from PIL import Image
from scipy import ndimage

from tar3d.condition.background import (
    NOT_PLAIN,
    PLAIN_TOLERANCE,
    difference_to,
    inner_area,
    separate,
)
from tar3d.condition.hard_shadows import shadow_doubt
from tar3d.condition.lines import drop_lines
from tar3d.condition.masks import box_of
from tar3d.condition.pieces import EIGHT, cut_sides, drop_pieces

# Smallest alpha of the object, of 255: less than 5 % opaque is background.
VISIBLE_ALPHA = 13
# Smallest share of transparent pixels in a cut-out: less is rounded corners or an accident.
TRANSPARENT_SHARE = 0.01
# Where the alpha channel is below this share of the object's own, or shows something darker than
# DARK of 255 that is not opaque, it holds a haze or a shadow; FRINGE pixels around the object stay.
FAINT_SHARE, DARK, FRINGE = 0.35, 50, 3
WHITE = (255, 255, 255)
# A plate is an area with the object on it: it covers this share of the image along both axes and
# this share of its own box, and the object keeps this distance, of its smaller side, to its edge.
PLATE_EXTENT, PLATE_FILL, PLATE_MARGIN = 0.6, 0.75, 0.03
# It is a line if it covers less than PLATE_LINE of what it encloses. Else it comes as near to the
# frame on all sides as PLATE_BORDER, of the side, and the box of what lies on it takes PLATE_OBJECT
# of its own: a door with a knob is no plate, nor is one with a window on a page.
PLATE_LINE, PLATE_BORDER, PLATE_OBJECT = 0.15, 0.05, 0.04
PLATE_DEPTH = 3  # plates on plates that are looked through: a page, a card on it, its border
# Lightness of an object, of 255, of which hardly anything is seen on white, or of its shading.
NEARLY_WHITE, NEARLY_BLACK = 220, 60

FoundBy = Literal["alpha", "plain background", "frame"]


class ImageError(ValueError):
    """An image that cannot be used; the message is one sentence that a user can act on."""


@dataclass(frozen=True)
class Foreground:
    """`image` is RGB on white, `mask` (height, width) bool is True on the object.

    `found_by` says how the object was found: by alpha, by a plain background, or not at all (the
    mask is the whole frame). `notes` are clauses for the user on what was left out or is uncertain.
    """

    image: Image.Image
    mask: np.ndarray
    found_by: FoundBy
    notes: tuple[str, ...] = ()

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Left, top, right and bottom of the object in pixels; right and bottom are excluded."""
        return box_of(self.mask)


def find_foreground(rgba: Image.Image) -> Foreground:
    """The object of an RGBA image.

    Raises `ImageError` for a fully transparent image and for one in which nothing stands out.
    """
    alpha = np.asarray(rgba.getchannel("A"))
    visible = alpha >= VISIBLE_ALPHA
    if not visible.any():
        raise ImageError("the image is fully transparent: there is no object in it")
    rgb = Image.new("RGB", rgba.size, WHITE)
    rgb.paste(rgba, mask=rgba.getchannel("A"))
    if visible.mean() <= 1 - TRANSPARENT_SHARE:
        found = _cut_out(rgb, rgba, visible)
    else:
        found = _on_background(rgb)
    if found.found_by == "frame":
        return found
    found = _through_plates(found, rgb)
    return replace(found, notes=(*found.notes, *_doubts(found)))


def _cut_out(rgb: Image.Image, rgba: Image.Image, visible: np.ndarray) -> Foreground:
    """The object that an alpha channel shows, without hazes, shadows and stray pieces."""
    alpha, notes = np.asarray(rgba.getchannel("A")), []
    own = max(float(np.quantile(alpha, 0.995)), VISIBLE_ALPHA)  # alpha of the object itself
    faint = alpha < FAINT_SHARE * own
    black = (alpha < 0.9 * own) & (np.asarray(rgba)[..., :3].max(axis=2) < DARK)
    solid = visible & ~faint & ~black
    around = ndimage.binary_dilation(solid, EIGHT, iterations=FRINGE)
    doubtful = visible & (faint | black) & ~around
    mask = visible
    if doubtful.any() and solid.any():
        # A thin part that fills its pixels to a small share is no haze: hazes are wide.
        wide = ndimage.uniform_filter(doubtful.astype(np.float32), 2 * FRINGE + 1) > 0.5
        haze = ndimage.binary_propagation(wide & doubtful, EIGHT, mask=doubtful)
        mask = visible & ~haze
        if haze.sum() > 0.01 * mask.sum():
            notes.append("a nearly transparent haze or shadow was left out")
    if own < 0.75 * 255:
        notes.append(f"the object is only {own / 255:.0%} opaque")
    mask, lines, _ = drop_lines(mask)
    mask, more = drop_pieces(mask)
    return Foreground(_painted(rgb, visible & ~mask), mask, "alpha", (*notes, *lines, *more))


def _on_background(rgb: Image.Image, region: np.ndarray | None = None) -> Foreground:
    """What differs from a plain background, that of the border or within the outline of `region`.

    The mask is the whole frame where there is no plain background.
    """
    pixels = np.asarray(rgb)
    notes: tuple[str, ...] = ()
    separation = separate(pixels, region)
    if separation is None and region is None:
        region = inner_area(pixels)
        if region is not None:
            separation, notes = separate(pixels, region), ("bars along the sides were left out",)
    if separation is None:
        note = "the object fills the frame, or its background is not plain"
        return Foreground(rgb, np.ones(rgb.size[::-1], bool), "frame", (note,))
    if not separation.mask.any():
        raise ImageError("the image has a single colour: there is no object in it")
    mask = separation.mask
    if region is None:
        mask, left_out, doubtful = drop_lines(mask)
        notes = (*left_out, *doubtful)
    mask, stray = drop_pieces(mask, noisy=not separation.exact)
    white = ~mask
    if 255 - separation.colour.min() <= PLAIN_TOLERANCE:
        # A background that is white already stays as it is: painting would eat the lightest parts
        # of the object.
        white &= difference_to(pixels, separation.colour) > PLAIN_TOLERANCE
        if region is not None:
            white |= ~region
    doubt = shadow_doubt(pixels, mask, separation.colour, exact=separation.exact)
    notes = (*notes, *separation.notes, *stray, *doubt)
    return Foreground(_painted(rgb, white), mask, "plain background", notes)


def _painted(rgb: Image.Image, where: np.ndarray) -> Image.Image:
    """A copy of an image that is white in a mask; the image itself if the mask is empty."""
    if not where.any():
        return rgb
    painted = rgb.copy()
    painted.paste(WHITE, mask=Image.fromarray(where))
    return painted


def _through_plates(found: Foreground, rgb: Image.Image) -> Foreground:
    """The object on a plate, if that is what was found: a card, a frame line, rounded corners."""
    # Where the frame is not full, the object was cut out: no picture with rounded corners.
    cut_out = found.found_by == "alpha" and found.box != (0, 0, *rgb.size)
    around: tuple[int, int, int, int] = (0, 0, *rgb.size)
    for _ in range(PLATE_DEPTH):
        plate = _plate(found.mask)
        if plate is None:
            return found
        try:
            on_plate = _on_background(rgb, plate.region)
        except ImageError:
            return found
        outer = box_of(plate.region)
        margin = PLATE_MARGIN * min(outer[2] - outer[0], outer[3] - outer[1])
        # Shaded faces of an object with something on them are no plate: that is plain.
        if (
            on_plate.found_by == "frame"
            or NOT_PLAIN in on_plate.notes
            or min(_gaps(on_plate.box, outer)) < margin
        ):
            return found
        border = PLATE_BORDER * min(around[2] - around[0], around[3] - around[1])
        near = max(_gaps(found.box, around)) <= border
        large = _area(on_plate.box) >= PLATE_OBJECT * _area(outer)
        if cut_out or not (plate.is_line or (near and large)):
            note = "the object may be only what lies on it, if it is a plate or card"
            return replace(found, notes=(*found.notes, note)) if near or large else found
        note = "the object was taken to be what lies on a plain plate or within a frame"
        found = replace(on_plate, notes=tuple(dict.fromkeys((note, *on_plate.notes))))
        around = outer
    return found


def _gaps(box: tuple[int, int, int, int], around: tuple[int, int, int, int]) -> tuple[int, ...]:
    """Pixels between a box and the one around it, at the left, top, right and bottom."""
    return box[0] - around[0], box[1] - around[1], around[2] - box[2], around[3] - box[3]


def _area(box: tuple[int, int, int, int]) -> int:
    return (box[2] - box[0]) * (box[3] - box[1])


@dataclass(frozen=True)
class _Plate:
    """`region` (height, width) bool lies within an outline, which `is_line` says is but a line."""

    region: np.ndarray
    is_line: bool


def _plate(mask: np.ndarray) -> _Plate | None:
    """The area within the largest outline of a mask, if it can be a plate; None otherwise."""
    height, width = mask.shape
    left, top, right, bottom = box_of(mask)
    if right - left < PLATE_EXTENT * width or bottom - top < PLATE_EXTENT * height:
        return None
    labels, _ = ndimage.label(mask, EIGHT)
    boxes = [
        (rows.stop - rows.start) * (columns.stop - columns.start)
        for rows, columns in ndimage.find_objects(labels)
    ]
    outline = labels == int(np.argmax(boxes)) + 1
    filled = ndimage.binary_fill_holes(outline)
    if filled.sum() < PLATE_FILL * max(boxes):
        return None
    region = ndimage.binary_erosion(filled, iterations=max(3, round(0.01 * min(mask.shape))))
    is_line = bool(outline.sum() < PLATE_LINE * filled.sum())
    return _Plate(region, is_line) if region.any() else None


def _doubts(found: Foreground) -> list[str]:
    """Clauses on an object that is cut off by the frame, nearly white or nearly black."""
    notes = []
    if sides := cut_sides(found.mask):
        notes.append(f"the object touches the {' and '.join(sides)} of the image, as if cut off")
    lightness = float(np.median(np.asarray(found.image.convert("L"))[found.mask]))
    if lightness > NEARLY_WHITE:
        notes.append("the object is nearly white, and hardly shows on white")
    if lightness < NEARLY_BLACK:
        notes.append("the object is nearly black, and its shading hardly shows")
    return notes
