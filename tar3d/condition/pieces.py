"""Connected pieces of a mask: which belong to the object, and what is odd about them."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

MAX_SIDE = 1024  # pixels along an axis at which pieces are told; larger masks are reduced
# A piece below SMALL of the largest one's area is left out if it lies further than NEAR, of the
# larger side of the image, from all larger pieces.
SMALL, NEAR = 0.05, 0.025
# Apart from the largest piece, those of more than LIKE of its area make several objects.
LIKE = 0.2
SPECK = 0.002  # of the largest piece: what noise and JPEG leave
CUT_SHARE = 0.15  # of a side of the object's box: what touches the frame there may be cut off
EIGHT = np.ones((3, 3), bool)


def drop_pieces(mask: np.ndarray, noisy: bool = False) -> tuple[np.ndarray, tuple[str, ...]]:
    """The mask without stray pieces, and notes on them and on further large pieces.

    In a `noisy` image specks are left out wherever they lie, without a note.
    """
    factor = -(-max(mask.shape) // MAX_SIDE)
    small = _any(mask, factor)
    labels, count = ndimage.label(small, EIGHT)
    if count == 1:
        return mask, ()
    areas = ndimage.sum_labels(small, labels, np.arange(1, count + 1))
    largest = areas.max()
    kept = np.concatenate([[False], areas >= SMALL * largest])
    specks = np.concatenate([[True], (areas < SPECK * largest) & noisy])
    reach = NEAR * max(small.shape)
    while True:  # small pieces near kept ones are kept: a thin part that the pixels cut
        distance = ndimage.distance_transform_edt(~kept[labels])
        gaps = np.concatenate(
            [[np.inf], ndimage.minimum(distance, labels, np.arange(1, count + 1))]
        )
        near = kept | ((gaps <= reach) & ~specks)
        if (near == kept).all():
            break
        kept = near
    notes = []
    dropped = areas[~(kept | specks)[1:]]
    if len(dropped):
        pieces = "a small piece" if len(dropped) == 1 else f"{len(dropped)} small pieces"
        notes.append(
            f"{pieces} apart from the object ({sum(dropped) / largest:.2%} of its area) "
            f"{'was' if len(dropped) == 1 else 'were'} left out"
        )
    like = int((areas >= LIKE * largest).sum())
    if like > 1 and _apart(labels, np.flatnonzero(areas >= LIKE * largest) + 1, reach):
        notes.append(f"there are {like} separate pieces, which may be several objects")
    inside = kept[labels]
    if factor > 1:
        inside = inside.repeat(factor, axis=0).repeat(factor, axis=1)
        inside = inside[: mask.shape[0], : mask.shape[1]]
    return np.logical_and(mask, inside), tuple(notes)


def _any(mask: np.ndarray, factor: int) -> np.ndarray:
    """A mask reduced by `factor`: True where any of its pixels was."""
    if factor == 1:
        return mask
    height, width = mask.shape
    padded = np.pad(mask, ((0, -height % factor), (0, -width % factor)))
    blocks = padded.reshape(padded.shape[0] // factor, factor, -1, factor)
    return np.asarray(blocks.any(axis=(1, 3)))


def _apart(labels: np.ndarray, chosen: np.ndarray, reach: float) -> bool:
    """True if one of the chosen pieces lies further than `reach` from all others."""
    for label in chosen:
        distance = ndimage.distance_transform_edt(~np.isin(labels, chosen[chosen != label]))
        if distance[labels == label].min() > reach:
            return True
    return False


def cut_sides(mask: np.ndarray) -> list[str]:
    """Sides of the frame at which the object seems to be cut off.

    An object that touches all four sides was cropped to its box; there only a straight end says
    that it is cut.
    """
    rows, columns = mask.any(axis=1), mask.any(axis=0)
    touching = {
        "top": mask[0].sum() / columns.sum(),
        "bottom": mask[-1].sum() / columns.sum(),
        "left": mask[:, 0].sum() / rows.sum(),
        "right": mask[:, -1].sum() / rows.sum(),
    }
    cropped = all(share > 0 for share in touching.values())
    least = 3 * CUT_SHARE if cropped else CUT_SHARE
    return [side for side, share in touching.items() if share > least]
