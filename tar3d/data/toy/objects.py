"""Procedural vessels, vehicles and houses: each family draws its parameters and returns a solid and
its words (see `toy_shapes`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tar3d.data.toy.draw import Draw, Words, grade, number, phrase
from tar3d.data.toy.solids import (
    arc,
    both_sides,
    box,
    cylinder,
    disk,
    ellipse,
    ellipsoid,
    extrude,
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
    """A vessel: the outer outline (radius, y) from the foot upwards, with walls and a floor of the
    given thickness."""
    from scipy.interpolate import PchipInterpolator

    r, y = np.array(profile).T
    height = np.linspace(y[0], y[-1], 22)
    outer = PchipInterpolator(y, r)(height)
    cavity = np.linspace(y[0] + floor, y[-1], 20)
    lengthened = np.hypot(
        1.0, PchipInterpolator(y, r)(cavity, 1)
    )  # `wall` is measured across the wall, not level
    inner = np.maximum(PchipInterpolator(y, r)(cavity) - wall * lengthened, 0.03)
    outline = [
        (0.0, y[0]),
        *zip(outer, height, strict=True),
        *zip(inner[::-1], cavity[::-1], strict=True),
        (0.0, y[0] + floor),
    ]
    return lathe(outline)


def hollow_inside(profile: list[tuple[float, float]], wall: float) -> Manifold:
    """What a handle must not fill: a solid a little inside the walls of `hollow`."""
    from scipy.interpolate import PchipInterpolator

    r, y = np.array(profile).T
    height = np.linspace(y[0] + 0.14, y[-1], 20)
    radius = np.maximum(PchipInterpolator(y, r)(height) - wall / 2, 0.03)
    return lathe([(0.0, height[0]), *zip(radius, height, strict=True), (0.0, height[-1])])


def mug(draw: Draw) -> tuple[Manifold, Words]:
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
    return union(parts), Words(
        "mug",
        [
            grade(height / radius, 0.95, "low", 1.35, "tall"),
            grade(wall, 0.112, "thin-walled", 0.128, "thick-walled"),
        ],
        [grips or "no handle", grade(belly, 0.0, "a narrow waist", 0.07, "a round belly")],
    )


def bottle(draw: Draw) -> tuple[Manifold, Words]:
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
    return union(parts), Words(
        "bottle",
        [grade(body, 0.32, "slim", 0.40, "fat"), "flat" if depth < 0.72 else "", style],
        [
            "a cap" if closed else "an open neck",
            "a ring on the neck" if ridge else "",
            grade(0.95 - neck_start, 0.42, "a short neck", 0.52, "a long neck"),
        ],
    )


def vase(draw: Draw) -> tuple[Manifold, Words]:
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
    return union(parts), Words(
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


def car(draw: Draw) -> tuple[Manifold, Words]:
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
    return union(parts), Words(
        kind if kind != "sedan" else "sedan car",
        [grade(half_x, 0.37, "narrow", 0.43, "wide"), grade(body + roof, 0.5, "low", 0.62, "tall")],
        [
            f"{grade(wheel, 0.19, 'small', 0.22, 'big')} wheels".strip(),
            "a spoiler" if spoiler and kind in ("sedan", "pickup") else "",
        ],
    )


def plane(draw: Draw) -> tuple[Manifold, Words]:
    radius, span = draw.real("body_radius", 0.11, 0.18), draw.real("wing_span", 0.65, 0.95)
    chord, sweep = draw.real("wing_chord", 0.24, 0.42), draw.real("wing_sweep", -0.02, 0.4)
    tip, place = draw.real("wing_taper", 0.45, 1.0), draw.real("wing_place", -0.05, 0.25)
    tail, fin = draw.real("tail_span", 0.28, 0.45), draw.real("fin_height", 0.25, 0.42)
    mount, engines, t_tail = (
        draw.pick("wing", "low", "high", "mid"),
        draw.pick("engines", 0, 2, 4),
        draw.chance("t_tail", 0.3),
    )
    body = union(
        [
            ellipsoid((radius, radius, 0.35), (0, 0, 0.6)),
            extrude(
                [
                    (radius * np.cos(a), radius * np.sin(a))
                    for a in np.linspace(0, 2 * np.pi, 28, endpoint=False)
                ],
                "z",
                (-0.4, 0.6),
            ),
            ellipsoid((radius, radius, 0.55), (0, 0, -0.4)),
        ]
    )
    y = {"low": -radius * 0.6, "mid": 0.0, "high": radius * 0.6}[mount]
    wing = [
        (0, place - chord / 2),
        (0, place + chord / 2),
        (span, place - sweep + chord * tip / 2),
        (span, place - sweep - chord * tip / 2),
    ]
    parts = [body, *both_sides(extrude(wing, "y", (y - 0.04, y + 0.04)))]
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
    return union(parts), Words(
        "plane",
        [grade(radius, 0.13, "slim", 0.16, "fat")],
        [
            phrase("swept" if sweep > 0.18 else "straight", mount, "wings"),
            number(engines, "engine") if engines else "",
            "a T-tail" if t_tail else "",
        ],
    )


def boat(draw: Draw) -> tuple[Manifold, Words]:
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
    return union(parts), Words(
        f"{kind} boat",
        [grade(half_x, 0.31, "narrow", 0.37, "wide"), grade(depth, 0.28, "shallow", 0.34, "deep")],
        [f"a {stern} stern", grade(bow, 0.4, "a blunt bow", 0.5, "a pointed bow")],
    )


def house(draw: Draw) -> tuple[Manifold, Words]:
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
    if style == "gabled":
        parts.append(
            extrude(
                [(-half_z - eaves, top - 0.02), (half_z + eaves, top - 0.02), (0.0, top + roof)],
                "x",
                (-half_x - eaves, half_x + eaves),
            )
        )
    elif style == "hipped":
        parts.append(
            loft(
                (top - 0.02, top + roof),
                rectangle(2 * (half_x + eaves), 2 * (half_z + eaves)),
                rectangle(half_x * 0.8, 0.1),
            )
        )
    else:
        parts.append(
            box(
                (-half_x - eaves, half_x + eaves),
                (top - 0.02, top + 0.11),
                (-half_z - eaves, half_z + eaves),
            )
        )
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
    return solid, Words(
        "house",
        [grade(wall, 0.52, "low", 0.72, "tall"), grade(half_x, 0.55, "narrow", 0.72, "wide")],
        [
            f"a {style} roof",
            "a chimney" if has_chimney else "",
            "a side wing" if wing else "",
            "a porch" if porch else "",
        ],
    )
