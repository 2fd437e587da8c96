"""Procedural furniture: chair, stool, table, lamp, bed, shelf and sofa.

Each function draws its parameters and returns a solid and the parts of its caption.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tar3d.data.toy.draw import CaptionParts, Draw, article, grade, number, phrase
from tar3d.data.toy.solids import (
    both_sides,
    box,
    cylinder,
    disk,
    ellipsoid,
    extrude,
    lean,
    legs,
    loft,
    slab,
    union,
)

if TYPE_CHECKING:
    from manifold3d import Manifold


def _chair_back(
    style: str, half_x: float, z: tuple[float, float], bar: float, seat: float, bottom: float
) -> list[Manifold]:
    """The upright parts of a chair's back, `bar` thick, from `bottom` inside the seat."""
    if style == "solid":
        return [box((-half_x, half_x), (bottom, 0.95), z)]
    parts = [
        *both_sides(box((half_x - bar, half_x), (bottom, 0.95), z)),
        box((-half_x, half_x), (0.95 - 1.6 * bar, 0.95), z),
    ]
    if style == "slatted":
        parts.append(box((-half_x, half_x), ((seat + 0.95) / 2 - bar, (seat + 0.95) / 2), z))
    return parts


def chair(draw: Draw) -> tuple[Manifold, CaptionParts]:
    half_x, half_z = draw.real("half_width", 0.40, 0.58), draw.real("half_depth", 0.38, 0.55)
    seat, thick = draw.real("seat_height", -0.30, 0.0), draw.real("seat_thickness", 0.10, 0.18)
    leg, splay = draw.real("leg_thickness", 0.09, 0.16), draw.real("leg_splay", 1.0, 1.2)
    slope, bar = draw.real("back_slope", 0.0, 0.22), draw.real("back_thickness", 0.09, 0.14)
    count, round_legs = draw.pick("legs", 3, 4), draw.chance("round_legs")
    shape, back, arms = (
        draw.pick("seat", "round", "square"),
        draw.pick("back", "solid", "slatted", "open"),
        draw.chance("arms", 0.4),
    )
    reach = 0.72 if shape == "round" else 0.9
    parts = [
        slab(shape, half_x, half_z, (seat - thick, seat)),
        *legs(
            count, round_legs, leg, splay, half_x * reach, half_z * reach, -0.95, seat - thick / 2
        ),
    ]
    rear = -half_z * (0.8 if shape == "round" else 1.0)
    inset = half_x * (0.75 if shape == "round" else 1.0)
    panel = _chair_back(back, inset, (rear, rear + bar), bar, seat, seat - thick / 2)
    parts += [lean(p, slope, seat) for p in panel]
    if arms:
        parts += both_sides(
            box((half_x - bar, half_x), (seat + 0.28, seat + 0.28 + bar), (rear, half_z * 0.7))
        )
        parts += both_sides(
            box(
                (half_x - bar, half_x),
                (seat - thick / 2, seat + 0.30),
                (half_z * 0.7 - bar, half_z * 0.7),
            )
        )
    return union(parts), CaptionParts(
        "chair",
        [grade(seat, -0.22, "low", -0.08, "tall"), grade(half_x, 0.45, "narrow", 0.53, "wide")],
        [
            f"a {phrase(shape, 'seat')}",
            article(f"{back} back"),
            "arms" if arms else "",
            phrase(
                number(
                    count,
                    phrase(
                        grade(leg, 0.11, "thin", 0.14, "thick"),
                        "round" if round_legs else "square",
                        "leg",
                    ),
                )
            ),
        ],
    )


def stool(draw: Draw) -> tuple[Manifold, CaptionParts]:
    half_x = draw.real("half_width", 0.35, 0.65)
    stretch, thick = draw.real("depth_ratio", 0.75, 1.0), draw.real("seat_thickness", 0.12, 0.28)
    leg, splay = draw.real("leg_thickness", 0.10, 0.18), draw.real("leg_splay", 1.0, 1.45)
    height, rung_height = draw.real("half_height", 0.55, 0.95), draw.real("rung_height", 0.3, 0.6)
    shape, base, rungs = (
        draw.pick("seat", "round", "square"),
        draw.pick("base", "three legs", "four legs", "pedestal"),
        draw.chance("rungs"),
    )
    half_z = half_x * stretch
    corner = 0.72 if shape == "round" else 0.85
    parts = [slab(shape, half_x, half_z, (height - thick, height))]
    if base == "pedestal":
        parts += [
            cylinder(leg * 0.8, (-height + 0.05, height - thick / 2)),
            cylinder(half_x * 0.85, (-height, -height + 0.1)),
        ]
    else:
        count = 3 if base == "three legs" else 4
        parts += legs(
            count, True, leg, splay, half_x * corner, half_z * corner, -height, height - thick / 2
        )
        if rungs:
            y = -height + rung_height * (2 * height - thick)
            grow = splay + (1 - splay) * rung_height
            reach_x, reach_z = ((half * corner - leg / 2) * grow for half in (half_x, half_z))
            parts.append(
                box(
                    (-reach_x, reach_x),
                    (y - 0.045, y + 0.045),
                    (-reach_z - 0.045, -reach_z + 0.045),
                )
            )
            if count == 4:
                parts.append(
                    box(
                        (-reach_x, reach_x),
                        (y - 0.045, y + 0.045),
                        (reach_z - 0.045, reach_z + 0.045),
                    )
                )
    feature = (
        "a pedestal"
        if base == "pedestal"
        else phrase(base.split()[0], grade(leg, 0.12, "thin", 0.16, "thick"), "legs")
    )
    return union(parts), CaptionParts(
        "stool",
        [grade(height / half_x, 1.25, "low", 1.9, "tall"), shape],
        [
            feature,
            "rungs" if rungs and base != "pedestal" else "",
            grade(thick, 0.16, "a thin seat", 0.24, "a thick seat"),
        ],
    )


def table(draw: Draw) -> tuple[Manifold, CaptionParts]:
    half_x, ratio = draw.real("half_width", 0.6, 0.95), draw.real("depth_ratio", 0.5, 1.0)
    height, thick = draw.real("half_height", 0.3, 0.8), draw.real("top_thickness", 0.09, 0.18)
    leg, splay = draw.real("leg_thickness", 0.10, 0.20), draw.real("leg_inset", 0.7, 1.0)
    shape, base = (
        draw.pick("top", "round", "square"),
        draw.pick("base", "three legs", "four legs", "pedestal", "panels"),
    )
    round_legs, shelf = draw.chance("round_legs"), draw.chance("shelf", 0.35)
    half_z = half_x * ratio
    parts = [slab(shape, half_x, half_z, (height - thick, height))]
    inner_x, inner_z = (
        half * splay * (0.72 if shape == "round" else 0.97) for half in (half_x, half_z)
    )
    if base == "pedestal":
        parts += [
            cylinder(leg, (-height + 0.05, height - thick / 2)),
            slab(shape, inner_x * 0.7, inner_z * 0.7, (-height, -height + 0.11)),
        ]
    elif base == "panels":
        parts += both_sides(
            box((inner_x - 0.11, inner_x), (-height, height - thick / 2), (-inner_z, inner_z))
        )
    else:
        parts += legs(
            3 if base == "three legs" else 4,
            round_legs,
            leg,
            1.0,
            inner_x,
            inner_z,
            -height,
            height - thick / 2,
        )
    low = shelf and base in ("four legs", "panels")
    if low:
        parts.append(
            box(
                (-inner_x + 0.02, inner_x - 0.02),
                (-height * 0.45, -height * 0.45 + 0.1),
                (-inner_z + 0.02, inner_z - 0.02),
            )
        )
    feature = {"pedestal": "a pedestal", "panels": "two side panels"}.get(base) or phrase(
        base.split()[0], grade(leg, 0.13, "thin", 0.17, "thick"), "legs"
    )
    return union(parts), CaptionParts(
        "table",
        [grade(height, 0.42, "low", 0.62, "tall"), grade(ratio, 0.65, "long", 0.9, ""), shape],
        [feature, "a shelf below" if low else ""],
    )


def lamp(draw: Draw) -> tuple[Manifold, CaptionParts]:
    bottom, top = draw.real("shade_bottom", 0.38, 0.68), draw.real("shade_top", 0.18, 0.45)
    shade, pole = draw.real("shade_height", 0.40, 0.75), draw.real("pole_thickness", 0.10, 0.18)
    foot, thick = draw.real("foot_radius", 0.28, 0.55), draw.real("foot_thickness", 0.10, 0.2)
    style, base, bulb = (
        draw.pick("shade", "cone", "drum", "globe"),
        draw.pick("foot", "round", "square", "dome"),
        draw.chance("knob"),
    )
    rim = 0.95 - shade
    parts = [cylinder(pole / 2, (-0.95 + thick / 2, rim + shade / 2))]
    if style == "globe":
        parts.append(ellipsoid((bottom * 0.9, shade / 2, bottom * 0.9), (0, rim + shade / 2, 0)))
    else:
        parts.append(
            loft((rim, 0.95), disk(bottom), disk(top if style == "cone" else bottom * 0.95))
        )
    if base == "dome":
        parts.append(
            ellipsoid((foot, thick * 1.6, foot), (0, -0.95, 0)).trim_by_plane((0, 1, 0), -0.95)
        )
    else:
        parts.append(slab(base, foot, foot, (-0.95, -0.95 + thick)))
    if bulb:
        middle = (-0.95 + thick + rim) / 2
        parts.append(ellipsoid((pole * 1.1, pole * 1.1, pole * 1.1), (0, middle, 0)))
    return union(parts), CaptionParts(
        "lamp",
        [grade(shade, 0.5, "", 0.65, "big-shaded"), grade(pole, 0.12, "thin", 0.16, "stout")],
        [f"a {style} shade", f"a {base} foot", "a knob on the pole" if bulb else ""],
    )


def bed(draw: Draw) -> tuple[Manifold, CaptionParts]:
    half_x, height = draw.real("half_width", 0.42, 0.78), draw.real("mattress_height", -0.22, 0.02)
    frame, mattress = (
        draw.real("frame_thickness", 0.10, 0.18),
        draw.real("mattress_thickness", 0.14, 0.26),
    )
    head, foot = draw.real("headboard", 0.2, 0.55), draw.real("footboard", 0.0, 0.25)
    leg, board = draw.real("leg_thickness", 0.11, 0.18), draw.real("board_thickness", 0.09, 0.13)
    pillows, headboard, footboard = (
        draw.pick("pillows", 1, 2),
        draw.pick("headboard_style", "straight", "arched", "none"),
        draw.chance("has_footboard"),
    )
    floor = -0.5
    parts = [
        box((-half_x, half_x), (height - frame, height), (-0.95, 0.95)),
        box((-half_x + 0.04, half_x - 0.04), (height - 0.02, height + mattress), (-0.9, 0.9), 0.05),
        *legs(4, False, leg, 1.0, half_x, 0.95, floor, height - frame / 2),
    ]
    if headboard != "none":
        outline = [(-half_x, floor), (half_x, floor), (half_x, head)]
        outline += (
            [(half_x * np.cos(a), head + 0.22 * np.sin(a)) for a in np.linspace(0, np.pi, 16)[1:-1]]
            if headboard == "arched"
            else []
        )
        parts.append(extrude([*outline, (-half_x, head)], "z", (-0.95, -0.95 + board)))
    if footboard:
        parts.append(
            box((-half_x, half_x), (floor, height + mattress * 0.6 + foot), (0.95 - board, 0.95))
        )
    width = (half_x - 0.1) * (0.9 if pillows == 1 else 0.43)
    top = height + mattress
    parts += [
        box((x - width, x + width), (top - 0.04, top + 0.1), (-0.78, -0.48), 0.06)
        for x in ([0.0] if pillows == 1 else [-half_x / 2, half_x / 2])
    ]
    return union(parts), CaptionParts(
        "bed",
        [grade(half_x, 0.52, "narrow", 0.68, "wide"), grade(height, -0.15, "low", -0.05, "high")],
        [
            "no headboard" if headboard == "none" else article(f"{headboard} headboard"),
            "a footboard" if footboard else "",
            number(pillows, "pillow"),
        ],
    )


def shelf(draw: Draw) -> tuple[Manifold, CaptionParts]:
    half_x, half_z = draw.real("half_width", 0.35, 0.85), draw.real("half_depth", 0.2, 0.36)
    height, board = draw.real("half_height", 0.5, 0.95), draw.real("board_thickness", 0.09, 0.13)
    foot, side = draw.real("foot_height", 0.1, 0.25), draw.real("side_thickness", 0.09, 0.13)
    levels, back, feet, middle = (
        draw.pick("boards", 2, 3, 4, 5),
        draw.chance("back", 0.6),
        draw.chance("feet"),
        draw.chance("divider", 0.3),
    )
    bottom = -height + (foot if feet else 0)
    parts = both_sides(box((half_x - side, half_x), (bottom, height), (-half_z, half_z)))
    parts += [
        box((-half_x, half_x), (y, y + board), (-half_z, half_z))
        for y in np.linspace(bottom, height - board, levels)
    ]
    if back:
        parts.append(box((-half_x, half_x), (bottom, height), (-half_z, -half_z + 0.09)))
    if feet:
        parts += legs(4, False, 0.13, 1.0, half_x, half_z, -height, bottom + 0.02)
    if middle:
        parts.append(box((-side / 2, side / 2), (bottom, height), (-half_z, half_z)))
    return union(parts), CaptionParts(
        "shelf",
        [
            grade(height / half_x, 0.95, "low", 1.5, "tall"),
            grade(half_x, 0.5, "narrow", 0.7, "wide"),
        ],
        [
            number(levels, "board"),
            "a back panel" if back else "an open back",
            "feet" if feet else "",
            "a divider" if middle else "",
        ],
    )


def sofa(draw: Draw) -> tuple[Manifold, CaptionParts]:
    half_x, half_z = draw.real("half_width", 0.6, 0.95), draw.real("half_depth", 0.32, 0.45)
    seat, back = draw.real("seat_height", -0.12, 0.02), draw.real("back_height", 0.25, 0.5)
    arm, arm_height = draw.real("arm_width", 0.12, 0.24), draw.real("arm_height", 0.1, 0.26)
    thick, leg = draw.real("back_thickness", 0.16, 0.26), draw.real("leg_height", 0.1, 0.2)
    cushions, arms, feet = (
        draw.pick("cushions", 1, 2, 3),
        draw.pick("arms", "round", "square", "no"),
        draw.chance("legs", 0.6),
    )
    floor = -0.45
    bottom = floor + (leg if feet else 0.0)
    inner = half_x - (arm if arms != "no" else 0.0)
    parts = [
        box((-half_x, half_x), (bottom, max(seat - 0.12, bottom + 0.1)), (-half_z, half_z), 0.03),
        box((-half_x, half_x), (bottom, back), (-half_z, -half_z + thick), 0.05),
    ]
    width = 2 * inner / cushions
    for k in range(cushions):
        x = -inner + k * width
        parts.append(
            box(
                (x + 0.012, x + width - 0.012),
                (max(seat - 0.16, bottom + 0.02), seat),
                (-half_z + thick - 0.03, half_z),
                0.05,
            )
        )
    if arms != "no":
        height = seat + arm_height
        if arms == "square":
            solid = box((half_x - arm, half_x), (bottom, height), (-half_z, half_z), 0.03)
        else:
            ring = [
                (half_x - arm / 2 + arm / 2 * np.cos(a), height - arm / 2 + arm / 2 * np.sin(a))
                for a in np.linspace(0, np.pi, 14)
            ]
            solid = extrude(
                [*ring, (half_x - arm, bottom), (half_x, bottom)], "z", (-half_z, half_z)
            )
        parts += both_sides(solid)
    if feet:
        parts += legs(4, False, 0.12, 1.0, half_x - 0.03, half_z - 0.03, floor, bottom + 0.03)
    return union(parts), CaptionParts(
        "sofa",
        [grade(half_x, 0.7, "small", 0.85, "long"), grade(back, 0.32, "low", 0.43, "high-backed")],
        [number(cushions, "cushion"), f"{arms} arms", "legs" if feet else ""],
    )
