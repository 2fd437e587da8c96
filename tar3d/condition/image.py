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
from typing import TYPE_CHECKING

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from tar3d.condition.foreground import WHITE, FoundBy, ImageError, find_foreground
from tar3d.folders import FoundFiles, find_files

if TYPE_CHECKING:
    from tar3d.config import ImageEncoderConfig

MAX_PIXELS = 64_000_000  # about 0.7 GB while it is prepared
IMAGE_SUFFIXES = (
    ".png",
    ".jpg",
    ".jpeg",
    ".jfif",
    ".webp",
    ".bmp",
    ".gif",
    ".tif",
    ".tiff",
    ".avif",
)
# An object with fewer pixels along its longer side than this share of what the encoder sees of it.
COARSE = 0.4
# The remedy for all that the foreground is unsure of.
CUT_OUT = (
    "give one object with a margin on a transparent background, as "
    "`rembg i -m u2net IMAGE CUT_OUT.png` makes it (pip install 'rembg[cpu,cli]')"
)

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


@dataclass(frozen=True)
class Prepared:
    """`pixels` (S, S, 3) uint8, the object centred on white.

    `foreground` says how the object was found: by alpha, by a plain background, or not at all (the
    whole frame). `notes` are clauses on what was left out of it or is uncertain.
    """

    pixels: np.ndarray
    foreground: FoundBy
    notes: tuple[str, ...] = ()

    @property
    def warning(self) -> str | None:
        """A sentence for the user about the result, or None."""
        return f"{'; '.join(self.notes)}: {CUT_OUT}" if self.notes else None


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
            return to_rgba(image)
        except ImageError as e:
            raise ImageError(f"{path}: {e}") from e
        except _DECODE_ERRORS as e:
            raise ImageError(f"{path} is truncated or damaged: {e}") from e


def to_rgba(image: Image.Image) -> Image.Image:
    """An image of any Pillow mode as 8-bit RGBA, turned upright as its EXIF orientation says.

    Grey values above 8 bit are scaled: v / 257, rounded.
    """
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        image = ImageOps.exif_transpose(image)
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

    `tar3d.condition.foreground` finds the object; where it is uncertain, `Prepared.warning` says
    so. The longer side of its bounding box is scaled to `config.foreground_fill` of the square.
    Colours are laid over white before the (bicubic, antialiased) resize: then the hidden colour of
    transparent pixels cannot bleed into the object's edge.

    Raises `ImageError` for a fully transparent image and for one of a single colour.
    """
    found = find_foreground(to_rgba(image))
    box = found.box
    size, width, height = config.image_size, box[2] - box[0], box[3] - box[1]
    scale = config.foreground_fill * size / max(width, height)
    target = (max(1, round(width * scale)), max(1, round(height * scale)))
    square = Image.new("RGB", (size, size), WHITE)
    square.paste(
        found.image.crop(box).resize(target, Image.Resampling.BICUBIC),
        ((size - target[0]) // 2, (size - target[1]) // 2),
    )
    notes = found.notes
    if max(width, height) < COARSE * max(target):
        notes += (f"the object has only {max(width, height)} pixels along its longer side",)
    return Prepared(np.array(square), found.found_by, notes)
