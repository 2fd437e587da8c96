"""Procedural vessels: mug, bottle and vase.

Each function draws its parameters and returns a solid and the parts of its caption.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tar3d.data.toy.draw import CaptionParts, Draw, grade
from tar3d.data.toy.solids import (
    arc,
    both_sides,
    box,
    cylinder,
    disk,
    ellipse,
    lathe,
    loft,
    rectangle,
    torus,
    tube,
    union,
)

if TYPE_CHECKING:
    from manifold3d import Manifold


def hollow(profile: list[tuple[float, float]], wall: float, floor: float) -> Manifold:
    """A vessel with walls and a floor of given thickness.

    `profile` is its outline: (radius, y) from the foot upwards.
    """
    from scipy.interpolate import PchipInterpolator

    r, y = np.array(profile).T
    height = np.linspace(y[0], y[-1], 22)
    outer = PchipInterpolator(y, r)(height)
    cavity = np.linspace(y[0] + floor, y[-1], 20)
    # `wall` is measured across the wall, not horizontally
    lengthened = np.hypot(1.0, PchipInterpolator(y, r)(cavity, 1))
    inner = np.maximum(PchipInterpolator(y, r)(cavity) - wall * lengthened, 0.03)
    outline = [
        (0.0, y[0]),
        *zip(outer, height, strict=True),
        *zip(inner[::-1], cavity[::-1], strict=True),
        (0.0, y[0] + floor),
    ]
    return lathe(outline)


def hollow_inside(profile: list[tuple[float, float]], wall: float) -> Manifold:
    """The inside of a vessel of `hollow`, which handles must not fill, and half of its walls."""
    from scipy.interpolate import PchipInterpolator

    r, y = np.array(profile).T
    height = np.linspace(y[0] + 0.14, y[-1], 20)
    radius = np.maximum(PchipInterpolator(y, r)(height) - wall / 2, 0.03)
    return lathe([(0.0, height[0]), *zip(radius, height, strict=True), (0.0, height[-1])])


def mug(draw: Draw) -> tuple[Manifold, CaptionParts]:
    radius, height = draw.real("radius", 0.45, 0.70), draw.real("half_height", 0.45, 0.90)
    taper, belly = draw.real("taper", 0.75, 1.05), draw.real("belly", -0.06, 0.12)
    wall, handle = draw.real("wall", 0.10, 0.14), draw.real("handle_thickness", 0.11, 0.16)
    reach, kind = (
        draw.real("handle_reach", 0.24, 0.40),
        draw.pick("handle", "round", "square", "none"),
    )
    two = draw.chance("two_handles", 0.25)
    lower = radius * taper
    profile = [(lower, -height), ((radius + lower) / 2 + belly, 0.0), (radius, height)]
    parts = [hollow(profile, wall, max(wall, 0.12))]
    if kind != "none":
        middle = (radius + lower) / 2 + belly - wall / 2
        tall = min(0.62 * height, 0.5)
        if kind == "round":
            path = np.column_stack(
                [arc((middle, 0.0), (reach, tall), (-100, 100), 20), np.zeros(20)]
            )
            grip = tube(path, handle)
        else:
            grip = union(
                [
                    box((middle, middle + reach), (tall - handle, tall), (-handle / 2, handle / 2)),
                    box(
                        (middle, middle + reach), (-tall, -tall + handle), (-handle / 2, handle / 2)
                    ),
                    box(
                        (middle + reach - handle, middle + reach),
                        (-tall, tall),
                        (-handle / 2, handle / 2),
                    ),
                ]
            )
        inside = loft(
            (-height + max(wall, 0.12), height + 0.1), disk(max(min(lower, radius) - wall, 0.1))
        )
        parts += [p - inside for p in (both_sides(grip) if two else [grip])]
    grips = "" if kind == "none" else f"two {kind} handles" if two else f"a {kind} handle"
    return union(parts), CaptionParts(
        "mug",
        [
            grade(height / radius, 0.95, "low", 1.35, "tall"),
            grade(wall, 0.112, "thin-walled", 0.128, "thick-walled"),
        ],
        [grips or "no handle", grade(belly, 0.0, "a narrow waist", 0.07, "a round belly")],
    )


def bottle(draw: Draw) -> tuple[Manifold, CaptionParts]:
    body, neck = draw.real("body_radius", 0.26, 0.46), draw.real("neck_radius", 0.09, 0.16)
    shoulder, neck_start = (
        draw.real("shoulder_height", -0.1, 0.3),
        draw.real("neck_height", 0.36, 0.6),
    )
    depth, cap = draw.real("depth_ratio", 0.6, 1.0), draw.real("cap_height", 0.12, 0.22)
    style, closed, ridge = (
        draw.pick("body", "round", "square", "waisted"),
        draw.chance("cap"),
        draw.chance("ring"),
    )
    if style == "square":
        trunk = loft((-0.95, shoulder), rectangle(1.8 * body, 1.8 * body * depth))
        rim = rectangle(1.8 * body, 1.8 * body * depth)
    else:
        waist = 0.8 if style == "waisted" else 1.0
        profile = [
            (0, -0.95),
            (body, -0.95),
            *[
                (body * (1 - (1 - waist) * np.sin(np.pi * t)), -0.95 + t * (shoulder + 0.95))
                for t in np.linspace(0.08, 0.92, 9)
            ],
            (body, shoulder),
            (0, shoulder),
        ]
        trunk = lathe(profile).scale((1, 1, depth))
        rim = ellipse(body, body * depth)
    top = 0.95 - (cap if closed else 0)
    # the shoulders reach into the trunk: solids that only touch would keep a wall between them
    parts = [
        trunk,
        loft((shoulder - 0.03, shoulder), 0.9 * rim, rim),
        loft((shoulder, neck_start), rim, disk(neck)),
        cylinder(neck, (neck_start - 0.02, top + 0.01)),
    ]
    if closed:
        parts.append(cylinder(neck + 0.06, (top, 0.95)))
    if ridge:
        parts.append(torus(neck + 0.01, 0.09, (neck_start + top) / 2))
    return union(parts), CaptionParts(
        "bottle",
        [grade(body, 0.32, "slim", 0.40, "fat"), "flat" if depth < 0.72 else "", style],
        [
            "a cap" if closed else "an open neck",
            "a ring on the neck" if ridge else "",
            grade(0.95 - neck_start, 0.42, "a short neck", 0.52, "a long neck"),
        ],
    )


def vase(draw: Draw) -> tuple[Manifold, CaptionParts]:
    foot, belly = draw.real("foot_radius", 0.25, 0.45), draw.real("belly_radius", 0.40, 0.75)
    neck, lip = draw.real("neck_radius", 0.24, 0.45), draw.real("lip_radius", 0.28, 0.62)
    bulge, height = draw.real("belly_height", -0.5, 0.2), draw.real("half_height", 0.7, 0.95)
    wall, style, handles = (
        draw.real("wall", 0.10, 0.14),
        draw.pick("rim", "flared", "straight", "closed-in"),
        draw.chance("handles", 0.4),
    )
    rim = {"flared": max(lip, neck + 0.08), "straight": neck, "closed-in": max(neck - 0.06, 0.22)}[
        style
    ]
    profile = [(foot, -height), (belly, bulge * height), (neck, 0.68 * height), (rim, height)]
    parts = [hollow(profile, wall, 0.14)]
    if handles:
        low, high = bulge * height + 0.12, 0.62 * height
        path = np.column_stack(
            [
                arc(
                    ((belly + neck) / 2 - 0.06, (low + high) / 2),
                    (0.26, (high - low) / 2),
                    (-85, 85),
                    18,
                ),
                np.zeros(18),
            ]
        )
        inside = hollow_inside(profile, wall)
        parts += both_sides(tube(path, 0.12) - inside)
    return union(parts), CaptionParts(
        "vase",
        [
            grade(height / belly, 1.3, "squat", 1.75, "slender"),
            grade(belly, 0.5, "narrow", 0.65, "wide"),
        ],
        [
            f"a {style} rim",
            "two handles" if handles else "",
            grade(bulge, -0.25, "a low belly", 0.0, "a high belly"),
        ],
    )
