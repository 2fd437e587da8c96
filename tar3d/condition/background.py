"""What differs from the plain background of an image.

A background of exactly one colour is compared pixel by pixel. One that varies (camera noise, JPEG,
light that falls off, shadows) is described by a smooth colour, quadratic in the image's axes, and
by its noise; both come from the border. The comparison is then made on a smoothed copy.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy import ndimage

from tar3d.condition.masks import enlarged, reduced

# Largest difference, of 255 in any channel, within a plain background without noise.
NOT_PLAIN = "the background is not plain"  # a note of `separate`
PLAIN_TOLERANCE = 10
# Share of the border pixels that must agree; the rest may be an object that leaves the frame.
PLAIN_SHARE = 0.9
# Largest share of the pixels away from the object that may differ at all in an exact background.
EXACT_SHARE = 1e-4
# What varies is smoothed by a Gaussian of 1 pixel, at MAX_SMOOTHED pixels at most. The threshold is
# SIGMAS deviations of the noise that is left; above MAX_NOISE of 255 no background is told.
MAX_SMOOTHED = 1_000_000
SIGMAS, MAX_NOISE = 5.0, 7.0
MAX_GRAIN = 40  # largest median difference within a noisy background: beyond is a pattern
UNEVEN = 12.0  # range of the background's own colour, of 255, that makes it worth a note
# A fringe lies at the outline and differs by less than this share of the largest difference nearby,
# or has this share of the colour of a background whose channels are COLOURED or further apart.
FRINGE_SHARE, FRINGE_REACH = 0.4, 4
SPILL_SHARE, SPILL_REACH, COLOURED = 0.35, 8, 60
# The outline of an object changes by more than SLOPE, of 255 a pixel of the smoothed copy, or by
# STEEP of the difference to the background; a shadow fades more slowly. Gaps of the outline up to
# twice OUTLINE_GAP pixels are closed.
SLOPE, STEEP, OUTLINE_GAP = 12.0, 0.2, 2
SHADOW_TINT = 10.0  # largest deviation of a shadow from a darker shade of the background, of 255
# Share of a shadow's contour without an outline within SOFT_GAP pixels.
SOFT_SHARE, SOFT_GAP = 0.35, 3
SOFT_LENGTH = 0.02  # least length of a contour without an outline, of the image's larger side
LEVEL = 6.0  # step in which a shadow is followed from light to dark, of 255
MOST = 0.6  # a shadow that takes more than this share of what differs is none
BAR_EDGE = 3  # pixels between a bar and what it frames
EIGHT = np.ones((3, 3), bool)


@dataclass(frozen=True)
class Separation:
    """`mask` (height, width) bool is True where the image differs from its background.

    `colour` (3,) is the background's median, which an `exact` background has everywhere. `notes`
    are clauses for the user.
    """

    mask: np.ndarray
    colour: np.ndarray
    exact: bool
    notes: tuple[str, ...] = ()


def border(shape: tuple[int, ...]) -> np.ndarray:
    """A mask (height, width), True on the outermost pixels."""
    mask = np.ones(shape[:2], bool)
    mask[1:-1, 1:-1] = False
    return mask


def difference_to(pixels: np.ndarray, colour: np.ndarray) -> np.ndarray:
    """The largest difference in any channel of uint8 pixels (height, width, 3) to a colour (3,)."""
    difference = np.zeros(pixels.shape[:2], np.uint8)
    for channel, value in enumerate(colour.astype(np.int16)):
        far = np.abs(pixels[..., channel].astype(np.int16) - value).astype(np.uint8)
        np.maximum(difference, far, out=difference)
    return difference


def inner_area(pixels: np.ndarray) -> np.ndarray | None:
    """A mask (height, width) without plain bars or lines along the sides; None if there are none.

    A bar is of one colour, and ends where lines of another colour begin that are plain as well.
    """
    height, width = pixels.shape[:2]
    top, bottom = _bar(pixels), _bar(pixels[::-1])
    turned = pixels.transpose(1, 0, 2)
    left, right = _bar(turned), _bar(turned[::-1])
    if not (top or bottom or left or right):
        return None
    area = np.zeros((height, width), bool)
    area[top : height - bottom, left : width - right] = True
    return area


def _bar(pixels: np.ndarray) -> int:
    """Number of lines of a bar at the top of the pixels; 0 without one."""
    half = pixels[: len(pixels) // 2]
    medians = np.median(half, axis=1)
    plain = (np.abs(half - medians[:, None]).max(axis=2) <= PLAIN_TOLERANCE).mean(axis=1) > 0.95
    ends = np.flatnonzero(np.abs(medians - medians[0]).max(axis=1) > 2 * PLAIN_TOLERANCE)
    if not len(ends) or not plain[0]:
        return 0
    after = int(ends[0]) + BAR_EDGE  # beyond the ringing that JPEG adds
    return after if after < len(half) and plain[after] else 0


def separate(pixels: np.ndarray, region: np.ndarray | None = None) -> Separation | None:
    """What differs from the background in (height, width, 3) uint8 pixels, or None.

    The background is what the border shows, or the outline of `region`, a bool mask outside of
    which nothing is looked at. None means that too little of it agrees.
    """
    inside = np.ones(pixels.shape[:2], bool) if region is None else region
    edge = border(pixels.shape) if region is None else region & ~ndimage.binary_erosion(region)
    colour = np.median(pixels[edge], axis=0).round()
    difference = difference_to(pixels, colour)
    mask = (difference > PLAIN_TOLERANCE) & inside
    if (difference[edge] <= PLAIN_TOLERANCE).mean() >= PLAIN_SHARE:
        away = inside & ~ndimage.binary_dilation(mask, EIGHT, iterations=2)
        if (difference[away] > 0).sum() <= EXACT_SHARE * away.sum():
            return Separation(mask, colour, exact=True)
    if np.median(difference[edge]) > MAX_GRAIN:
        return None
    return _separate_smoothed(pixels, inside, edge)


def _separate_smoothed(
    pixels: np.ndarray, inside: np.ndarray, edge: np.ndarray
) -> Separation | None:
    factor = int(np.ceil(np.sqrt(inside.size / MAX_SMOOTHED)))
    if factor > 1:
        pixels = np.asarray(Image.fromarray(pixels).reduce(factor))
        edge = reduced(edge, factor).max(axis=(1, 3)) > 0
        small = reduced(inside, factor).min(axis=(1, 3)) > 0
        small[-1] |= small[-2]
        small[:, -1] |= small[:, -2]
    else:
        small = inside
    smooth = ndimage.gaussian_filter(pixels.astype(np.float32), (1, 1, 0))
    background, noise = _fit(smooth, edge)
    threshold = max(PLAIN_TOLERANCE, SIGMAS * noise)
    distance = np.abs(smooth - background).max(axis=2)
    if noise > MAX_NOISE or (distance[edge] <= threshold).mean() < PLAIN_SHARE:
        return None
    background, _ = _fit(smooth, small & (distance <= threshold))
    difference = smooth - background
    distance = np.abs(difference).max(axis=2)
    differs = small & (distance > threshold)
    shadow = _shadow(difference, background, differs, noise)
    mask = differs if shadow is None else differs & ~shadow
    mask &= ~_fringe(distance, mask)
    mask &= ~_spill(smooth, background, mask)
    notes = []
    if np.ptp(background[edge], axis=0).max() > UNEVEN:
        notes.append(NOT_PLAIN)
    if shadow is not None:
        done = "was left out" if shadow.any() else "may be taken for part of the object"
        notes.append(f"a soft edge such as a shadow {done}")
    if factor > 1:
        mask = enlarged(mask, factor, inside.shape) & inside
    return Separation(
        mask, np.median(background[edge], axis=0).round(), exact=False, notes=tuple(notes)
    )


def _fit(smooth: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, float]:
    """The background's colour everywhere, (height, width, 3), and its noise, from `known` pixels.

    A quadratic in the axes is fitted to each channel, three times, without what lies beyond three
    deviations; the noise is the deviation that 68 % of the pixels stay below.
    """
    height, width = known.shape
    y, x = np.meshgrid(
        np.linspace(-1, 1, height, dtype=np.float32),
        np.linspace(-1, 1, width, dtype=np.float32),
        indexing="ij",
    )
    terms = np.stack([np.ones_like(x), x, y, x * x, y * y, x * y], axis=-1)
    chosen = np.flatnonzero(known)
    chosen = chosen[:: max(1, len(chosen) // 20_000)]
    design, values = terms.reshape(-1, 6)[chosen], smooth.reshape(-1, 3)[chosen]
    residual = np.abs(values - np.median(values, axis=0)).max(axis=1)
    noise, factors = 0.0, np.zeros((6, 3), np.float32)
    for _ in range(4):
        near = residual <= max(2.0, 3 * float(np.quantile(residual, 0.68)))
        factors = np.linalg.lstsq(design[near], values[near], rcond=None)[0]
        residual = np.abs(values - design @ factors).max(axis=1)
        noise = float(np.quantile(residual, 0.68))
    return terms @ factors, noise


def _fringe(distance: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Pixels at the outline that differ from the background by far less than the object does."""
    nearby = ndimage.maximum_filter(distance, 2 * FRINGE_REACH + 1)
    weak = mask & (distance < FRINGE_SHARE * nearby)
    return ndimage.binary_dilation(~mask, mask=weak | ~mask, iterations=FRINGE_REACH) & mask


def _spill(smooth: np.ndarray, background: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Pixels at the outline that have the hue of a coloured background, as JPEG spreads it."""
    tint = background - background.mean(axis=2, keepdims=True)
    if np.median(np.ptp(background, axis=2)) < COLOURED:
        return np.zeros_like(mask)
    own = smooth - smooth.mean(axis=2, keepdims=True)
    share = (own * tint).sum(axis=2) / np.maximum((tint * tint).sum(axis=2), 1)
    spread = mask & (share > SPILL_SHARE)
    return ndimage.binary_dilation(~mask, mask=spread | ~mask, iterations=SPILL_REACH) & mask


def _shadow(
    difference: np.ndarray, background: np.ndarray, differs: np.ndarray, noise: float
) -> np.ndarray | None:
    """Pixels that differ from the background but fade into it: darker, not tinted, no outline.

    The background is let flow into what differs until an outline stops it. What it takes is a
    shadow if much of its contour has no outline. None if the outline is sharp throughout: there is
    no shadow then.
    """
    ratio = ((background + difference) / np.maximum(background, 1)).mean(axis=2, keepdims=True)
    tint = np.abs(difference - (ratio - 1) * background).max(axis=2)
    may_be = differs & (ratio[..., 0] < 1) & (tint <= SHADOW_TINT + 3 * noise)
    slope = np.hypot(*np.gradient(difference, axis=(0, 1))).max(axis=2)
    distance = np.abs(difference).max(axis=2)
    nearby = ndimage.maximum_filter(distance, 2 * SOFT_GAP + 1)
    outline = slope > np.clip(STEEP * nearby, 3 + 2.5 * noise, max(SLOPE, 4 * noise))
    contour = differs & ndimage.binary_dilation(~differs)
    soft = contour & ~ndimage.binary_dilation(outline, EIGHT, iterations=SOFT_GAP)
    if soft.sum() < SOFT_LENGTH * max(differs.shape):
        return None
    closed = ndimage.binary_dilation(outline, EIGHT, iterations=OUTLINE_GAP)
    open_area = may_be & ~closed
    flow = soft & open_area
    for level in np.arange(0, float(distance.max()), LEVEL):
        band = open_area & (distance >= level - LEVEL - 2 * noise) & (distance <= level + LEVEL)
        flow = ndimage.binary_propagation(flow, EIGHT, mask=band | flow)
    flow = ndimage.binary_dilation(
        flow, EIGHT, iterations=OUTLINE_GAP + 1, mask=(may_be & ~outline) | flow
    )
    labels, count = ndimage.label(flow, EIGHT)
    numbers = np.arange(count + 1)
    whole, without = (ndimage.sum_labels(x, labels, numbers) for x in (contour, soft))
    is_shadow = (without > SOFT_SHARE * whole) & (without > SOFT_LENGTH * max(differs.shape))
    is_shadow[0] = False
    shadow = is_shadow[labels]
    return shadow if shadow.sum() < MOST * differs.sum() else np.zeros_like(differs)
