"""Perceptual metrics: the tables of LPIPS (arXiv 1801.03924) and CLIP (arXiv 2103.00020) scores.

Needs no torch. The networks are in `lpips` and `clip`. Neither is shipped: `load_lpips` reads files
that you bring, `Clip.load` a directory or a Hub id; a network that cannot be had is a ValueError of
one sentence that says what is missing and how to get it. The preparation of the pixels is written
out there, because a resize filter alone changes scores.
"""

from __future__ import annotations

import numpy as np

from tar3d.metrics.metric import Metric

LPIPS_METRICS = {
    "lpips": Metric(
        "sum over five layers of mean_pixels sum_c w_c (f_c - g_c)^2, features f, g of unit length "
        "in each pixel, Zhang et al., 1801.03924, version 0.1",
        "lower",
    ),
}
CLIP_METRICS = {
    "clip_image": Metric(
        "cosine of the CLIP features of the predicted and the true image, in [-1, 1]", "higher"
    ),
    "clip_text": Metric(
        "cosine of the CLIP features of the predicted image and of the caption, in [-1, 1], not "
        "times 100",
        "higher",
    ),
}


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cosines (K,) of the rows of `a` (K, E) and `b` (K, E) or (E,)."""
    a, b = (
        v.astype(np.float64) / np.linalg.norm(v.astype(np.float64), axis=-1, keepdims=True)
        for v in (a, b)
    )
    return (a * b).sum(-1)


def crop_to(
    image: np.ndarray, foreground: np.ndarray, background: tuple[int, int, int]
) -> np.ndarray:
    """The square (S, S, 3) around the True pixels of `foreground` (H, W) in `image` (H, W, 3).

    Pixels outside the image are `background`.
    """
    rows, columns = np.flatnonzero(foreground.any(1)), np.flatnonzero(foreground.any(0))
    height, width = rows[-1] + 1 - rows[0], columns[-1] + 1 - columns[0]
    side = max(height, width)
    top, left = rows[0] - (side - height) // 2, columns[0] - (side - width) // 2
    square = np.empty((side, side, 3), dtype=np.uint8)
    square[:] = background
    low, high = np.maximum((top, left), 0), np.minimum((top + side, left + side), image.shape[:2])
    square[low[0] - top : high[0] - top, low[1] - left : high[1] - left] = image[
        low[0] : high[0], low[1] : high[1]
    ]
    return square
