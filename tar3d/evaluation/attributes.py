"""Legs, round or square tops and arms, measured from a mesh and compared with its caption.

    measure(mesh, "chair")                                     legs 3, top square, arms False
    stated("a chair with three legs and arms", "chair")        legs 3, arms True
    score(mesh, "a chair with three legs and arms", "chair")   legs True, arms False

The solid is rasterized by its winding number into cells of 2 / 96 of the cube, specks are dropped,
and its horizontal slices are examined. No network takes part. The command counts how often the
measurements agree with the parameters of procedural shapes, and with those of their
reconstructions:

    python -m tar3d.evaluation.attributes data/test --tokenizer pretrained/tiny
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

from tar3d.checkpoint import load_tokenizer
from tar3d.data.formats.dataset_folder import SPLITS, mesh_path, read_splits
from tar3d.data.formats.samples import open_samples
from tar3d.data.formats.tables import read_rows
from tar3d.mesh.extract import EmptyFieldError
from tar3d.mesh.load import load_mesh
from tar3d.mesh.points import inside
from tar3d.pipeline import reconstruct
from tar3d.runtime import cell_count, command, command_parser, progress_bar

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tar3d.contracts import Mesh

# What is measured of a category. "legs" counts the pieces that stand on the floor: 1 is a pedestal,
# 2 are side panels.
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "chair": ("legs", "top", "arms"),
    "stool": ("legs", "top"),
    "table": ("legs", "top"),
}
Value = int | str | bool

# Heights are shares of the object's own, counted from its lowest cells.
# Along a side of the cube [-1, 1]^3: the thinnest leg of the procedural shapes is four cells wide.
CELLS = 96
SPECK = 0.005  # connected pieces of less than this share of the largest one are dropped
# Heights between which legs are counted: above uneven feet, below rungs and shelves.
FEET = (0.04, 0.16)
FOOT = 0.15  # least size of a leg, as a share of the largest piece in its slice
# Heights between which the seat or top is the widest slice.
TOP = {"chair": (0.25, 0.65), "stool": (0.6, 1.0), "table": (0.6, 1.0)}
PLATE = 0.9  # share of the widest slice's area that the other slices of the same plate have
# Largest share of its bounding rectangle that a round top fills: an ellipse fills pi / 4, a
# rectangle all.
ROUND = 0.93
ABOVE_SEAT = (0.06, 0.28)  # heights above the seat between which arms are searched
# Least share of the seat's area that arms cover, in some slice, on either side of its front half.
ARM = 0.012
EIGHT = np.ones((3, 3), dtype=bool)  # 8-connectivity in a slice

NUMBERS = {"one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6} | {
    str(n): n for n in range(1, 7)
}
_NUMBER = "|".join(NUMBERS)
_LEGS = re.compile(
    rf"\b({_NUMBER})(?:[\s-]+(?!(?:and|with|{_NUMBER})\b)\w+){{0,3}}?[\s-]+(?:legs?|legged)\b"
)
_BASES = {"three legs": 3, "four legs": 4, "pedestal": 1, "panels": 2}  # as manifests name them
_BASE = re.compile(r"\b(pedestal|panels)\b")
_SEAT = re.compile(r"\b(round|square)\s+(?:\w+\s+)?(?:seat|top)\b")
_SHAPE = re.compile(r"\b(round|square)\b(?!(?:\s+\w+)?\s+legs?\b)")
_ARMS = re.compile(r"\barm(?:s|rests?|less)\b")
_NO_ARMS = re.compile(r"\b(?:no|without|lacks)\s+(?:any\s+)?arm(?:s|rests?)\b|\barmless\b")


def measure(mesh: Mesh, category: str) -> dict[str, Value | None]:
    """The attributes of a `mesh` in the project's frame (Y up, front +Z), of a known category.

    -> "legs", the count of separate pieces near the floor; "top", "round" or "square"; for chairs
    "arms", bool. None where there is nothing to measure. Raises ValueError for a category without
    attributes.
    """
    names, solid = _names(category), rasterize(mesh)
    rows = np.flatnonzero(solid.any(axis=(1, 2)))
    if len(rows) == 0:
        return dict.fromkeys(names)
    solid = solid[rows[0] : rows[-1] + 1]
    plate = find_plate(solid, *TOP[category])
    found: dict[str, Value | None] = {
        "legs": count_legs(solid),
        "top": outline(np.asarray(solid[plate].any(axis=0))),
    }
    if "arms" in names:
        found["arms"] = has_arms(solid, plate)
    return {name: found[name] for name in names}


def stated(description: str | Mapping[str, Value], category: str) -> dict[str, Value]:
    """The attributes that a caption, or a procedural shape's parameters (manifest.csv), states.

    An attribute that is not mentioned, or that a caption gives two values, is left out. Raises
    ValueError for a category without attributes.
    """
    names = _names(category)
    if not isinstance(description, str):
        values = {
            "legs": description.get("legs", _BASES.get(str(description.get("base")))),
            "top": description.get("top", description.get("seat")),
            "arms": description.get("arms"),
        }
        return {name: value for name in names if (value := values[name]) is not None}
    text = description.lower()
    found: dict[str, set] = {
        "legs": {NUMBERS[n] for n in _LEGS.findall(text)}
        | {_BASES[b] for b in _BASE.findall(text)},
        "top": set(_SEAT.findall(text) or ([] if category == "chair" else _SHAPE.findall(text))),
        "arms": {_NO_ARMS.search(text) is None} if _ARMS.search(text) else set(),
    }
    return {name: next(iter(found[name])) for name in names if len(found[name]) == 1}


def score(
    mesh: Mesh | None, description: str | Mapping[str, Value], category: str
) -> dict[str, bool]:
    """For each attribute that is stated, whether the mesh has it.

    A mesh that is None, or cannot be measured, has none.
    """
    expected = stated(description, category)
    found = {} if mesh is None or not expected else measure(mesh, category)
    return {name: found.get(name) == value for name, value in expected.items()}


def rasterize(mesh: Mesh) -> np.ndarray:
    """The cells of the cube [-1, 1]^3 whose middle is inside, without specks.

    (CELLS, CELLS, CELLS) bool, axes y, z, x.
    """
    middle = (np.arange(CELLS) + 0.5) * 2 / CELLS - 1
    y, z, x = np.meshgrid(middle, middle, middle, indexing="ij")
    solid = inside(mesh, np.stack([x, y, z], axis=-1).reshape(-1, 3)).reshape(CELLS, CELLS, CELLS)
    pieces, count = ndimage.label(solid)
    if count < 2:
        return solid
    size = np.bincount(pieces.ravel())
    size[0] = 0  # label 0 is the outside
    return (size >= SPECK * size.max())[pieces] & solid


def count_legs(solid: np.ndarray) -> int | None:
    """The number of separate pieces that most slices near the floor of a solid (Y, Z, X) have.

    Of a tie it is the lower number; None where there is no piece.
    """
    counts = []
    for layer in _between(solid, *FEET):
        pieces, count = ndimage.label(layer, EIGHT)
        if count:
            size = np.bincount(pieces.ravel())[1:]
            counts.append(int((size >= FOOT * size.max()).sum()))
    return int(np.bincount(counts).argmax()) if counts else None


def find_plate(solid: np.ndarray, low: float, high: float) -> slice:
    """The layers of the seat or table top.

    They are the widest slice between two heights (shares of the object's own), and those around it
    that are as wide.
    """
    area, start = solid.sum(axis=(1, 2)), int(low * len(solid))
    widest = start + int(area[start : max(int(high * len(solid)), start + 1)].argmax())
    wide = area >= PLATE * area[widest]
    first = last = widest
    while first > 0 and wide[first - 1]:
        first -= 1
    while last + 1 < len(solid) and wide[last + 1]:
        last += 1
    return slice(first, last + 1)


def outline(layer: np.ndarray) -> str | None:
    """ "round" or "square", by the share of its bounding rectangle that a slice (Z, X) fills.

    None for an empty slice.
    """
    filled = fill(layer)
    return None if filled is None else "round" if filled < ROUND else "square"


def fill(layer: np.ndarray) -> float | None:
    """The share of its bounding rectangle that the largest piece of a slice (Z, X) fills.

    It is pi / 4 for an ellipse, 1 for a rectangle along the axes, None for an empty slice.
    """
    pieces, count = ndimage.label(layer, EIGHT)
    if count == 0:
        return None
    largest = pieces == np.bincount(pieces.ravel())[1:].argmax() + 1
    z, x = np.nonzero(largest)
    return float(largest.sum() / ((np.ptp(z) + 1) * (np.ptp(x) + 1)))


def has_arms(solid: np.ndarray, seat: slice) -> bool:
    """True if a chair has something on both sides above the front half of its seat.

    A back does not reach that far.
    """
    return arm_share(solid, seat) > ARM


def arm_share(solid: np.ndarray, seat: slice) -> float:
    """The share of the seat's area that arms cover.

    In each slice above the front half of the seat, the smaller of the areas left and right counts;
    the result is the largest over the slices, as a share of the seat's area.
    """
    plate = solid[seat].any(axis=0)
    z, x = np.nonzero(plate)
    front, middle = int(np.ceil((z.min() + z.max() + 1) / 2)), (x.min() + x.max() + 1) / 2
    low, high = (seat.stop + int(share * len(solid)) for share in ABOVE_SEAT)
    above = solid[low:high, front:]
    left = above[:, :, : int(middle)].sum(axis=(1, 2))
    right = above[:, :, int(np.ceil(middle)) :].sum(axis=(1, 2))
    return float(np.minimum(left, right).max(initial=0) / plate.sum())


def agreement(
    data: Path, splits: list[str], tokenizer: Path | None, count: int | None, resolution: int
) -> dict[str, dict[tuple[str, str], list[bool]]]:
    """Compares the measurements of a procedural set's shapes with manifest.csv.

    Returns, by origin of the mesh ("truth", "reconstruction"), then by category and value ("legs
    3"), a bool for each shape. Without a tokenizer there are only truths.
    """
    table = read_rows(data / "manifest.csv", "id", "category", "parameters")
    rows = {row["id"]: row for _, row in table if row["category"] in ATTRIBUTES}
    known = read_splits(data)
    ids = [i for split in splits for i in known[split] if i in rows]
    ids = [ids[k] for k in np.random.default_rng(0).permutation(len(ids))[:count]]
    vqvae = None if tokenizer is None else load_tokenizer(tokenizer)
    samples = open_samples(data)
    result: dict[str, dict[tuple[str, str], list[bool]]] = {}
    for shape_id in progress_bar(ids, unit="shape"):
        category = rows[shape_id]["category"]
        parameters = json.loads(rows[shape_id]["parameters"])
        meshes: dict[str, Mesh | None] = {"truth": load_mesh(mesh_path(data, shape_id))}
        if vqvae is not None:
            try:
                surface = samples.surface(shape_id)
                meshes["reconstruction"] = reconstruct(vqvae, surface, resolution)[0]
            except EmptyFieldError:
                meshes["reconstruction"] = None
        for origin, mesh in meshes.items():
            for name, right in score(mesh, parameters, category).items():
                key = category, f"{name} {stated(parameters, category)[name]}"
                result.setdefault(origin, {}).setdefault(key, []).append(right)
    return result


@command
def main(argv: list[str] | None = None) -> int:
    parser = command_parser(__doc__)
    parser.add_argument("data", type=Path, help="procedural data set with meshes and manifest.csv")
    parser.add_argument(
        "--split", nargs="+", choices=SPLITS, default=list(SPLITS), help="default: all"
    )
    parser.add_argument("--count", type=int, help="shapes, drawn at random (default: all)")
    parser.add_argument(
        "--tokenizer", type=Path, help="model directory whose reconstructions are measured as well"
    )
    parser.add_argument(
        "--resolution",
        type=cell_count,
        default=128,
        help="extraction cells along an axis of reconstructions (default: %(default)s)",
    )
    args = parser.parse_args(argv)
    try:
        found = agreement(args.data, args.split, args.tokenizer, args.count, args.resolution)
    except (ValueError, OSError) as e:
        print(e, file=sys.stderr)
        return 2
    for origin, groups in found.items():
        for (category, name), right in sorted(groups.items()):
            print(f"{origin:<14} {category:<5} {name:<10} {_share(right)}")
        every = [r for right in groups.values() for r in right]
        print(f"{origin:<14} all   {'':<10} {_share(every)}")
    return 0


def _share(right: list[bool]) -> str:
    return f"{sum(right):>4} of {len(right):>4}  {np.mean(right):6.1%}"


def _between(solid: np.ndarray, low: float, high: float) -> np.ndarray:
    """The slices between two heights, at least one."""
    first = int(np.ceil(low * len(solid)))
    return solid[first : max(int(high * len(solid)), first) + 1]


def _names(category: str) -> tuple[str, ...]:
    if category not in ATTRIBUTES:
        raise ValueError(
            f"attributes are measured of {', '.join(ATTRIBUTES)}, got the category {category!r}: "
            "leave such shapes out"
        )
    return ATTRIBUTES[category]


if __name__ == "__main__":
    sys.exit(main())
