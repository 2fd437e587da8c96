"""Scan lines and bands: thin straight stripes of a mask that run from one side to the other."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

if TYPE_CHECKING:
    from collections.abc import Iterator

THICK = 0.08  # largest thickness of a line, of the image's side across it
FULL = 0.95  # share of the image's side along it that a line covers
MOST = 0.7  # share of that side which an object above or below a line covers at most
EDGE = 3  # pixels beside a line that it may blur into, as JPEG does
MARGIN = 0.05  # share of a side of the frame that an object with a margin may touch
ONE_SIDED = 0.3  # share of an object beside a line that may lie on one side of it only


def drop_lines(mask: np.ndarray) -> tuple[np.ndarray, tuple[str, ...], tuple[str, ...]]:
    """The mask (height, width) without lines from side to side, a note on them, and a doubt.

    A line is left out if it crosses an object, or lies apart from it, and the object keeps a margin
    to the frame on both sides of the line; what the object has there stays. About other lines there
    is a doubt: they may be a table top that the image is cropped to.
    """
    result, left_out, doubtful = mask.copy(), False, False
    for lines, target in ((mask, result), (mask.T, result.T)):
        margin = max(lines[0].mean(), lines[-1].mean()) <= MARGIN
        for start, stop in _lines(lines):
            above, below = lines[max(start - EDGE, 0)], lines[min(stop - 1 + EDGE, len(lines) - 1)]
            either, both = above | below, _wider(above) & _wider(below)
            if not margin or (either & ~both).sum() > ONE_SIDED * either.sum():
                doubtful = True
                continue
            left_out = True
            target[max(start - EDGE, 0) : stop + EDGE] &= _wider(either)
    if not result.any():
        return mask, (), ()
    return (
        result,
        ("a line or band from side to side was left out",) * left_out,
        ("a line or band from side to side may not belong to the object",) * doubtful,
    )


def _lines(mask: np.ndarray) -> Iterator[tuple[int, int]]:
    """First and last (excluded) row of each horizontal line that has an end at both sides."""
    height = len(mask)
    full = mask.mean(axis=1) >= FULL
    full &= mask[:, :2].any(axis=1) & mask[:, -2:].any(axis=1)
    changes = np.flatnonzero(np.diff(np.concatenate([[False], full, [False]]).astype(np.int8)))
    for start, stop in changes.reshape(-1, 2).tolist():
        if start == 0 or stop == height or stop - start > max(EDGE, THICK * height):
            continue
        beside = mask[max(start - EDGE, 0)], mask[min(stop - 1 + EDGE, height - 1)]
        if max(row.mean() for row in beside) <= MOST:
            yield start, stop


def _wider(row: np.ndarray) -> np.ndarray:
    """A row of a mask with EDGE pixels more beside each of its True ones."""
    return np.asarray(ndimage.binary_dilation(row, iterations=EDGE))
