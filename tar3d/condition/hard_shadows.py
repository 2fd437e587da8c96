"""Shadows with a hard edge on a plain background, which no softness tells from an object."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

from tar3d.condition.masks import box_of

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_SIDE = 512  # pixels along an axis at which shadows are looked for
# A shadow is a darker shade of the background, up to TINT of 255, and even: up to STEP between
# neighbours and SPREAD between most of its pixels.
TINT, STEP, SPREAD, SHADE = 6.0, 3.0, 6.0, 0.98
DARKEST = 40  # of 255: no shadow shows on a darker background
LEAST, MOST_REGIONS = 0.06, 3  # share of the mask that a shadow takes; regions looked at
# An object is coloured where half of it differs by COLOURED of 255 from a shade of the background.
COLOURED = 12.0
# The shadow of one that is not lies where the object would be if it were moved: this share of both,
# and the box grows by GROWS.
SAME, GROWS = 0.78, 1.02
EDGE = 2  # pixels that are blended at an outline


def shadow_doubt(
    pixels: np.ndarray, mask: np.ndarray, colour: np.ndarray, *, exact: bool
) -> tuple[str, ...]:
    """A clause if part of a mask (height, width) may be a shadow, else none.

    `pixels` are (height, width, 3) uint8, and `colour` (3,) is that of the background, which is
    without noise if it is `exact`.
    """
    step = -(-max(mask.shape) // MAX_SIDE)
    if colour.max() < DARKEST or not mask[::step, ::step].any():
        return ()
    left, top, right, bottom = box_of(mask)
    box = slice(top, bottom, step), slice(left, right, step)
    mask, seen = np.pad(mask[box], 1), np.pad(pixels[box], ((1, 1), (1, 1), (0, 0)), mode="edge")
    seen = seen.astype(np.float32)
    if not exact:
        seen = ndimage.gaussian_filter(seen, (1.5, 1.5, 0))
    shade = (seen / np.maximum(colour, 1)).mean(axis=2)
    tint = np.abs(seen - shade[..., None] * colour).max(axis=2)
    shades, edge = mask & (tint <= TINT) & (shade < SHADE), EDGE if exact else 2 * EDGE
    for even in _even_regions(seen, shades, LEAST * mask.sum()):
        region = ndimage.binary_dilation(even, iterations=edge) & mask
        rest = _largest(ndimage.binary_opening(mask & ~region, iterations=edge))
        if not (rest & ndimage.binary_dilation(region, iterations=2 * edge)).any():
            continue
        if np.median(tint[rest]) > COLOURED or _moved(rest, region, mask):
            return ("a part of the background's hue may be a hard shadow, taken for the object",)
    return ()


def _even_regions(seen: np.ndarray, shades: np.ndarray, least: float) -> Iterator[np.ndarray]:
    """The largest even regions of `shades` that have `least` pixels, without their edges."""
    if shades.sum() < least:
        return
    steps = ndimage.maximum_filter(seen, (3, 3, 1)) - ndimage.minimum_filter(seen, (3, 3, 1))
    labels, _ = ndimage.label(shades & (steps.max(axis=2) <= STEP))
    areas = np.bincount(labels.ravel())[1:]
    for label in np.argsort(-areas)[:MOST_REGIONS] + 1:
        region = labels == label
        if region.sum() < least:
            return
        if np.ptp(np.quantile(seen[region].max(axis=1), [0.05, 0.95])) <= SPREAD:
            yield region


def _largest(mask: np.ndarray) -> np.ndarray:
    """The largest connected piece of a mask; the mask itself if it is empty."""
    labels, count = ndimage.label(mask)
    if not count:
        return mask
    return np.asarray(labels == np.argmax(np.bincount(labels.ravel())[1:]) + 1)


def _moved(rest: np.ndarray, region: np.ndarray, mask: np.ndarray) -> bool:
    """True if `region` is what `rest` would cover beside itself if it were moved."""
    (left, top, right, bottom), (west, up, east, down) = box_of(rest), box_of(mask)
    if max(down - up, east - west) - 1 < GROWS * (max(bottom - top, right - left) - 1):
        return False
    for dy in {up - top, down - bottom}:
        for dx in {west - left, east - right}:
            moved = np.roll(np.pad(rest, ((abs(dy),), (abs(dx),))), (dy, dx), axis=(0, 1))
            moved = moved[abs(dy) :, abs(dx) :][: len(rest), : rest.shape[1]] & ~rest
            if (moved & region).sum() > SAME * (moved | region).sum():
                return True
    return False
