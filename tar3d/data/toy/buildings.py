"""Procedural buildings: house.

Each function draws its parameters and returns a solid and the parts of its caption.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tar3d.data.toy.draw import CaptionParts, Draw, grade
from tar3d.data.toy.solids import (
    both_sides,
    box,
    extrude,
    loft,
    rectangle,
    union,
)

if TYPE_CHECKING:
    from manifold3d import Manifold


def _roof(
    style: str, half_x: float, half_z: float, eaves: float, top: float, height: float
) -> Manifold:
    """The roof of a house whose walls end at `top`."""
    wide_x, wide_z = half_x + eaves, half_z + eaves
    if style == "gabled":
        outline = [(-half_z - eaves, top - 0.02), (wide_z, top - 0.02), (0.0, top + height)]
        return extrude(outline, "x", (-half_x - eaves, wide_x))
    if style == "hipped":
        return loft(
            (top - 0.02, top + height),
            rectangle(2 * wide_x, 2 * wide_z),
            rectangle(half_x * 0.8, 0.1),
        )
    return box((-half_x - eaves, wide_x), (top - 0.02, top + 0.11), (-half_z - eaves, wide_z))


def house(draw: Draw) -> tuple[Manifold, CaptionParts]:
    half_x, half_z = draw.real("half_width", 0.45, 0.85), draw.real("half_depth", 0.4, 0.75)
    wall, roof = draw.real("wall_height", 0.4, 0.85), draw.real("roof_height", 0.25, 0.6)
    eaves, chimney = draw.real("eaves", 0.05, 0.15), draw.real("chimney_place", 0.2, 0.6)
    door = draw.real("door_width", 0.2, 0.32)
    style, has_chimney, wing, porch = (
        draw.pick("roof", "gabled", "hipped", "flat"),
        draw.chance("chimney"),
        draw.chance("wing", 0.4),
        draw.chance("porch", 0.4),
    )
    low = -0.6
    top = low + wall
    parts = [box((-half_x, half_x), (low, top), (-half_z, half_z))]
    parts.append(_roof(style, half_x, half_z, eaves, top, roof))
    if has_chimney:
        x = half_x * chimney
        parts.append(box((x - 0.09, x + 0.09), (top - 0.1, top + roof + 0.12), (-0.27, -0.09)))
    if wing:
        parts.append(
            box(
                (half_x - 0.05, half_x + 0.4),
                (low, low + wall * 0.65),
                (-half_z * 0.7, half_z * 0.5),
            )
        )
    if porch:
        parts += [
            box(
                (-0.45, 0.45),
                (low + wall * 0.6, low + wall * 0.6 + 0.09),
                (half_z - 0.05, half_z + 0.35),
            ),
            *both_sides(
                box((0.33, 0.43), (low, low + wall * 0.62), (half_z + 0.22, half_z + 0.32))
            ),
        ]
    solid = union(parts) - box(
        (-door / 2, door / 2), (low - 0.1, low + wall * 0.5), (half_z - 0.12, half_z + 0.05)
    )
    return solid, CaptionParts(
        "house",
        [grade(wall, 0.52, "low", 0.72, "tall"), grade(half_x, 0.55, "narrow", 0.72, "wide")],
        [
            f"a {style} roof",
            "a chimney" if has_chimney else "",
            "a side wing" if wing else "",
            "a porch" if porch else "",
        ],
    )
