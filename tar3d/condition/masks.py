"""Boxes and sizes of masks, which the parts of the foreground share."""

from __future__ import annotations

import numpy as np


def box_of(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Left, top, right (excluded) and bottom (excluded) of the True pixels of a mask."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def reduced(mask: np.ndarray, factor: int) -> np.ndarray:
    """(H, factor, W, factor) blocks of a mask, padded at its right and bottom."""
    height, width = mask.shape
    padded = np.pad(mask, ((0, -height % factor), (0, -width % factor)))
    return padded.reshape(padded.shape[0] // factor, factor, -1, factor)


def enlarged(mask: np.ndarray, factor: int, shape: tuple[int, ...]) -> np.ndarray:
    """A mask with each pixel `factor` times along both axes, cut to `shape`."""
    return mask.repeat(factor, axis=0).repeat(factor, axis=1)[: shape[0], : shape[1]]
