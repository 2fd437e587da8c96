"""Procedural vehicles: car, plane and boat.

Each function draws its parameters and returns a solid and the parts of its caption.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tar3d.data.toy.draw import CaptionParts, Draw, grade, number, phrase
from tar3d.data.toy.solids import (
    both_sides,
    box,
    cylinder,
    ellipsoid,
    extrude,
    loft,
    rectangle,
    union,
)

if TYPE_CHECKING:
    from manifold3d import Manifold


def car(draw: Draw) -> tuple[Manifold, CaptionParts]:
    half_x, body = draw.real("half_width", 0.34, 0.46), draw.real("body_height", 0.22, 0.34)
    wheel, thick = draw.real("wheel_radius", 0.16, 0.25), draw.real("wheel_thickness", 0.12, 0.18)
    front, rear = draw.real("front_axle", 0.5, 0.66), draw.real("rear_axle", 0.5, 0.66)
    roof, slant = draw.real("roof_height", 0.22, 0.36), draw.real("slant", 0.06, 0.24)
    kind, spoiler = (
        draw.pick("kind", "sedan", "hatchback", "pickup", "van"),
        draw.chance("spoiler", 0.35),
    )
    low = -0.3
    high = low + body
    start, end = {
        "sedan": (-0.55, 0.35),
        "hatchback": (-0.9, 0.3),
        "pickup": (-0.1, 0.45),
        "van": (-0.93, 0.7),
    }[kind]
    cabin = [
        (start, high - 0.02),
        (end + slant, high - 0.02),
        (end, high + roof),
        (start + (0.12 if kind == "sedan" else 0.04), high + roof),
    ]
    parts = [
        box((-half_x, half_x), (low, high), (-0.95, 0.95), 0.06),
        extrude(cabin, "x", (-half_x + 0.06, half_x - 0.06)),
    ]
    if kind == "pickup":
        parts[0] = parts[0] - box(
            (-half_x + 0.1, half_x - 0.1), (high - body * 0.5, high + 0.1), (-0.84, -0.16)
        )
    if spoiler and kind in ("sedan", "pickup"):
        parts += [
            box((-half_x, half_x), (high + 0.1, high + 0.19), (-0.95, -0.75)),
            *both_sides(
                box((half_x - 0.2, half_x - 0.1), (high - 0.05, high + 0.12), (-0.92, -0.8))
            ),
        ]
    for z in (front, -rear):
        tyre = extrude(
            [
                (z + wheel * np.cos(a), low + 0.02 + wheel * np.sin(a))
                for a in np.linspace(0, 2 * np.pi, 28, endpoint=False)
            ],
            "x",
            (half_x - thick * 0.6, half_x + thick * 0.4),
        )
        parts += both_sides(tyre)
    return union(parts), CaptionParts(
        kind if kind != "sedan" else "sedan car",
        [grade(half_x, 0.37, "narrow", 0.43, "wide"), grade(body + roof, 0.5, "low", 0.62, "tall")],
        [
            f"{grade(wheel, 0.19, 'small', 0.22, 'big')} wheels".strip(),
            "a spoiler" if spoiler and kind in ("sedan", "pickup") else "",
        ],
    )


def _fuselage(radius: float) -> Manifold:
    """A tube along z with rounded ends."""
    outline = [
        (radius * np.cos(a), radius * np.sin(a))
        for a in np.linspace(0, 2 * np.pi, 28, endpoint=False)
    ]
    return union(
        [
            ellipsoid((radius, radius, 0.35), (0, 0, 0.6)),
            extrude(outline, "z", (-0.4, 0.6)),
            ellipsoid((radius, radius, 0.55), (0, 0, -0.4)),
        ]
    )


def plane(draw: Draw) -> tuple[Manifold, CaptionParts]:
    radius, span = draw.real("body_radius", 0.11, 0.18), draw.real("wing_span", 0.65, 0.95)
    chord, sweep = draw.real("wing_chord", 0.24, 0.42), draw.real("wing_sweep", -0.02, 0.4)
    tip, place = draw.real("wing_taper", 0.45, 1.0), draw.real("wing_place", -0.05, 0.25)
    tail, fin = draw.real("tail_span", 0.28, 0.45), draw.real("fin_height", 0.25, 0.42)
    mount, engines, t_tail = (
        draw.pick("wing", "low", "high", "mid"),
        draw.pick("engines", 0, 2, 4),
        draw.chance("t_tail", 0.3),
    )
    y = {"low": -radius * 0.6, "mid": 0.0, "high": radius * 0.6}[mount]
    wing = [
        (0, place - chord / 2),
        (0, place + chord / 2),
        (span, place - sweep + chord * tip / 2),
        (span, place - sweep - chord * tip / 2),
    ]
    parts = [_fuselage(radius), *both_sides(extrude(wing, "y", (y - 0.04, y + 0.04)))]
    height = radius + fin if t_tail else 0.04
    stabiliser = [(0, -0.94), (0, -0.68), (tail, -0.76), (tail, -0.94)]
    parts += both_sides(extrude(stabiliser, "y", (height - 0.08, height)))
    parts.append(
        extrude(
            [(-0.55, 0.0), (-0.8, radius + fin), (-0.94, radius + fin), (-0.94, 0.0)],
            "x",
            (-0.04, 0.04),
        )
    )
    for k in range(engines // 2):
        x = span * (0.36 + 0.26 * k)
        z = place - sweep * x / span
        pod = extrude(
            [
                (x + 0.075 * np.cos(a), y - 0.09 + 0.075 * np.sin(a))
                for a in np.linspace(0, 2 * np.pi, 20, endpoint=False)
            ],
            "z",
            (z - 0.14, z + 0.2),
        )
        parts += both_sides(pod)
    return union(parts), CaptionParts(
        "plane",
        [grade(radius, 0.13, "slim", 0.16, "fat")],
        [
            phrase("swept" if sweep > 0.18 else "straight", mount, "wings"),
            number(engines, "engine") if engines else "",
            "a T-tail" if t_tail else "",
        ],
    )


def boat(draw: Draw) -> tuple[Manifold, CaptionParts]:
    half_x, depth = draw.real("half_width", 0.26, 0.42), draw.real("hull_depth", 0.24, 0.38)
    keel, bow = draw.real("keel_width", 0.3, 0.7), draw.real("bow_length", 0.3, 0.6)
    cabin, mast = draw.real("cabin_height", 0.16, 0.32), draw.real("mast_height", 0.7, 1.1)
    place, sail = draw.real("cabin_place", -0.5, -0.1), draw.real("sail_width", 0.45, 0.75)
    kind, stern = (
        draw.pick("kind", "sailing", "motor", "rowing"),
        draw.pick("stern", "flat", "round"),
    )
    top, low = 0.0, -depth

    def outline(scale: float, shrink: float = 0.0) -> np.ndarray:
        w, front, back = half_x * scale - shrink, 0.95 - shrink, -0.95 + shrink
        nose = [
            (w * np.cos(a), 0.95 - bow + (front - 0.95 + bow) * np.sin(a))
            for a in np.linspace(0, np.pi, 15)
        ]
        rear = (
            [(-w, back), (w, back)]
            if stern == "flat"
            else [
                (w * np.cos(a), back + 0.25 + 0.25 * np.sin(a))
                for a in np.linspace(np.pi, 2 * np.pi, 12)
            ]
        )
        return np.array([*nose, *rear])

    hull_solid = loft((low, top), outline(keel) * [1, 0.9], outline(1.0))
    parts = [
        hull_solid
        - loft((low + 0.14, top + 0.2), outline(keel, 0.1) * [1, 0.88], outline(1.0, 0.1))
    ]
    if kind == "motor":
        parts.append(
            box(
                (-half_x * 0.75, half_x * 0.75),
                (low + 0.08, top + cabin),
                (place - 0.28, place + 0.32),
                0.04,
            )
        )
        parts.append(
            loft((top + cabin - 0.02, top + cabin + 0.1), rectangle(half_x * 1.7, 0.75, 0, place))
        )
    elif kind == "rowing":
        parts += [
            box((-half_x * 0.93, half_x * 0.93), (top - 0.11, top - 0.01), (z - 0.08, z + 0.08))
            for z in (-0.45, 0.1)
        ]
    else:
        parts.append(cylinder(0.055, (low + 0.05, mast)))
        parts.append(extrude([(0.0, 0.14), (-sail, 0.14), (0.0, mast - 0.05)], "x", (-0.04, 0.04)))
    return union(parts), CaptionParts(
        f"{kind} boat",
        [grade(half_x, 0.31, "narrow", 0.37, "wide"), grade(depth, 0.28, "shallow", 0.34, "deep")],
        [f"a {stern} stern", grade(bow, 0.4, "a blunt bow", 0.5, "a pointed bow")],
    )
