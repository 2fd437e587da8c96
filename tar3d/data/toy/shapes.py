"""Procedural shapes of 14 categories: closed manifolds with their parameters and captions.

    shape = generate(index=7, seed=0)

Lengths are in units of the cube [-1, 1]^3, in which the longest side of a finished shape spans 1.9.
No leg, board, wall or handle is thinner than 0.07, so that a small tokenizer can represent it. Y is
up, the front looks at +Z.

To add a category: write a function like those in `furniture`, and add it at the end of
`_CATEGORIES`. Shapes of a seed change then, so raise `VERSION` in `make_toy`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tar3d.data.toy.buildings import house
from tar3d.data.toy.draw import CaptionParts, Draw
from tar3d.data.toy.furniture import bed, chair, lamp, shelf, sofa, stool, table
from tar3d.data.toy.vehicles import boat, car, plane
from tar3d.data.toy.vessels import bottle, mug, vase
from tar3d.mesh.load import normalize

if TYPE_CHECKING:
    from manifold3d import Manifold

    from tar3d.contracts import Mesh

EXTRA_CAPTIONS = 3  # besides the complete one
# shorter edges are removed: in float32 they could fold, and the mesh would no longer be closed
SLIVER = 0.003

Category = Callable[[Draw], tuple["Manifold", CaptionParts]]

# The order is a part of the data: with another order a seed gives other shapes.
_CATEGORIES: dict[str, Category] = {
    category.__name__: category
    for category in (
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
CATEGORIES: tuple[str, ...] = tuple(_CATEGORIES)


@dataclass(frozen=True)
class ToyShape:
    """A procedural shape."""

    id: str
    category: str
    captions: tuple[str, ...]  # the first names everything, the others less
    parameters: dict[str, float | int | str | bool]  # all that was drawn, by name
    mesh: Mesh


def generate(index: int, seed: int) -> ToyShape:
    """Shape number `index` of the set `seed`, a pure function of the two."""
    rng = np.random.default_rng([seed, index])
    category = CATEGORIES[int(rng.integers(len(CATEGORIES)))]
    draw = Draw(rng)
    solid, parts = _CATEGORIES[category](draw)
    pieces = solid.simplify(SLIVER).to_mesh()
    mesh = normalize(pieces.vert_properties[:, :3], pieces.tri_verts)
    captions, extra_rng = [parts.caption(rng)], np.random.default_rng([seed, index, 2])
    captions += [parts.subset(extra_rng).caption(extra_rng) for _ in range(EXTRA_CAPTIONS)]
    return ToyShape(
        f"{category}_{seed}_{index:06d}",
        category,
        tuple(dict.fromkeys(captions)),
        draw.parameters,
        mesh,
    )
