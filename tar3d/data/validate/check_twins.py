"""Finds shapes of different splits that are one object: scores on them say nothing.

Two samplings of one surface differ by noise alone. Shapes are compared by an outline, quantiles
that hardly depend on the sampling, and the pairs with nearly equal outlines by the distance of
their points, which is that between two samplings where they are one object. Copies that are moved
or scaled are found, as samples are centred and scaled; turned ones are not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.spatial import cKDTree

from tar3d.data.formats.dataset_folder import SPLITS
from tar3d.data.validate.check_shapes import Problem

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tar3d.data.validate.check_shapes import Folder

_AT_ONCE = 256  # outlines that are compared with all others at once
OUTLINES_APART = 0.03  # root mean square; two samplings of 8,192 points of one shape have 0.01
POINTS = 2048  # compared of each shape
# Mean distance of two shapes' points over that of two samplings of one: 1 for the same shape; of
# the pairs of 1,001 real meshes one in 70,000 has less than this, and most of those are copies.
SAME = 1.1


def check_twins(
    folder: Folder, splits: Mapping[str, list[str]], outlines: Mapping[str, np.ndarray]
) -> Iterator[Problem]:
    """A warning for each shape of val or test that is also in a split before it.

    The split order is train, val, test; `outlines` are those of `Folder` shapes by id.
    """
    for k, split in enumerate(SPLITS[1:], start=1):
        held_out = [i for i in splits.get(split, []) if i in outlines]
        others = [i for name in SPLITS[:k] for i in splits.get(name, []) if i in outlines]
        split_of = {i: name for name in SPLITS[:k] for i in splits.get(name, [])}
        for shape_id, twin in _nearest(held_out, others, outlines):
            if _is_same(folder, shape_id, twin):
                yield Problem(
                    str(folder.root / "splits.json"),
                    split,
                    f"{shape_id} is the same or nearly the same shape as {twin} of "
                    f"{split_of[twin]}",
                    "shapes that no other split has: scores on it are those of a shape it knows",
                    shape_id,
                    True,
                )


def _nearest(
    held_out: list[str], others: list[str], outlines: Mapping[str, np.ndarray]
) -> Iterator[tuple[str, str]]:
    """Each id of `held_out` with the nearest of `others`, where the outlines are nearly equal."""
    if not held_out or not others:
        return
    known = np.stack([outlines[i] for i in others])
    squares = (known**2).sum(axis=1)
    for first in range(0, len(held_out), _AT_ONCE):
        ids = held_out[first : first + _AT_ONCE]
        asked = np.stack([outlines[i] for i in ids])
        squared = (asked**2).sum(axis=1)[:, None] + squares - 2 * asked @ known.T
        nearest = squared.argmin(axis=1)
        apart = np.sqrt(np.maximum(squared.min(axis=1), 0) / known.shape[1])
        yield from ((ids[k], others[nearest[k]]) for k in np.flatnonzero(apart < OUTLINES_APART))


def _is_same(folder: Folder, shape_id: str, other_id: str) -> bool:
    one, other = (folder.read(i).surface[: 2 * POINTS, :3] for i in (shape_id, other_id))
    noise = max(_distance(s[::2], s[1::2]) for s in (one, other))
    return _distance(one[::2], other[::2]) < SAME * noise


def _distance(one: np.ndarray, other: np.ndarray) -> float:
    """Mean distance to the nearest point of the other set, over both sets (N, 3) and (M, 3)."""
    there, back = cKDTree(other).query(one)[0].mean(), cKDTree(one).query(other)[0].mean()
    return float(there + back) / 2
