"""Contact sheets: a grid of tiles, each an image of a shape with its name below it."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from tar3d.mesh.load import load_mesh
from tar3d.mesh.render import contact_sheet, render_preview

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tar3d.data.formats.shards import ShardedFiles

TILE = 160  # pixels along the side of a tile's image
_FONT_SIZE, _LINE = 13, 16  # pixels
_INK, _GREY, _FLAG = (30, 30, 30), (110, 110, 110), (213, 94, 0)


def shape_image(views: ShardedFiles, names: list[str], mesh_file: str) -> Image.Image | None:
    """The first view of a shape, else its rendered mesh, else None."""
    try:
        if names:
            return Image.open(io.BytesIO(views.read(names[0]))).convert("RGBA")
        return Image.fromarray(render_preview(load_mesh(mesh_file), TILE))
    except (ValueError, OSError):  # a damaged or missing file: the tile stays blank
        return None


def tile(
    image: Image.Image | None,
    title: str,
    note: str = "",
    *,
    side: int = TILE,
    flagged: bool = False,
) -> np.ndarray:
    """A tile, (side + 52, side, 3) uint8: an image within a square of `side` on white, and text.

    The text is a title of at most two lines, cut in its middle to fit, and a note. A flagged tile
    has a frame.
    """
    canvas = Image.new("RGB", (side, side + 3 * _LINE + 4), "white")
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(_FONT_SIZE)
    if image is not None:
        scale = side / max(image.size)
        size = (max(1, round(scale * image.width)), max(1, round(scale * image.height)))
        image = image.convert("RGBA").resize(size, Image.Resampling.LANCZOS)
        canvas.paste(image, ((side - size[0]) // 2, (side - size[1]) // 2), image)
    else:
        draw.rectangle((0, 0, side - 1, side - 1), outline=(200, 200, 200))
        draw.text((side / 2, side / 2), "no image", fill=_GREY, font=font, anchor="mm")
    if flagged:
        draw.rectangle((0, 0, side - 1, side - 1), outline=_FLAG, width=3)
    lines = [(text, _INK) for text in _two_lines(title, font, side - 2)] + [
        (note, _FLAG if flagged else _GREY)
    ]
    for line, (text, colour) in enumerate(lines):
        draw.text((1, side + 2 + line * _LINE), text, fill=colour, font=font)
    return np.asarray(canvas)


def _two_lines(
    text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: float
) -> list[str]:
    """`text` as one or two lines of at most `width` pixels.

    A text that is too long loses its middle: the ends tell ids apart.
    """
    head = len(text)  # characters on the first line
    while head > 1 and font.getlength(text[:head]) > width:
        head -= 1
    if head == len(text):
        return [text]
    tail, cut = len(text) - head, ""
    while tail > 1 and font.getlength(cut + text[-tail:]) > width:
        tail, cut = tail - 1, "…"
    return [text[:head], cut + text[-tail:]]


def sheet(tiles: Iterable[np.ndarray], columns: int = 8) -> Image.Image:
    """Tiles of one size in a grid, row by row; a ValueError without any."""
    tiles = list(tiles)
    return contact_sheet(
        [tiles[first : first + columns] for first in range(0, len(tiles), columns)]
    )
