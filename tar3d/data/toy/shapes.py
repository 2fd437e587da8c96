"""Procedural shapes of 14 categories: closed manifolds with the parameters they were made from and
captions.

    shape = generate(index=7, seed=0)

Lengths are in units of the cube [-1, 1]^3, in which the longest side of a finished shape spans 1.9.
So that a small tokenizer can hold them, no leg, board, wall or handle is thinner than
`MIN_THICKNESS`. Y is up, the front looks at +Z.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tar3d.data.toy.draw import Draw, Words
from tar3d.data.toy.furniture import bed, chair, lamp, shelf, sofa, stool, table
from tar3d.data.toy.objects import boat, bottle, car, house, mug, plane, vase
from tar3d.mesh.load import normalize

if TYPE_CHECKING:
    from manifold3d import Manifold

    from tar3d.contracts import Mesh

MIN_THICKNESS = 0.07
FURTHER_CAPTIONS = 3  # besides the one that says all
# edges this short are removed: in float32 they could fold, and the mesh would no longer be closed
SLIVER = 0.003

Family = Callable[[Draw], tuple["Manifold", Words]]

# the order is part of the data: a seed names the same shapes only as long as it stays
_FAMILIES: dict[str, Family] = {
    family.__name__: family
    for family in (
        chair,
        stool,
        table,
        lamp,
        mug,
        bottle,
        vase,
        bed,
        shelf,
        car,
        plane,
        boat,
        sofa,
        house,
    )
}
CATEGORIES: tuple[str, ...] = tuple(_FAMILIES)


@dataclass(frozen=True)
class ToyShape:
    id: str
    category: str
    captions: tuple[str, ...]  # the first says everything, the others less
    parameters: dict[str, float | int | str | bool]
    mesh: Mesh


def generate(index: int, seed: int) -> ToyShape:
    """Shape number `index` of the set `seed`: a pure function of the two."""
    rng = np.random.default_rng([seed, index])
    category = CATEGORIES[int(rng.integers(len(CATEGORIES)))]
    draw = Draw(rng)
    solid, words = _FAMILIES[category](draw)
    pieces = solid.simplify(SLIVER).to_mesh()
    mesh = normalize(pieces.vert_properties[:, :3], pieces.tri_verts)
    captions, further = [words.caption(rng)], np.random.default_rng([seed, index, 2])
    captions += [words.fewer(further).caption(further) for _ in range(FURTHER_CAPTIONS)]
    return ToyShape(
        f"{category}_{seed}_{index:06d}",
        category,
        tuple(dict.fromkeys(captions)),
        draw.parameters,
        mesh,
    )
