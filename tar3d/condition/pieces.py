"""Connected pieces of a mask: which belong to the object, and what is odd about them."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from tar3d.condition.masks import box_of, enlarged, reduced

MAX_SIDE = 1024  # pixels along an axis at which pieces are told; larger masks are reduced
# A piece below SMALL of the largest one's area is left out if it lies further than NEAR, of the
# larger side of the image, from all larger pieces. From a speck it may lie FINE away: a thin part
# that the pixels cut is followed so, and dust is not.
SMALL, NEAR, FINE = 0.05, 0.025, 0.006
# Apart from the largest piece, those of more than LIKE of its area make several objects.
LIKE = 0.2
SPECK = 0.002  # of the largest piece: what noise and JPEG leave
# Specks are dust if at least DUST_COUNT of them lie in DUST_SHARE of the free cells of a grid of
# DUST_GRID cells along each side; those up to DUST_AREA times their median area are.
DUST_COUNT, DUST_SHARE, DUST_GRID, DUST_AREA = 40, 0.6, 8, 8
# Pieces further than FAR, of the image's larger side, from the rest are noted if they lengthen the
# object's box by GROWS.
FAR, GROWS = 0.05, 0.15
CUT_SHARE = 0.15  # of a side of the object's box: what touches the frame there may be cut off
EIGHT = np.ones((3, 3), bool)


def drop_pieces(mask: np.ndarray, noisy: bool = False) -> tuple[np.ndarray, tuple[str, ...]]:
    """The mask without stray pieces, and notes on them and on further large pieces.

    In a `noisy` image specks are left out wherever they lie, without a note.
    """
    factor = -(-max(mask.shape) // MAX_SIDE)
    small = mask if factor == 1 else reduced(mask, factor).any(axis=(1, 3))
    labels, count = ndimage.label(small, EIGHT)
    if count == 1:
        return mask, ()
    areas = ndimage.sum_labels(small, labels, np.arange(1, count + 1))
    largest = areas.max()
    kept = np.concatenate([[False], areas >= SMALL * largest])
    specks = np.concatenate([[True], (areas < SPECK * largest) & noisy])
    dust = np.concatenate([[True], _dust(labels, areas)])
    side = max(small.shape)
    kept = _near(labels, kept, dust | specks, np.concatenate([[0], areas]), side)
    notes = []
    dropped = areas[~(kept | specks)[1:]]
    if len(dropped):
        pieces = "a small piece" if len(dropped) == 1 else f"{len(dropped)} small pieces"
        notes.append(
            f"{pieces} apart from the object ({sum(dropped) / largest:.2%} of its area) "
            f"{'was' if len(dropped) == 1 else 'were'} left out"
        )
    like = int((areas >= LIKE * largest).sum())
    if like > 1 and _apart(labels, np.flatnonzero(areas >= LIKE * largest) + 1, NEAR * side):
        notes.append(f"there are {like} separate pieces, which may be several objects")
    elif far := _far_share(labels, kept, areas, FAR * side):
        notes.append(
            f"a piece far from the object ({far:.1%} of its area) was kept, and makes it smaller "
            "in the frame: it may be another object"
        )
    inside = kept[labels]
    if factor > 1:
        inside = enlarged(inside, factor, mask.shape)
    return np.logical_and(mask, inside), tuple(notes)


def _near(
    labels: np.ndarray, kept: np.ndarray, never: np.ndarray, areas: np.ndarray, side: int
) -> np.ndarray:
    """`kept` (P,) bool with the pieces that lie near kept ones, but for those of `never`.

    Specks make a chain where they lie close to each other. Piece k has `areas[k]` pixels in
    `labels`, the background is piece 0, and `side` is the length of the image.
    """
    large, numbers = areas >= SPECK * areas.max(), np.arange(len(kept))
    reach = max(3, FINE * side)
    grown = ndimage.distance_transform_edt(never[labels]) <= (reach - 1) / 2
    chain = ndimage.maximum(ndimage.label(grown, EIGHT)[0], labels, numbers)
    while True:
        distance = ndimage.distance_transform_edt(~(kept & large)[labels])
        near = kept | ((ndimage.minimum(distance, labels, numbers) <= NEAR * side) & ~never)
        near |= np.isin(chain, chain[near]) & ~never
        if (near == kept).all():
            return kept
        kept = near


def _dust(labels: np.ndarray, areas: np.ndarray) -> np.ndarray:
    """Marks (P,) of the pieces that are dust all over the image; `areas` (P,) are their pixels."""
    small = areas < SMALL * areas.max()
    if small.sum() < DUST_COUNT:
        return np.zeros(len(areas), bool)
    marks = small & (areas <= max(DUST_AREA * np.median(areas[small]), SPECK * areas.max()))
    height, width = labels.shape
    of_piece = np.concatenate([[0], np.where(marks, 1, 2 * ~small)])[labels]
    taken, dusty = np.zeros((DUST_GRID, DUST_GRID), bool), np.zeros((DUST_GRID, DUST_GRID), bool)
    for cells, kind in ((dusty, 1), (taken, 2)):
        y, x = np.nonzero(of_piece == kind)
        cells[y * DUST_GRID // height, x * DUST_GRID // width] = True
    free = ~taken
    return marks & (dusty[free].sum() >= max(1, DUST_SHARE * free.sum()))


def _far_share(labels: np.ndarray, kept: np.ndarray, areas: np.ndarray, reach: float) -> float:
    """Area of the pieces that lie far from the largest, as a share of its own; 0 without any.

    Pieces within `reach` pixels of each other belong together. Those far off count where the box
    of all is longer than that of the rest by GROWS.
    """
    inside = kept[labels]
    together, _ = ndimage.label(ndimage.distance_transform_edt(~inside) <= reach / 2, EIGHT)
    main = together[labels == int(np.argmax(areas)) + 1][0]
    rest = inside & (together == main)
    if _length(inside) <= (1 + GROWS) * _length(rest):
        return 0.0
    return float((inside.sum() - rest.sum()) / rest.sum())


def _length(mask: np.ndarray) -> int:
    """The longer side of the box of a mask."""
    left, top, right, bottom = box_of(mask)
    return max(right - left, bottom - top)


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
