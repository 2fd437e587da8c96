"""Random changes of a prepared image in training: what cameras, files and cut-outs do to it.

`change_image` takes the pixels that an encoder sees, the object centred on white, and passes them
through `CHANGES`, a table of changes with the probability of each. A change of your own is a
function (pixels, mask, rng) -> pixels and a line of that table. All of them keep to what
`tar3d.condition.image.preprocess` makes of a user's image: an object on white. Letters: S image
side in pixels; `pixels` are (S, S, 3) float32 in [0, 1], `mask` (S, S) bool is the object.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from scipy import ndimage

if TYPE_CHECKING:
    from collections.abc import Callable

WHITE = 250  # of 255: a pixel that is lighter in all channels and joined to the frame is background


def change_image(pixels: np.ndarray, chance: float, rng: np.random.Generator) -> np.ndarray:
    """Pixels (S, S, 3) uint8 with each of `CHANGES` made with its probability times `chance`.

    Each change has a random stream of its own, so that a new line of the table, added at its end,
    leaves the others as they were. Pixels without an object are returned as they are.
    """
    labels, _ = ndimage.label((pixels >= WHITE).all(axis=-1))
    frame = np.unique(np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]]))
    mask = ~np.isin(labels, frame[frame > 0])
    if not mask.any():
        return pixels
    changed = pixels.astype(np.float32) / 255
    for (share, change), stream in zip(CHANGES.values(), rng.spawn(len(CHANGES)), strict=True):
        if stream.random() < share * chance:
            changed = change(changed, mask, stream)
    return np.rint(changed.clip(0, 1) * 255).astype(np.uint8)


def _on_white(pixels: np.ndarray, mask: np.ndarray) -> np.ndarray:
    return np.where(mask[..., None], pixels, np.float32(1))


def exposure(pixels: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Brightness, gamma, contrast and white balance of another camera."""
    gain, gamma = np.exp(rng.uniform(-0.25, 0.25)), np.exp(rng.uniform(-0.4, 0.4))
    tint = np.exp(rng.uniform(-0.1, 0.1, 3)).astype(np.float32)
    contrast = np.exp(rng.uniform(-0.3, 0.3))
    seen = (pixels * np.float32(gain) * tint).clip(0, 1) ** np.float32(gamma)
    return _on_white((0.5 + np.float32(contrast) * (seen - 0.5)).clip(0, 1), mask)


def saturation(pixels: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Paler or stronger colours; a third of the images become grey."""
    amount = np.float32(max(0.0, rng.uniform(-0.75, 1.5)))
    grey = pixels.mean(axis=-1, keepdims=True)
    return _on_white((grey + amount * (pixels - grey)).clip(0, 1), mask)


def fringe(pixels: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A rim in the colour of the background that a cut-out left, or a rim that it took away."""
    if rng.random() < 0.5:
        rim = mask & ~ndimage.binary_erosion(mask)
        return np.where(rim[..., None], np.float32(1), pixels)
    rim = ndimage.binary_dilation(mask) & ~mask
    colour, share = rng.random(3).astype(np.float32), np.float32(rng.uniform(0.2, 0.8))
    return np.where(rim[..., None], pixels + share * (colour - pixels), pixels)


def shadow(pixels: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A soft shadow that was left on the ground below the object."""
    rows, columns = np.nonzero(mask)
    y, x = np.ogrid[: len(mask), : len(mask)]
    width, height = np.ptp(columns) * rng.uniform(0.4, 0.7) + 1, np.ptp(rows) * 0.08 + 1
    middle = (columns.min() + columns.max()) / 2 + rng.uniform(-0.2, 0.2) * width
    falloff = np.exp(-(((x - middle) / width) ** 2) - ((y - rows.max()) / height) ** 2)
    dark = np.float32(rng.uniform(0.1, 0.5)) * falloff.astype(np.float32) * ~mask
    return pixels * (1 - dark[..., None])


def outline(pixels: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A dark contour, as icons have it."""
    rim = mask & ~ndimage.binary_erosion(mask, iterations=int(rng.integers(1, 3)))
    return np.where(rim[..., None], np.float32(rng.uniform(0, 0.3)), pixels)


def framing(pixels: np.ndarray, _mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The object smaller or larger, off the centre, or cut off at a side by the frame."""
    size, scale = len(pixels), np.exp(rng.uniform(-0.3, 0.2))
    place = rng.uniform(-0.08, 0.08, 2) * size
    image = Image.fromarray(np.rint(pixels * 255).astype(np.uint8))
    # the output's (x, y) is read at (a x + c, a y + f)
    shift = size / 2 - (size / 2 + place) / scale
    moved = image.transform(
        image.size,
        Image.Transform.AFFINE,
        (1 / scale, 0, shift[0], 0, 1 / scale, shift[1]),
        Image.Resampling.BILINEAR,
        fillcolor=(255, 255, 255),
    )
    return np.asarray(moved, dtype=np.float32) / 255


def blur(pixels: np.ndarray, _mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Blur of up to 1.5 pixels of 64: out of focus, or enlarged from a small image."""
    sigma = rng.uniform(0.3, 1.5) * len(pixels) / 64
    return ndimage.gaussian_filter(pixels, (sigma, sigma, 0), mode="nearest", truncate=2.5)


def noise(pixels: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Noise of a camera, on the object: the background was painted white."""
    sigma = np.float32(rng.uniform(0.01, 0.08))
    grain = rng.standard_normal(pixels.shape, dtype=np.float32) * sigma * mask[..., None]
    return (pixels + grain).clip(0, 1)


def jpeg(pixels: np.ndarray, _mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """JPEG of quality 25 to 90."""
    content = io.BytesIO()
    image = Image.fromarray(np.rint(pixels.clip(0, 1) * 255).astype(np.uint8))
    image.save(content, format="JPEG", quality=int(rng.integers(25, 91)))
    return np.asarray(Image.open(content), dtype=np.float32) / 255


# Name -> probability and function, in the order in which they happen to an image.
CHANGES: dict[
    str, tuple[float, Callable[[np.ndarray, np.ndarray, np.random.Generator], np.ndarray]]
] = {
    "exposure": (0.6, exposure),
    "saturation": (0.4, saturation),
    "outline": (0.1, outline),
    "fringe": (0.25, fringe),
    "shadow": (0.1, shadow),
    "noise": (0.25, noise),
    "framing": (0.4, framing),
    "blur": (0.3, blur),
    "jpeg": (0.3, jpeg),
}
