"""Procedural shapes of 14 categories: closed manifolds with the parameters they were made from and a caption.

    shape = generate(index=7, seed=0)

Lengths are in units of the cube [-1, 1]^3, in which the longest side of a finished shape spans 1.9. So that a small
tokenizer can hold them, no leg, board, wall or handle is thinner than `MIN_THICKNESS`. Y is up, the front looks at +Z.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tar3d.contracts import Mesh
from tar3d.data.toy_draw import Draw, Words, article, grade, number, phrase
from tar3d.data.toy_solids import (
    Ring,
    arc,
    both_sides,
    box,
    cylinder,
    disk,
    ellipse,
    ellipsoid,
    extrude,
    lathe,
    lean,
    loft,
    rectangle,
    torus,
    tube,
    union,
)
from tar3d.mesh.load import normalize

if TYPE_CHECKING:
    from manifold3d import Manifold

MIN_THICKNESS = 0.07
SLIVER = 0.003  # edges this short are removed: in float32 they could fold, and the mesh would no longer be closed

Family = Callable[[Draw], tuple["Manifold", Words]]


@dataclass(frozen=True)
class ToyShape:
    id: str
    category: str
    caption: str
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
    return ToyShape(f"{category}_{seed}_{index:06d}", category, words.caption(rng), draw.parameters, mesh)


# parts that several families share


def leg_places(count: int, half_x: float, half_z: float) -> list[tuple[float, float]]:
    """(x, z) of three or four legs, the corners of a box or a triangle with its tip in front."""
    if count == 3:
        return [(0.0, half_z), (-half_x, -half_z), (half_x, -half_z)]
    return [(sx * half_x, sz * half_z) for sx in (-1, 1) for sz in (-1, 1)]


def legs(count: int, round_legs: bool, thickness: float, splay: float, half_x: float, half_z: float, floor: float, top: float) -> list[Manifold]:
    """Legs from `top` down to `floor`, whose feet stand `splay` times further out."""
    ring = disk(thickness / 2, segments=20) if round_legs else rectangle(thickness, thickness)
    result = []
    for x, z in leg_places(count, half_x - thickness / 2, half_z - thickness / 2):
        result.append(loft((floor, top), ring + [x * splay, z * splay], ring + [x, z]))
    return result


def slab(shape: str, half_x: float, half_z: float, y: tuple[float, float]) -> Manifold:
    """A round or square plate."""
    ring: Ring = ellipse(half_x, half_z) if shape == "round" else rectangle(2 * half_x, 2 * half_z)
    return loft(y, ring)


def hollow(profile: list[tuple[float, float]], wall: float, floor: float) -> Manifold:
    """A vessel: the outer outline (radius, y) from the foot upwards, with walls and a floor of the given thickness."""
    from scipy.interpolate import PchipInterpolator

    r, y = np.array(profile).T
    height = np.linspace(y[0], y[-1], 22)
    outer = PchipInterpolator(y, r)(height)
    cavity = np.linspace(y[0] + floor, y[-1], 20)
    lengthened = np.hypot(1.0, PchipInterpolator(y, r)(cavity, 1))  # `wall` is measured across the wall, not level
    inner = np.maximum(PchipInterpolator(y, r)(cavity) - wall * lengthened, 0.03)
    outline = [(0.0, y[0]), *zip(outer, height, strict=True), *zip(inner[::-1], cavity[::-1], strict=True), (0.0, y[0] + floor)]
    return lathe(outline)


# the families


def chair(draw: Draw) -> tuple[Manifold, Words]:
    half_x, half_z = draw.real("half_width", 0.40, 0.58), draw.real("half_depth", 0.38, 0.55)
    seat, thick = draw.real("seat_height", -0.30, 0.0), draw.real("seat_thickness", 0.10, 0.18)
    leg, splay = draw.real("leg_thickness", 0.09, 0.16), draw.real("leg_splay", 1.0, 1.2)
    slope, bar = draw.real("back_slope", 0.0, 0.22), draw.real("back_thickness", 0.09, 0.14)
    count, round_legs = draw.pick("legs", 3, 4), draw.chance("round_legs")
    shape, back, arms = draw.pick("seat", "round", "square"), draw.pick("back", "solid", "slatted", "open"), draw.chance("arms", 0.4)
    reach = 0.72 if shape == "round" else 0.9
    parts = [slab(shape, half_x, half_z, (seat - thick, seat)),
             *legs(count, round_legs, leg, splay, half_x * reach, half_z * reach, -0.95, seat - thick / 2)]
    inset = half_x * (0.75 if shape == "round" else 1.0)
    rear = (-half_z * (0.8 if shape == "round" else 1.0), -half_z * (0.8 if shape == "round" else 1.0) + bar)
    if back == "solid":
        panel = [box((-inset, inset), (seat - thick / 2, 0.95), rear)]
    else:
        panel = [*both_sides(box((inset - bar, inset), (seat - thick / 2, 0.95), rear)), box((-inset, inset), (0.95 - 1.6 * bar, 0.95), rear)]
        if back == "slatted":
            panel.append(box((-inset, inset), ((seat + 0.95) / 2 - bar, (seat + 0.95) / 2), rear))
    parts += [lean(p, slope, seat) for p in panel]
    if arms:
        parts += both_sides(box((half_x - bar, half_x), (seat + 0.28, seat + 0.28 + bar), (rear[0], half_z * 0.7)))
        parts += both_sides(box((half_x - bar, half_x), (seat - thick / 2, seat + 0.30), (half_z * 0.7 - bar, half_z * 0.7)))
    return union(parts), Words("chair", [grade(seat, -0.22, "low", -0.08, "tall"), grade(half_x, 0.45, "narrow", 0.53, "wide")], [
        f"a {phrase(shape, 'seat')}", article(f"{back} back"), "arms" if arms else "", phrase(number(count, phrase(grade(leg, 0.11, 'thin', 0.14, 'thick'), "round" if round_legs else "square", "leg")))])


def stool(draw: Draw) -> tuple[Manifold, Words]:
    half_x = draw.real("half_width", 0.35, 0.65)
    stretch, thick = draw.real("depth_ratio", 0.75, 1.0), draw.real("seat_thickness", 0.12, 0.28)
    leg, splay = draw.real("leg_thickness", 0.10, 0.18), draw.real("leg_splay", 1.0, 1.45)
    height, rung_height = draw.real("half_height", 0.55, 0.95), draw.real("rung_height", 0.3, 0.6)
    shape, base, rungs = draw.pick("seat", "round", "square"), draw.pick("base", "three legs", "four legs", "pedestal"), draw.chance("rungs")
    half_z = half_x * stretch
    corner = 0.72 if shape == "round" else 0.85
    parts = [slab(shape, half_x, half_z, (height - thick, height))]
    if base == "pedestal":
        parts += [cylinder(leg * 0.8, (-height + 0.05, height - thick / 2)), cylinder(half_x * 0.85, (-height, -height + 0.1))]
    else:
        count = 3 if base == "three legs" else 4
        parts += legs(count, True, leg, splay, half_x * corner, half_z * corner, -height, height - thick / 2)
        if rungs:
            y = -height + rung_height * (2 * height - thick)
            grow = splay + (1 - splay) * rung_height
            reach_x, reach_z = ((half * corner - leg / 2) * grow for half in (half_x, half_z))
            parts.append(box((-reach_x, reach_x), (y - 0.045, y + 0.045), (-reach_z - 0.045, -reach_z + 0.045)))
            if count == 4:
                parts.append(box((-reach_x, reach_x), (y - 0.045, y + 0.045), (reach_z - 0.045, reach_z + 0.045)))
    feature = "a pedestal" if base == "pedestal" else phrase(base.split()[0], grade(leg, 0.12, "thin", 0.16, "thick"), "legs")
    return union(parts), Words("stool", [grade(height / half_x, 1.25, "low", 1.9, "tall"), shape], [
        feature, "rungs" if rungs and base != "pedestal" else "", grade(thick, 0.16, "a thin seat", 0.24, "a thick seat")])


def table(draw: Draw) -> tuple[Manifold, Words]:
    half_x, ratio = draw.real("half_width", 0.6, 0.95), draw.real("depth_ratio", 0.5, 1.0)
    height, thick = draw.real("half_height", 0.3, 0.8), draw.real("top_thickness", 0.09, 0.18)
    leg, splay = draw.real("leg_thickness", 0.10, 0.20), draw.real("leg_inset", 0.7, 1.0)
    shape, base = draw.pick("top", "round", "square"), draw.pick("base", "three legs", "four legs", "pedestal", "panels")
    round_legs, shelf = draw.chance("round_legs"), draw.chance("shelf", 0.35)
    half_z = half_x * ratio
    parts = [slab(shape, half_x, half_z, (height - thick, height))]
    inner_x, inner_z = (half * splay * (0.72 if shape == "round" else 0.97) for half in (half_x, half_z))
    if base == "pedestal":
        parts += [cylinder(leg, (-height + 0.05, height - thick / 2)), slab(shape, inner_x * 0.7, inner_z * 0.7, (-height, -height + 0.11))]
    elif base == "panels":
        parts += both_sides(box((inner_x - 0.11, inner_x), (-height, height - thick / 2), (-inner_z, inner_z)))
    else:
        parts += legs(3 if base == "three legs" else 4, round_legs, leg, 1.0, inner_x, inner_z, -height, height - thick / 2)
    low = shelf and base in ("four legs", "panels")
    if low:
        parts.append(box((-inner_x + 0.02, inner_x - 0.02), (-height * 0.45, -height * 0.45 + 0.1), (-inner_z + 0.02, inner_z - 0.02)))
    feature = {"pedestal": "a pedestal", "panels": "two side panels"}.get(base) or phrase(base.split()[0], grade(leg, 0.13, "thin", 0.17, "thick"), "legs")
    return union(parts), Words("table", [grade(height, 0.42, "low", 0.62, "tall"), grade(ratio, 0.65, "long", 0.9, ""), shape], [feature, "a shelf below" if low else ""])


def lamp(draw: Draw) -> tuple[Manifold, Words]:
    bottom, top = draw.real("shade_bottom", 0.38, 0.68), draw.real("shade_top", 0.18, 0.45)
    shade, pole = draw.real("shade_height", 0.40, 0.75), draw.real("pole_thickness", 0.10, 0.18)
    foot, thick = draw.real("foot_radius", 0.28, 0.55), draw.real("foot_thickness", 0.10, 0.2)
    style, base, bulb = draw.pick("shade", "cone", "drum", "globe"), draw.pick("foot", "round", "square", "dome"), draw.chance("knob")
    rim = 0.95 - shade
    parts = [cylinder(pole / 2, (-0.95 + thick / 2, rim + shade / 2))]
    if style == "globe":
        parts.append(ellipsoid((bottom * 0.9, shade / 2, bottom * 0.9), (0, rim + shade / 2, 0)))
    else:
        parts.append(loft((rim, 0.95), disk(bottom), disk(top if style == "cone" else bottom * 0.95)))
    if base == "dome":
        parts.append(ellipsoid((foot, thick * 1.6, foot), (0, -0.95, 0)).trim_by_plane((0, 1, 0), -0.95))
    else:
        parts.append(slab(base, foot, foot, (-0.95, -0.95 + thick)))
    if bulb:
        middle = (-0.95 + thick + rim) / 2
        parts.append(ellipsoid((pole * 1.1, pole * 1.1, pole * 1.1), (0, middle, 0)))
    return union(parts), Words("lamp", [grade(shade, 0.5, "", 0.65, "big-shaded"), grade(pole, 0.12, "thin", 0.16, "stout")], [
        f"a {style} shade", f"a {base} foot", "a knob on the pole" if bulb else ""])


def mug(draw: Draw) -> tuple[Manifold, Words]:
    radius, height = draw.real("radius", 0.45, 0.70), draw.real("half_height", 0.45, 0.90)
    taper, belly = draw.real("taper", 0.75, 1.05), draw.real("belly", -0.06, 0.12)
    wall, handle = draw.real("wall", 0.10, 0.14), draw.real("handle_thickness", 0.11, 0.16)
    reach, kind = draw.real("handle_reach", 0.24, 0.40), draw.pick("handle", "round", "square", "none")
    two = draw.chance("two_handles", 0.25)
    lower = radius * taper
    profile = [(lower, -height), ((radius + lower) / 2 + belly, 0.0), (radius, height)]
    parts = [hollow(profile, wall, max(wall, 0.12))]
    if kind != "none":
        middle = (radius + lower) / 2 + belly - wall / 2
        tall = min(0.62 * height, 0.5)
        if kind == "round":
            path = np.column_stack([arc((middle, 0.0), (reach, tall), (-100, 100), 20), np.zeros(20)])
            grip = tube(path, handle)
        else:
            grip = union([box((middle, middle + reach), (tall - handle, tall), (-handle / 2, handle / 2)), box((middle, middle + reach), (-tall, -tall + handle), (-handle / 2, handle / 2)),
                          box((middle + reach - handle, middle + reach), (-tall, tall), (-handle / 2, handle / 2))])
        inside = loft((-height + max(wall, 0.12), height + 0.1), disk(max(min(lower, radius) - wall, 0.1)))
        parts += [p - inside for p in (both_sides(grip) if two else [grip])]
    grips = "" if kind == "none" else f"two {kind} handles" if two else f"a {kind} handle"
    return union(parts), Words("mug", [grade(height / radius, 0.95, "low", 1.35, "tall"), grade(wall, 0.112, "thin-walled", 0.128, "thick-walled")], [
        grips or "no handle", grade(belly, 0.0, "a narrow waist", 0.07, "a round belly")])


def bottle(draw: Draw) -> tuple[Manifold, Words]:
    body, neck = draw.real("body_radius", 0.26, 0.46), draw.real("neck_radius", 0.09, 0.16)
    shoulder, neck_start = draw.real("shoulder_height", -0.1, 0.3), draw.real("neck_height", 0.36, 0.6)
    depth, cap = draw.real("depth_ratio", 0.6, 1.0), draw.real("cap_height", 0.12, 0.22)
    style, closed, ridge = draw.pick("body", "round", "square", "waisted"), draw.chance("cap"), draw.chance("ring")
    if style == "square":
        trunk = loft((-0.95, shoulder), rectangle(1.8 * body, 1.8 * body * depth))
        rim = rectangle(1.8 * body, 1.8 * body * depth)
    else:
        waist = 0.8 if style == "waisted" else 1.0
        profile = [(0, -0.95), (body, -0.95), *[(body * (1 - (1 - waist) * np.sin(np.pi * t)), -0.95 + t * (shoulder + 0.95)) for t in np.linspace(0.08, 0.92, 9)],
                   (body, shoulder), (0, shoulder)]
        trunk = lathe(profile).scale((1, 1, depth))
        rim = ellipse(body, body * depth)
    top = 0.95 - (cap if closed else 0)
    # the shoulders reach into the trunk: solids that only touch would keep a wall between them
    parts = [trunk, loft((shoulder - 0.03, shoulder), 0.9 * rim, rim), loft((shoulder, neck_start), rim, disk(neck)), cylinder(neck, (neck_start - 0.02, top + 0.01))]
    if closed:
        parts.append(cylinder(neck + 0.06, (top, 0.95)))
    if ridge:
        parts.append(torus(neck + 0.01, 0.09, (neck_start + top) / 2))
    return union(parts), Words("bottle", [grade(body, 0.32, "slim", 0.40, "fat"), "flat" if depth < 0.72 else "", style], [
        "a cap" if closed else "an open neck", "a ring on the neck" if ridge else "", grade(0.95 - neck_start, 0.42, "a short neck", 0.52, "a long neck")])


def vase(draw: Draw) -> tuple[Manifold, Words]:
    foot, belly = draw.real("foot_radius", 0.25, 0.45), draw.real("belly_radius", 0.40, 0.75)
    neck, lip = draw.real("neck_radius", 0.24, 0.45), draw.real("lip_radius", 0.28, 0.62)
    bulge, height = draw.real("belly_height", -0.5, 0.2), draw.real("half_height", 0.7, 0.95)
    wall, style, handles = draw.real("wall", 0.10, 0.14), draw.pick("rim", "flared", "straight", "closed-in"), draw.chance("handles", 0.4)
    rim = {"flared": max(lip, neck + 0.08), "straight": neck, "closed-in": max(neck - 0.06, 0.22)}[style]
    profile = [(foot, -height), (belly, bulge * height), (neck, 0.68 * height), (rim, height)]
    parts = [hollow(profile, wall, 0.14)]
    if handles:
        low, high = bulge * height + 0.12, 0.62 * height
        path = np.column_stack([arc(((belly + neck) / 2 - 0.06, (low + high) / 2), (0.26, (high - low) / 2), (-85, 85), 18), np.zeros(18)])
        inside = hollow_inside(profile, wall)
        parts += both_sides(tube(path, 0.12) - inside)
    return union(parts), Words("vase", [grade(height / belly, 1.3, "squat", 1.75, "slender"), grade(belly, 0.5, "narrow", 0.65, "wide")], [
        f"a {style} rim", "two handles" if handles else "", grade(bulge, -0.25, "a low belly", 0.0, "a high belly")])


def hollow_inside(profile: list[tuple[float, float]], wall: float) -> Manifold:
    """What a handle must not fill: a solid a little inside the walls of `hollow`."""
    from scipy.interpolate import PchipInterpolator

    r, y = np.array(profile).T
    height = np.linspace(y[0] + 0.14, y[-1], 20)
    radius = np.maximum(PchipInterpolator(y, r)(height) - wall / 2, 0.03)
    return lathe([(0.0, height[0]), *zip(radius, height, strict=True), (0.0, height[-1])])


def bed(draw: Draw) -> tuple[Manifold, Words]:
    half_x, height = draw.real("half_width", 0.42, 0.78), draw.real("mattress_height", -0.22, 0.02)
    frame, mattress = draw.real("frame_thickness", 0.10, 0.18), draw.real("mattress_thickness", 0.14, 0.26)
    head, foot = draw.real("headboard", 0.2, 0.55), draw.real("footboard", 0.0, 0.25)
    leg, board = draw.real("leg_thickness", 0.11, 0.18), draw.real("board_thickness", 0.09, 0.13)
    pillows, headboard, footboard = draw.pick("pillows", 1, 2), draw.pick("headboard_style", "straight", "arched", "none"), draw.chance("has_footboard")
    floor = -0.5
    parts = [box((-half_x, half_x), (height - frame, height), (-0.95, 0.95)),
             box((-half_x + 0.04, half_x - 0.04), (height - 0.02, height + mattress), (-0.9, 0.9), 0.05),
             *legs(4, False, leg, 1.0, half_x, 0.95, floor, height - frame / 2)]
    if headboard != "none":
        outline = [(-half_x, floor), (half_x, floor), (half_x, head)]
        outline += [(half_x * np.cos(a), head + 0.22 * np.sin(a)) for a in np.linspace(0, np.pi, 16)[1:-1]] if headboard == "arched" else []
        parts.append(extrude([*outline, (-half_x, head)], "z", (-0.95, -0.95 + board)))
    if footboard:
        parts.append(box((-half_x, half_x), (floor, height + mattress * 0.6 + foot), (0.95 - board, 0.95)))
    width = (half_x - 0.1) * (0.9 if pillows == 1 else 0.43)
    for x in [0.0] if pillows == 1 else [-half_x / 2, half_x / 2]:
        parts.append(box((x - width, x + width), (height + mattress - 0.04, height + mattress + 0.1), (-0.78, -0.48), 0.06))
    return union(parts), Words("bed", [grade(half_x, 0.52, "narrow", 0.68, "wide"), grade(height, -0.15, "low", -0.05, "high")], [
        "no headboard" if headboard == "none" else article(f"{headboard} headboard"),
        "a footboard" if footboard else "", number(pillows, "pillow")])


def shelf(draw: Draw) -> tuple[Manifold, Words]:
    half_x, half_z = draw.real("half_width", 0.35, 0.85), draw.real("half_depth", 0.2, 0.36)
    height, board = draw.real("half_height", 0.5, 0.95), draw.real("board_thickness", 0.09, 0.13)
    foot, side = draw.real("foot_height", 0.1, 0.25), draw.real("side_thickness", 0.09, 0.13)
    levels, back, feet, middle = draw.pick("boards", 2, 3, 4, 5), draw.chance("back", 0.6), draw.chance("feet"), draw.chance("divider", 0.3)
    bottom = -height + (foot if feet else 0)
    parts = both_sides(box((half_x - side, half_x), (bottom, height), (-half_z, half_z)))
    parts += [box((-half_x, half_x), (y, y + board), (-half_z, half_z)) for y in np.linspace(bottom, height - board, levels)]
    if back:
        parts.append(box((-half_x, half_x), (bottom, height), (-half_z, -half_z + 0.09)))
    if feet:
        parts += legs(4, False, 0.13, 1.0, half_x, half_z, -height, bottom + 0.02)
    if middle:
        parts.append(box((-side / 2, side / 2), (bottom, height), (-half_z, half_z)))
    return union(parts), Words("shelf", [grade(height / half_x, 0.95, "low", 1.5, "tall"), grade(half_x, 0.5, "narrow", 0.7, "wide")], [
        number(levels, "board"), "a back panel" if back else "an open back", "feet" if feet else "", "a divider" if middle else ""])


def car(draw: Draw) -> tuple[Manifold, Words]:
    half_x, body = draw.real("half_width", 0.34, 0.46), draw.real("body_height", 0.22, 0.34)
    wheel, thick = draw.real("wheel_radius", 0.16, 0.25), draw.real("wheel_thickness", 0.12, 0.18)
    front, rear = draw.real("front_axle", 0.5, 0.66), draw.real("rear_axle", 0.5, 0.66)
    roof, slant = draw.real("roof_height", 0.22, 0.36), draw.real("slant", 0.06, 0.24)
    kind, spoiler = draw.pick("kind", "sedan", "hatchback", "pickup", "van"), draw.chance("spoiler", 0.35)
    low = -0.3
    high = low + body
    start, end = {"sedan": (-0.55, 0.35), "hatchback": (-0.9, 0.3), "pickup": (-0.1, 0.45), "van": (-0.93, 0.7)}[kind]
    cabin = [(start, high - 0.02), (end + slant, high - 0.02), (end, high + roof), (start + (0.12 if kind == "sedan" else 0.04), high + roof)]
    parts = [box((-half_x, half_x), (low, high), (-0.95, 0.95), 0.06), extrude(cabin, "x", (-half_x + 0.06, half_x - 0.06))]
    if kind == "pickup":
        parts[0] = parts[0] - box((-half_x + 0.1, half_x - 0.1), (high - body * 0.5, high + 0.1), (-0.84, -0.16))
    if spoiler and kind in ("sedan", "pickup"):
        parts += [box((-half_x, half_x), (high + 0.1, high + 0.19), (-0.95, -0.75)), *both_sides(box((half_x - 0.2, half_x - 0.1), (high - 0.05, high + 0.12), (-0.92, -0.8)))]
    for z in (front, -rear):
        tyre = extrude([(z + wheel * np.cos(a), low + 0.02 + wheel * np.sin(a)) for a in np.linspace(0, 2 * np.pi, 28, endpoint=False)], "x", (half_x - thick * 0.6, half_x + thick * 0.4))
        parts += both_sides(tyre)
    return union(parts), Words(kind if kind != "sedan" else "sedan car", [grade(half_x, 0.37, "narrow", 0.43, "wide"), grade(body + roof, 0.5, "low", 0.62, "tall")], [
        f"{grade(wheel, 0.19, 'small', 0.22, 'big')} wheels".strip(), "a spoiler" if spoiler and kind in ("sedan", "pickup") else "", ])


def plane(draw: Draw) -> tuple[Manifold, Words]:
    radius, span = draw.real("body_radius", 0.11, 0.18), draw.real("wing_span", 0.65, 0.95)
    chord, sweep = draw.real("wing_chord", 0.24, 0.42), draw.real("wing_sweep", -0.02, 0.4)
    tip, place = draw.real("wing_taper", 0.45, 1.0), draw.real("wing_place", -0.05, 0.25)
    tail, fin = draw.real("tail_span", 0.28, 0.45), draw.real("fin_height", 0.25, 0.42)
    mount, engines, t_tail = draw.pick("wing", "low", "high", "mid"), draw.pick("engines", 0, 2, 4), draw.chance("t_tail", 0.3)
    body = union([ellipsoid((radius, radius, 0.35), (0, 0, 0.6)), extrude([(radius * np.cos(a), radius * np.sin(a)) for a in np.linspace(0, 2 * np.pi, 28, endpoint=False)], "z", (-0.4, 0.6)),
                  ellipsoid((radius, radius, 0.55), (0, 0, -0.4))])
    y = {"low": -radius * 0.6, "mid": 0.0, "high": radius * 0.6}[mount]
    wing = [(0, place - chord / 2), (0, place + chord / 2), (span, place - sweep + chord * tip / 2), (span, place - sweep - chord * tip / 2)]
    parts = [body, *both_sides(extrude(wing, "y", (y - 0.04, y + 0.04)))]
    height = radius + fin if t_tail else 0.04
    stabiliser = [(0, -0.94), (0, -0.68), (tail, -0.76), (tail, -0.94)]
    parts += both_sides(extrude(stabiliser, "y", (height - 0.08, height)))
    parts.append(extrude([(-0.55, 0.0), (-0.8, radius + fin), (-0.94, radius + fin), (-0.94, 0.0)], "x", (-0.04, 0.04)))
    for k in range(engines // 2):
        x = span * (0.36 + 0.26 * k)
        z = place - sweep * x / span
        pod = extrude([(x + 0.075 * np.cos(a), y - 0.09 + 0.075 * np.sin(a)) for a in np.linspace(0, 2 * np.pi, 20, endpoint=False)], "z", (z - 0.14, z + 0.2))
        parts += both_sides(pod)
    return union(parts), Words("plane", [grade(radius, 0.13, "slim", 0.16, "fat")], [
        phrase("swept" if sweep > 0.18 else "straight", mount, "wings"), number(engines, "engine") if engines else "", "a T-tail" if t_tail else ""])


def boat(draw: Draw) -> tuple[Manifold, Words]:
    half_x, depth = draw.real("half_width", 0.26, 0.42), draw.real("hull_depth", 0.24, 0.38)
    keel, bow = draw.real("keel_width", 0.3, 0.7), draw.real("bow_length", 0.3, 0.6)
    cabin, mast = draw.real("cabin_height", 0.16, 0.32), draw.real("mast_height", 0.7, 1.1)
    place, sail = draw.real("cabin_place", -0.5, -0.1), draw.real("sail_width", 0.45, 0.75)
    kind, stern = draw.pick("kind", "sailing", "motor", "rowing"), draw.pick("stern", "flat", "round")
    top, low = 0.0, -depth

    def outline(scale: float, shrink: float = 0.0) -> np.ndarray:
        w, front, back = half_x * scale - shrink, 0.95 - shrink, -0.95 + shrink
        nose = [(w * np.cos(a), 0.95 - bow + (front - 0.95 + bow) * np.sin(a)) for a in np.linspace(0, np.pi, 15)]
        rear = [(-w, back), (w, back)] if stern == "flat" else [(w * np.cos(a), back + 0.25 + 0.25 * np.sin(a)) for a in np.linspace(np.pi, 2 * np.pi, 12)]
        return np.array([*nose, *rear])

    hull_solid = loft((low, top), outline(keel) * [1, 0.9], outline(1.0))
    parts = [hull_solid - loft((low + 0.14, top + 0.2), outline(keel, 0.1) * [1, 0.88], outline(1.0, 0.1))]
    if kind == "motor":
        parts.append(box((-half_x * 0.75, half_x * 0.75), (low + 0.08, top + cabin), (place - 0.28, place + 0.32), 0.04))
        parts.append(loft((top + cabin - 0.02, top + cabin + 0.1), rectangle(half_x * 1.7, 0.75, 0, place)))
    elif kind == "rowing":
        parts += [box((-half_x * 0.93, half_x * 0.93), (top - 0.11, top - 0.01), (z - 0.08, z + 0.08)) for z in (-0.45, 0.1)]
    else:
        parts.append(cylinder(0.055, (low + 0.05, mast)))
        parts.append(extrude([(0.0, 0.14), (-sail, 0.14), (0.0, mast - 0.05)], "x", (-0.04, 0.04)))
    return union(parts), Words(f"{kind} boat", [grade(half_x, 0.31, "narrow", 0.37, "wide"), grade(depth, 0.28, "shallow", 0.34, "deep")], [
        f"a {stern} stern", grade(bow, 0.4, "a blunt bow", 0.5, "a pointed bow")])


def sofa(draw: Draw) -> tuple[Manifold, Words]:
    half_x, half_z = draw.real("half_width", 0.6, 0.95), draw.real("half_depth", 0.32, 0.45)
    seat, back = draw.real("seat_height", -0.12, 0.02), draw.real("back_height", 0.25, 0.5)
    arm, arm_height = draw.real("arm_width", 0.12, 0.24), draw.real("arm_height", 0.1, 0.26)
    thick, leg = draw.real("back_thickness", 0.16, 0.26), draw.real("leg_height", 0.1, 0.2)
    cushions, arms, feet = draw.pick("cushions", 1, 2, 3), draw.pick("arms", "round", "square", "no"), draw.chance("legs", 0.6)
    floor = -0.45
    bottom = floor + (leg if feet else 0.0)
    inner = half_x - (arm if arms != "no" else 0.0)
    parts = [box((-half_x, half_x), (bottom, max(seat - 0.12, bottom + 0.1)), (-half_z, half_z), 0.03), box((-half_x, half_x), (bottom, back), (-half_z, -half_z + thick), 0.05)]
    width = 2 * inner / cushions
    for k in range(cushions):
        x = -inner + k * width
        parts.append(box((x + 0.012, x + width - 0.012), (max(seat - 0.16, bottom + 0.02), seat), (-half_z + thick - 0.03, half_z), 0.05))
    if arms != "no":
        height = seat + arm_height
        if arms == "square":
            solid = box((half_x - arm, half_x), (bottom, height), (-half_z, half_z), 0.03)
        else:
            ring = [(half_x - arm / 2 + arm / 2 * np.cos(a), height - arm / 2 + arm / 2 * np.sin(a)) for a in np.linspace(0, np.pi, 14)]
            solid = extrude([*ring, (half_x - arm, bottom), (half_x, bottom)], "z", (-half_z, half_z))
        parts += both_sides(solid)
    if feet:
        parts += legs(4, False, 0.12, 1.0, half_x - 0.03, half_z - 0.03, floor, bottom + 0.03)
    return union(parts), Words("sofa", [grade(half_x, 0.7, "small", 0.85, "long"), grade(back, 0.32, "low", 0.43, "high-backed")], [
        number(cushions, "cushion"), f"{arms} arms", "legs" if feet else ""])


def house(draw: Draw) -> tuple[Manifold, Words]:
    half_x, half_z = draw.real("half_width", 0.45, 0.85), draw.real("half_depth", 0.4, 0.75)
    wall, roof = draw.real("wall_height", 0.4, 0.85), draw.real("roof_height", 0.25, 0.6)
    eaves, chimney = draw.real("eaves", 0.05, 0.15), draw.real("chimney_place", 0.2, 0.6)
    door = draw.real("door_width", 0.2, 0.32)
    style, has_chimney, wing, porch = draw.pick("roof", "gabled", "hipped", "flat"), draw.chance("chimney"), draw.chance("wing", 0.4), draw.chance("porch", 0.4)
    low = -0.6
    top = low + wall
    parts = [box((-half_x, half_x), (low, top), (-half_z, half_z))]
    if style == "gabled":
        parts.append(extrude([(-half_z - eaves, top - 0.02), (half_z + eaves, top - 0.02), (0.0, top + roof)], "x", (-half_x - eaves, half_x + eaves)))
    elif style == "hipped":
        parts.append(loft((top - 0.02, top + roof), rectangle(2 * (half_x + eaves), 2 * (half_z + eaves)), rectangle(half_x * 0.8, 0.1)))
    else:
        parts.append(box((-half_x - eaves, half_x + eaves), (top - 0.02, top + 0.11), (-half_z - eaves, half_z + eaves)))
    if has_chimney:
        x = half_x * chimney
        parts.append(box((x - 0.09, x + 0.09), (top - 0.1, top + roof + 0.12), (-0.27, -0.09)))
    if wing:
        parts.append(box((half_x - 0.05, half_x + 0.4), (low, low + wall * 0.65), (-half_z * 0.7, half_z * 0.5)))
    if porch:
        parts += [box((-0.45, 0.45), (low + wall * 0.6, low + wall * 0.6 + 0.09), (half_z - 0.05, half_z + 0.35)),
                  *both_sides(box((0.33, 0.43), (low, low + wall * 0.62), (half_z + 0.22, half_z + 0.32)))]
    solid = union(parts) - box((-door / 2, door / 2), (low - 0.1, low + wall * 0.5), (half_z - 0.12, half_z + 0.05))
    return solid, Words("house", [grade(wall, 0.52, "low", 0.72, "tall"), grade(half_x, 0.55, "narrow", 0.72, "wide")], [
        f"a {style} roof", "a chimney" if has_chimney else "", "a side wing" if wing else "", "a porch" if porch else ""])


_FAMILIES: dict[str, Family] = {f.__name__: f for f in (chair, stool, table, lamp, mug, bottle, vase, bed, shelf, car, plane, boat, sofa, house)}
CATEGORIES: tuple[str, ...] = tuple(_FAMILIES)
