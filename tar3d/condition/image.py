"""Image file -> the square of pixels that an image encoder sees, in training and inference alike.

`load_image` reads anything Pillow reads and returns RGBA with the right pixels: EXIF rotation
applied, 16-bit scaled (not clipped) to 8 bit, palettes and colour keys resolved into alpha, CMYK
converted. `preprocess` finds the object, cuts it out and centres it on white. What it decides
depends on what the alpha channel holds, never on the file's mode, so an RGB image and its opaque
RGBA twin give the same pixels.

Refused, each with an `ImageError` of one sentence: files that are no image or are cut short,
animations and multi-page files (which frame is the object?), floating-point pixels (no defined
white), images above `MAX_PIXELS` (known from the header, before anything is decoded), and images in
which nothing stands out. Colour profiles are ignored.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from PIL import Image, ImageChops, ImageOps, UnidentifiedImageError

from tar3d.folders import FoundFiles, find_files

if TYPE_CHECKING:
    from tar3d.config import ImageEncoderConfig

MAX_PIXELS = 64_000_000  # about 0.7 GB while it is prepared
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif")
# Smallest alpha of the object, of 255: less than 5 % opaque is background.
VISIBLE_ALPHA = 13
# Smallest share of transparent pixels in a cut-out: less is rounded corners or an accident.
TRANSPARENT_SHARE = 0.01
# Largest difference, of 255 in any channel, within a plain background: JPEG noise stays below.
PLAIN_TOLERANCE = 10
# Share of the border pixels that must agree; the rest may be an object that leaves the frame.
PLAIN_SHARE = 0.9
WHITE = (255, 255, 255)

# Formats whose first frame is the image, the others being previews or layers.
_COMPOSITES = {"MPO", "PSD"}
# What Pillow's decoders raise for damaged files, found by feeding them damaged files.
_DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    TypeError,
    RuntimeError,
    struct.error,
    zlib.error,
)

Foreground = Literal["alpha", "plain background", "frame"]


class ImageError(ValueError):
    """An image that cannot be used; the message is one sentence that a user can act on."""


@dataclass(frozen=True)
class Prepared:
    """`pixels` (S, S, 3) uint8, the object centred on white.

    `foreground` says how the object was found: by alpha, by a plain background, or not at all (the
    whole frame).
    """

    pixels: np.ndarray
    foreground: Foreground

    @property
    def warning(self) -> str | None:
        """A sentence for the user about the result, or None."""
        if self.foreground == "frame":
            return "the object fills the frame; give a transparent or plain background"
        return None


def find_images(path: str | Path) -> FoundFiles:
    """`path` itself if it is a file, else the images directly inside the folder, sorted by name.

    Raises `ImageError` when there is none.
    """
    path = Path(path)
    if not path.is_dir():
        if not path.exists():
            raise ImageError(f"image {path} does not exist")
        return FoundFiles(path.parent, IMAGE_SUFFIXES, [path])
    try:
        found = find_files(path, IMAGE_SUFFIXES, deep=False)
    except OSError as e:
        raise ImageError(f"folder {path} cannot be read ({e.strerror or e})") from e
    if not found.files and not found.unusable:
        raise ImageError(
            "; ".join(
                [
                    f"folder {path} holds no images; looked for {', '.join(IMAGE_SUFFIXES)}",
                    *found.notes(),
                ]
            )
        )
    return found


def load_image(path: str | Path, content: bytes | None = None) -> Image.Image:
    """Reads one still image as RGBA, upright.

    `content` holds its bytes where it is not a file of its own; `path` then only names it. Raises
    `ImageError`, which names the file.
    """
    path = Path(path)
    if content is None and not path.is_file():
        raise ImageError(f"image {path} {'is a folder' if path.is_dir() else 'does not exist'}")
    try:
        with warnings.catch_warnings():
            # The limit below is stricter and says more.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(path if content is None else io.BytesIO(content))
    except UnidentifiedImageError as e:
        raise ImageError(f"{path} is not an image that can be read; save it as PNG or JPEG") from e
    except Image.DecompressionBombError as e:
        raise ImageError(
            f"{path} has far more than the {MAX_PIXELS:,} pixels that are allowed; scale it down"
        ) from e
    except _DECODE_ERRORS as e:
        raise ImageError(f"{path} cannot be opened as an image: {e}") from e
    with image:
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise ImageError(
                f"{path} has {width} x {height} pixels, at most {MAX_PIXELS:,} are allowed; scale "
                "it down"
            )
        if getattr(image, "is_animated", False) and image.format not in _COMPOSITES:
            raise ImageError(
                f"{path} holds several frames or pages; save the one that shows the object as a "
                "still image"
            )
        try:
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            return to_rgba(image)
        except ImageError as e:
            raise ImageError(f"{path}: {e}") from e
        except _DECODE_ERRORS as e:
            raise ImageError(f"{path} is truncated or damaged: {e}") from e


def to_rgba(image: Image.Image) -> Image.Image:
    """An image of any Pillow mode as 8-bit RGBA.

    Grey values above 8 bit are scaled: v / 257, rounded.
    """
    if image.mode == "RGBA":
        return image
    if image.mode == "I" or image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.int64)
        if values.size and (values.min() < 0 or values.max() > 65_535):
            raise ImageError(
                f"grey values reach from {values.min()} to {values.max()}; save the image with 8 "
                "or 16 bit"
            )
        grey = Image.fromarray(((values + 128) // 257).astype(np.uint8)).convert("RGBA")
        key = image.info.get("transparency")
        if key is not None:
            grey.putalpha(Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8)))
        return grey
    if image.mode == "F":
        raise ImageError(
            "floating-point pixels have no defined white; save the image as 8 or 16-bit PNG"
        )
    try:
        return image.convert("RGBA")
    except ValueError as e:
        raise ImageError(
            f"pixels of mode {image.mode} cannot be converted; save the image as RGB"
        ) from e


def preprocess(image: Image.Image, config: ImageEncoderConfig) -> Prepared:
    """The object of `image` on a white square of S = `config.image_size` pixels.

    The object is what the alpha channel shows. Without a cut-out there, it is what differs by more
    than `PLAIN_TOLERANCE` from the border's median colour, if `PLAIN_SHARE` of the border has that
    colour. Otherwise it is the whole frame, and `Prepared.warning` says so. Its bounding box is
    scaled so that the longer side takes `config.foreground_fill` of the square. Colours are laid
    over white before the (bicubic, antialiased) resize: then the hidden colour of transparent
    pixels cannot bleed into the object's edge.

    Raises `ImageError` for a fully transparent image and for one of a single colour.
    """
    rgb, mask, foreground = find_foreground(to_rgba(image))
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    # Left, top, right, bottom.
    box = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
    size, width, height = config.image_size, box[2] - box[0], box[3] - box[1]
    scale = config.foreground_fill * size / max(width, height)
    target = (max(1, round(width * scale)), max(1, round(height * scale)))
    square = Image.new("RGB", (size, size), WHITE)
    square.paste(
        rgb.crop(box).resize(target, Image.Resampling.BICUBIC),
        ((size - target[0]) // 2, (size - target[1]) // 2),
    )
    return Prepared(np.array(square), foreground)


def find_foreground(rgba: Image.Image) -> tuple[Image.Image, np.ndarray, Foreground]:
    """-> (RGB image on white, (height, width) bool where the object is, how it was found)."""
    alpha = rgba.getchannel("A")
    visible = np.asarray(alpha) >= VISIBLE_ALPHA
    if not visible.any():
        raise ImageError("the image is fully transparent: there is no object in it")
    rgb = Image.new("RGB", rgba.size, WHITE)
    rgb.paste(rgba, mask=alpha)
    if visible.mean() <= 1 - TRANSPARENT_SHARE:
        return rgb, visible, "alpha"

    width, height = rgb.size
    edges = (
        (0, 0, width, 1),
        (0, height - 1, width, height),
        (0, 0, 1, height),
        (width - 1, 0, width, height),
    )
    border = np.concatenate(
        [np.asarray(rgb.crop(edge), dtype=np.int16).reshape(-1, 3) for edge in edges]
    )
    background = np.median(border, axis=0).round().astype(int).tolist()
    if (np.abs(border - background).max(axis=1) <= PLAIN_TOLERANCE).mean() < PLAIN_SHARE:
        return rgb, np.ones_like(visible), "frame"

    differs = Image.new("L", rgb.size)
    for band, colour in zip(rgb.split(), background, strict=True):
        far = band.point([255 * (abs(value - colour) > PLAIN_TOLERANCE) for value in range(256)])
        differs = ImageChops.lighter(differs, far)
    if differs.getbbox() is None:
        raise ImageError("the image has a single colour: there is no object in it")
    if 255 - min(background) > PLAIN_TOLERANCE:
        # A background that is white already stays as it is: painting would eat the lightest parts
        # of the object.
        rgb.paste(WHITE, mask=ImageChops.invert(differs))
    return rgb, np.asarray(differs) > 0, "plain background"
