"""Procedural furniture: chair, stool, table, lamp, bed, shelf, sofa. Each function draws its parameters and returns the
solid and the words for it. The front faces +Z. Lengths are in units of the cube [-1, 1]^3 and thicknesses at least 0.08.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tar3d.data.toy_draw import NUMBERS, Draw, Words, grade, number, phrase
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

if TYPE_CHECKING:
    from manifold3d import Manifold

EDGE = 0.025  # rounding of boards
SOFT = 0.07  # rounding of cushions


def chair(d: Draw) -> tuple[Manifold, Words]:
    width, height, depth = d.envelope(width=(0.85, 1.15), height=(1.5, 2.0), depth=(0.85, 1.1))
    seat, tilt = height * d.real("seat_height", 0.38, 0.52), d.real("back_tilt", 0.0, 0.2)
    seat_thickness, back_thickness = d.real("seat_thickness", 0.09, 0.2), d.real("back_thickness", 0.09, 0.15)
    leg, splay = d.real("leg_thickness", 0.09, 0.17), d.real("leg_splay", 0.0, 0.25)
    shape, section = d.pick("seat_shape", "square", "round"), d.pick("leg_section", "round", "square")
    stand = d.pick("stand", "four", "three", "pedestal", "panels")
    style, arms = d.pick("back", "solid", "slatted", "ladder", "rounded"), d.chance("arms")

    rear, front = -depth / 2 + tilt, depth / 2
    middle, half_depth = (rear + front) / 2, (front - rear) / 2
    under = seat - seat_thickness
    parts = _stand(stand, section, leg, (0, under + 0.04), width / 2, half_depth, splay, shape == "round")
    parts = [p.translate((0, 0, middle)) for p in parts]
    if shape == "round":
        parts.append(loft((under, seat), ellipse(width / 2, half_depth, 0, middle)))
    else:
        parts.append(box((-width / 2, width / 2), (under, seat), (rear, front), EDGE))
    half = width / 2 * (0.8 if shape == "round" else 1.0)
    back_depth = (rear, rear + back_thickness)
    back, bars = _back(d, style, half, (under + 0.02, height), back_depth, back_thickness)
    slope = tilt / (height - seat)
    parts += [lean(p, slope, seat) for p in back]
    if arms:
        top = seat + (height - seat) * d.real("arm_height", 0.35, 0.5)
        post = front - 0.12 - (0.3 * half_depth if shape == "round" else 0)
        inner = half - 0.1
        back_at_top = rear - slope * (top - seat) + 0.04
        parts += both_sides(box((inner, half), (top - 0.09, top), (back_at_top, post), EDGE))
        parts += both_sides(box((inner, half), (under + 0.03, top - 0.01), (post - 0.11, post), EDGE))
    backs = {"solid": "a solid back", "rounded": "a rounded back", "slatted": f"a back of {number(bars, 'vertical slat')}",
             "ladder": f"a ladder back with {number(bars, 'rung')}"}
    return union(parts), Words("chair", [
        grade(height / width, 1.6, "low", 2.0, "tall"), grade(seat / height, 0.42, "low-seated", 0.48, "high-seated"),
        "reclined" if tilt > 0.12 else "upright" if tilt < 0.05 else "",
    ], [phrase("a", grade(seat_thickness, 0.12, "thin", 0.16, "thick"), f"{shape} seat"), backs[style],
        _stand_words(stand, section, leg, splay), "armrests" if arms else "no armrests"])


def _back(d: Draw, style: str, half: float, y: tuple[float, float], z: tuple[float, float],
          thickness: float) -> tuple[list[Manifold], int]:
    """The upright parts of a chair's back, and how many bars it has."""
    if style == "solid":
        return [box((-half, half), y, z, EDGE)], 0
    if style == "rounded":
        bend = min(half, (y[1] - y[0]) * 0.6)
        outline = [(half, y[0]), *arc((0, y[1] - bend), (half, bend), (0, 180), 20), (-half, y[0])]
        return [extrude(outline, "z", z)], 0
    bars = d.pick("back_bars", 2, 3)
    bar = d.real("bar_thickness", 0.08, 0.11)
    posts = both_sides(box((half - 0.11, half), y, z, EDGE))
    if style == "slatted":
        gap = (2 * half - 0.22 - bars * bar) / (bars + 1)
        starts = [-half + 0.11 + gap + i * (bar + gap) for i in range(bars)]
        rail = box((-half, half), (y[1] - max(0.12, thickness), y[1]), z, EDGE)
        return [*posts, rail, *(box((x, x + bar), (y[0], y[1] - 0.04), z, EDGE) for x in starts)], bars
    tops = np.linspace(y[1], y[0] + (y[1] - y[0]) * 0.4, bars)
    return [*posts, *(box((-half, half), (top - bar - 0.03, top), z, EDGE) for top in tops)], bars


def _stand(kind: str, section: str, thickness: float, y: tuple[float, float], half_x: float, half_z: float, splay: float,
           is_round: bool) -> list[Manifold]:
    """What carries a seat or a top. Feet stand at the rim of half_x by half_z; `splay` moves the tops of legs inwards."""
    bottom, top = y
    if kind == "pedestal":
        foot = 0.6 + splay
        return [cylinder(thickness * 0.75, y),
                loft((bottom, bottom + 0.1), ellipse(half_x * foot, half_z * foot), ellipse(half_x * foot * 0.8, half_z * foot * 0.8))]
    reach_x, reach_z = half_x - thickness / 2, half_z - thickness / 2
    if kind == "panels":
        x = reach_x * (0.6 if is_round else 1.0)
        z = half_z * (0.7 if is_round else 1.0)
        return both_sides(box((x - thickness / 2, x + thickness / 2), y, (-z, z), EDGE))
    angles = np.radians([90, 210, 330] if kind == "three" else [45, 135, 225, 315])
    directions = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    if kind == "four":
        directions /= np.abs(directions).max()  # corners of the square
    inward = 0.72 if is_round and kind == "four" else 0.9 if is_round else 1.0
    feet = directions * [reach_x, reach_z] * inward

    def ring(at: np.ndarray) -> Ring:
        return disk(thickness / 2, *at, segments=16) if section == "round" else rectangle(thickness, thickness, *at)

    return [loft((bottom, top), ring(foot), ring(foot * (1 - splay))) for foot in feet]


def _stand_words(kind: str, section: str, thickness: float, splay: float) -> str:
    width = grade(thickness, 0.115, "thin", 0.145, "thick")
    if kind == "pedestal":
        return phrase("a", width, "pedestal")
    if kind == "panels":
        return phrase("two", width, "side panels as legs")
    return phrase(kind, width, "splayed" if splay > 0.12 else "straight", section, "legs")


def stool(d: Draw) -> tuple[Manifold, Words]:
    width, height = d.envelope(width=(0.7, 1.4), height=(0.9, 2.0))
    thickness = d.real("seat_thickness", 0.1, 0.24)
    leg, splay = d.real("leg_thickness", 0.1, 0.18), d.real("leg_splay", 0.0, 0.4)
    shape, section = d.pick("seat_shape", "round", "square"), d.pick("leg_section", "round", "square")
    stand = d.pick("stand", "three", "four", "pedestal")
    cushion, ring = d.chance("cushion", 0.4), d.chance("footring") if stand != "pedestal" and shape == "round" else False

    half = width / 2
    dome = d.real("cushion_height", 0.1, 0.18) if cushion else 0.0
    seat = height - dome
    under = seat - thickness
    parts = _stand(stand, section, leg, (0, under + 0.04), half, half, splay, shape == "round")
    outline = disk(half) if shape == "round" else rectangle(width, width)
    parts.append(loft((under, seat), outline) if shape == "round" else box((-half, half), (under, seat), (-half, half), EDGE))
    if cushion and shape == "round":
        profile = [(0, seat - 0.02), (half * 0.93, seat - 0.02), (half * 0.93, seat), *arc((0, seat), (half * 0.93, dome), (0, 90), 9)[1:]]
        parts.append(lathe(profile))
    elif cushion:
        parts.append(box((-half * 0.9, half * 0.9), (seat - 0.09, height), (-half * 0.9, half * 0.9), 0.09))
    if ring:
        level = d.real("footring_height", 0.25, 0.45)
        foot = (half - leg / 2) * (0.72 * 2**0.5 if stand == "four" else 0.9)
        parts.append(torus(foot * (1 - splay * level * seat / (under + 0.04)), 0.1, level * seat))
    return union(parts), Words("stool", [grade(height / width, 0.95, "low", 1.5, "tall"), shape], [
        phrase("a", grade(thickness, 0.14, "thin", 0.2, "thick"), "seat"), _stand_words(stand, section, leg, splay),
        "a cushion" if cushion else "", "a foot ring" if ring else ""])


def table(d: Draw) -> tuple[Manifold, Words]:
    width, height, depth = d.envelope(width=(1.2, 2.0), height=(0.6, 1.5), depth=(0.8, 1.4))
    thickness, leg = d.real("top_thickness", 0.08, 0.18), d.real("leg_thickness", 0.09, 0.2)
    splay, overhang = d.real("leg_splay", 0.0, 0.3), d.real("overhang", 0.0, 0.12)
    shape, section = d.pick("top_shape", "rectangular", "oval", "round"), d.pick("leg_section", "round", "square")
    stand = d.pick("stand", "four", "three", "pedestal", "panels")
    lower = d.chance("lower_shelf", 0.3) if stand in ("four", "panels") else False

    if shape == "round":
        width = depth = min(width, depth) if height == max(width, height, depth) else max(width, depth)
    under = height - thickness
    curved = shape != "rectangular"
    half_x, half_z = width / 2 * (1 - overhang), depth / 2 * (1 - overhang)
    parts = _stand(stand, section, leg, (0, under + 0.04), half_x, half_z, splay, curved)
    if curved:
        parts.append(loft((under, height), ellipse(width / 2, depth / 2)))
    else:
        parts.append(box((-width / 2, width / 2), (under, height), (-depth / 2, depth / 2), EDGE))
    if lower:
        level = height * d.real("shelf_height", 0.25, 0.45)
        inset = (0.72 if stand == "four" else 0.65) if curved else 1.0
        x, z = ((half - leg / 2) * inset * (1 - splay * level / under) for half in (half_x, half_z))
        parts.append(box((-x, x), (level, level + 0.09), (-z, z), EDGE))
    return union(parts), Words("table", [
        grade(height / width, 0.5, "low", 0.8, "tall"), grade(depth / width, 0.6, "narrow", 9.0, ""), shape,
    ], [phrase("a", grade(thickness, 0.11, "thin", 0.15, "thick"), "top"), _stand_words(stand, section, leg, splay),
        "a lower shelf" if lower else ""])


def lamp(d: Draw) -> tuple[Manifold, Words]:
    width, height = d.envelope(width=(0.6, 1.2), height=(1.6, 2.0))
    shade_height = height * d.real("shade_height", 0.22, 0.36)
    foot, pole = width / 2 * d.real("base_radius", 0.6, 0.95), d.real("pole_thickness", 0.09, 0.16)
    taper, base_height = d.real("shade_taper", 0.35, 0.85), d.real("base_height", 0.09, 0.18)
    shade = d.pick("shade", "cone", "drum", "dome", "globe")
    base, stem = d.pick("base", "round", "square", "tripod"), d.pick("stem", "straight", "bent", "bulbous")

    half = width / 2
    radius = min(half, shade_height / 2) if shade == "globe" else half
    top = height - shade_height
    swing = d.real("stem_bend", 0.25, 0.45) if stem == "bent" else 0.0
    straight_from = 0.45 * top if base == "tripod" else base_height - 0.02
    if stem == "bent":
        t = np.linspace(0, 1, 16)
        y = straight_from + (top + 0.12 - straight_from) * t
        parts = [tube(np.stack([swing * np.sin(np.pi * t), y, np.zeros(16)], axis=1), pole)]
    else:
        parts = [cylinder(pole / 2, (straight_from, top + 0.12))]
    if stem == "bulbous":
        size = d.real("bulb_radius", 0.16, 0.26)
        parts.append(ellipsoid((size, size * 1.3, size), (0, top * 0.62, 0)))
    if base == "round":
        parts.append(loft((0, base_height), disk(foot), disk(foot * 0.8)))
    elif base == "square":
        parts.append(box((-foot, foot), (0, base_height), (-foot, foot), EDGE))
    else:
        feet = [(foot * np.cos(a), foot * np.sin(a)) for a in np.radians([90, 210, 330])]
        parts += [loft((0, 0.5 * top), disk(0.05, x, z, 16), disk(0.05, 0, 0, 16)) for x, z in feet]
    parts.append(_shade(shade, radius, radius * taper, (top, height)))
    return union(parts), Words("lamp", [grade(height / width, 1.8, "wide", 2.3, "slender")], [
        phrase("a", grade(shade_height / height, 0.26, "small", 0.32, "large"), f"{shade} shade"),
        phrase("a", grade(pole, 0.11, "thin", 0.135, "thick"), stem, "stem"), "three feet" if base == "tripod" else f"a {base} base"])


def _shade(kind: str, radius: float, upper: float, y: tuple[float, float]) -> Manifold:
    """A globe, or a cap open below with walls of 0.1."""
    low, high = y
    if kind == "globe":
        return ellipsoid((radius, (high - low) / 2, radius), (0, (low + high) / 2, 0))
    wall, roof = 0.1, 0.12
    if kind == "dome":
        outer, inner = arc((0, low), (radius, high - low), (0, 90)), arc((0, low), (radius - wall, high - low - roof), (90, 0))
        return lathe([*outer, *inner])
    upper = radius if kind == "drum" else upper
    return lathe([(radius, low), (upper, high), (0, high), (0, high - roof), (upper - wall, high - roof), (radius - wall, low)])


def bed(d: Draw) -> tuple[Manifold, Words]:
    width, height, depth = d.envelope(width=(1.0, 1.75), height=(0.7, 1.2), depth=(1.9, 2.0))
    mattress, frame = d.real("mattress_thickness", 0.14, 0.28), d.real("frame_thickness", 0.1, 0.18)
    leg, board = d.real("leg_height", 0.12, 0.26), d.real("board_thickness", 0.09, 0.15)
    head = d.pick("headboard", "straight", "arched", "slatted")
    foot, pillows = d.chance("footboard"), d.pick("pillows", 1, 2)
    stand, posts = d.pick("stand", "four legs", "a solid base"), d.chance("four_poster", 0.25)

    half, rear, front = width / 2, -depth / 2, depth / 2
    deck, top = leg + frame, leg + frame + mattress
    parts = [box((-half, half), (leg, deck), (rear, front), EDGE)]
    edge = board - 0.03
    parts.append(box((-half + 0.05, half - 0.05), (deck - 0.06, top), (rear + edge, front - (edge if foot else 0.03)), SOFT))
    if stand == "a solid base":
        parts.append(box((-half + 0.12, half - 0.12), (0, leg + 0.05), (rear + 0.12, front - 0.12), EDGE))
    elif not posts:
        for z in (rear, front - 0.13):
            parts += both_sides(box((half - 0.13, half), (0, leg + 0.05), (z, z + 0.13), EDGE))
    behind = (rear, rear + board)
    crest = max(height if not posts else height * 0.75, top + 0.2)
    if head == "straight":
        parts.append(box((-half, half), (leg, crest), behind, EDGE))
    elif head == "arched":
        bend = (crest - top) * 0.9
        parts.append(extrude([(half, leg), *arc((0, crest - bend), (half, bend), (0, 180), 24), (-half, leg)], "z", behind))
    else:
        parts.append(box((-half, half), (crest - 0.12, crest), behind, EDGE))
        for x in np.linspace(-half + 0.06, half - 0.06, 5):
            parts.append(box((x - 0.06, x + 0.06), (leg, crest - 0.03), behind, EDGE))
    if foot:
        parts.append(box((-half, half), (leg, top + d.real("footboard_height", 0.08, 0.2)), (front - board, front), EDGE))
    if posts:
        for z in (rear, front - 0.12):
            parts += both_sides(box((half - 0.12, half), (0, height), (z, z + 0.12), EDGE))
    span = (width - 0.2) / pillows
    for i in range(pillows):
        x = -half + 0.1 + i * span
        parts.append(box((x + 0.04, x + span - 0.04), (top - 0.07, top + 0.09), (rear + board + 0.03, rear + board + 0.42), SOFT))
    return union(parts), Words("bed", [
        grade(width / depth, 0.62, "narrow", 0.78, "wide"), grade(top / width, 0.36, "low", 0.46, "high"), "four-poster" if posts else "",
    ], [f"{'an' if head == 'arched' else 'a'} {head} headboard", "a footboard" if foot else "no footboard", number(pillows, "pillow"),
        stand, phrase("a", grade(mattress, 0.18, "thin", 0.24, "thick"), "mattress")])


def shelf(d: Draw) -> tuple[Manifold, Words]:
    width, height, depth = d.envelope(width=(0.7, 1.8), height=(1.1, 2.0), depth=(0.45, 0.75))
    board, side = d.real("board_thickness", 0.08, 0.12), d.real("side_thickness", 0.08, 0.14)
    levels = d.pick("compartments", 2, 3, 4)
    sides, back = d.pick("sides", "panels", "posts"), d.chance("back_panel")
    divider, feet = d.chance("divider", 0.4), d.chance("feet")
    lift = d.real("foot_height", 0.1, 0.22) if feet else 0.0

    half, deep = width / 2, depth / 2
    if sides == "panels":
        parts = both_sides(box((half - side, half), (lift, height), (-deep, deep), EDGE))
        if feet:
            for z in (-deep, deep - 0.12):
                parts += both_sides(box((half - 0.12, half), (0, lift + 0.05), (z, z + 0.12), EDGE))
    else:
        parts = [p for z in (-deep, deep - side) for p in both_sides(box((half - side, half), (0, height), (z, z + side), EDGE))]
    inset = 0.02 if sides == "panels" else 0.0
    for y in np.linspace(lift, height - board, levels + 1):
        parts.append(box((-half + inset, half - inset), (y, y + board), (-deep, deep - inset), EDGE))
    if back:
        parts.append(box((-half + 0.03, half - 0.03), (lift + 0.03, height - 0.03), (-deep, -deep + 0.09)))
    if divider:
        x = width * d.real("divider_position", -0.15, 0.15)
        parts.append(box((x - 0.05, x + 0.05), (lift + 0.03, height - 0.03), (-deep + 0.01, deep - 0.03)))
    return union(parts), Words("shelf", [
        grade(height / width, 1.1, "low", 1.7, "tall"), grade(width / height, 0.55, "narrow", 0.95, "wide"),
        grade(depth, 0.5, "shallow", 0.66, "deep"),
    ], [number(levels, "compartment") if not divider else f"{NUMBERS[levels]} divided rows",
        "side panels" if sides == "panels" else "open sides", "a back panel" if back else "no back",
        phrase(grade(board, 0.092, "thin", 0.108, "thick"), "boards"), "feet" if feet else ""])


def sofa(d: Draw) -> tuple[Manifold, Words]:
    seats = d.pick("seats", 1, 2, 3)
    span = {1: (1.05, 1.3), 2: (1.6, 1.9), 3: (2.2, 2.6)}[seats]
    width, height, depth = d.envelope(width=span, height=(0.95, 1.15), depth=(0.95, 1.15))
    arm, arm_top = width * d.real("arm_width", 0.08, 0.13), height * d.real("arm_height", 0.6, 0.8)
    seat, back = height * d.real("seat_height", 0.42, 0.52), depth * d.real("back_depth", 0.22, 0.32)
    leg = height * d.real("leg_height", 0.1, 0.18)
    arms, legs = d.pick("arms", "square", "rolled", "no"), d.pick("legs", "round", "square")
    chaise = d.pick("chaise", "none", "left", "right") if seats > 1 else "none"

    half, rear, front = width / 2, -depth / 2, depth / 2
    if chaise != "none":
        front -= depth * d.real("chaise_length", 0.25, 0.38)
    inner = half - (arm if arms != "no" else 0.02)
    cushion = max(0.12, (seat - leg) * 0.45)
    parts = [box((-half, half), (leg, seat - cushion + 0.04), (rear, front), EDGE),
             box((-half + 0.01, half - 0.01), (leg, height), (rear, rear + back), SOFT)]
    gap = 0.02
    step = 2 * inner / seats
    for i in range(seats):
        x = (-inner + i * step + gap, -inner + (i + 1) * step - gap)
        parts.append(box(x, (seat - cushion, seat), (rear + back - 0.1, front - 0.01), 0.05))
        parts.append(box(x, (seat - 0.05, height - 0.06), (rear + back - 0.12, rear + back + 0.1), SOFT))
    if chaise != "none":
        low, high = (-half, -half + step + half - inner) if chaise == "left" else (half - step - half + inner, half)
        parts.append(box((low, high), (leg, seat - cushion + 0.04), (rear, depth / 2), EDGE))
        parts.append(box((low + gap, high - gap), (seat - cushion, seat), (rear + back, depth / 2 - 0.01), 0.05))
    if arms == "square":
        parts += both_sides(box((inner, half), (leg, arm_top), (rear, front), 0.04))
    elif arms == "rolled":
        roll = arm * 0.5
        outline = [(inner, leg), (half, leg), *arc((inner + roll, arm_top - roll), (roll, roll), (0, 180), 14)]
        parts += both_sides(extrude(outline, "z", (rear + 0.02, front)))
    for x, z in ((x, z) for x in (-half + 0.1, half - 0.1) for z in (rear + 0.1, front - 0.1)):
        ring = disk(0.06, x, z, 16) if legs == "round" else rectangle(0.11, 0.11, x, z)
        parts.append(loft((0, leg + 0.05), ring))
    if chaise != "none":
        for x in (low + 0.1, high - 0.1):
            parts.append(loft((0, leg + 0.05), disk(0.06, x, depth / 2 - 0.1, 16) if legs == "round"
                              else rectangle(0.11, 0.11, x, depth / 2 - 0.1)))
    noun = "armchair" if seats == 1 and arms != "no" else "sofa"
    return union(parts), Words(noun, [
        grade(height / depth, 0.93, "low", 1.07, "high"), "" if noun == "armchair" else f"{NUMBERS[seats]}-seat",
    ], [f"{arms} arms" if arms != "no" else "no arms", phrase(grade(leg / height, 0.125, "short", 0.155, "long"), legs, "legs"),
        phrase("a", grade(back / depth, 0.25, "thin", 0.29, "thick"), "back"), f"a chaise on the {chaise}" if chaise != "none" else ""])
