"""Looks of a rendered mesh: colours, patterns, light, gloss and lines, drawn at random.

`draw_look` starts from matt grey and passes it through `LOOKS`, a table of variations. A variation
of your own is a function (look, rng, strength) -> look and a line of that table. Letters: K rays,
S image side in pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

Colour = tuple[float, float, float]
_GREY: Colour = (0.79, 0.78, 0.76)
# A line begins where the depth of neighbouring pixels differs by STEP pixel widths (the image
# is about a cube's diagonal wide), or the cosine between their normals falls by BEND below 1.
_STEP, _BEND = 3.0, 0.15


@dataclass(frozen=True)
class Surface:
    """Where K rays hit a mesh: points, unit normals and directions to the viewer, all (K, 3).

    `parts` (K,) are numbers of connected parts; `axes` (3, 3) are the camera's right, up, forward.
    """

    points: np.ndarray
    normals: np.ndarray
    viewer: np.ndarray
    parts: np.ndarray
    axes: np.ndarray


def plain(points: np.ndarray) -> np.ndarray:
    """The pattern of one colour: weight 0 (K,) of the second colour at points (K, 3)."""
    return np.zeros(len(points), dtype=np.float32)


@dataclass(frozen=True)
class Look:
    """A material under a light. Colours and amounts of light are in [0, about 1].

    `pattern` gives the weight (K,) in [0, 1] of the second of `colours` at points (K, 3).
    `part_colours` (n, 3) replace the first colour by the number of the part, modulo n.
    """

    colours: tuple[Colour, Colour] = (_GREY, _GREY)
    pattern: Callable[[np.ndarray], np.ndarray] = plain
    part_colours: np.ndarray | None = None
    ambient: Colour = (0.22, 0.22, 0.22)
    key: Colour = (0.62, 0.62, 0.62)
    fill: Colour = (0.20, 0.20, 0.20)  # from above
    key_direction: tuple[float, float, float] = (-0.40, 0.45, 0.80)  # right, up, to the viewer
    shine: float = 0.0  # amount of light that a glossy surface mirrors
    sharpness: float = 20.0  # exponent of that reflection
    lines: float = 0.0  # darkness of lines at edges and outline
    paper: float = 0.0  # share of white in the colour; 1 with lines is a line drawing

    def shade(self, surface: Surface) -> np.ndarray:
        """The colour (K, 3) float32 of each ray."""
        first, second = (np.asarray(c, dtype=np.float32) for c in self.colours)
        if self.part_colours is not None:
            first = self.part_colours[surface.parts % len(self.part_colours)]
        weight = self.pattern(surface.points)[:, None]
        colour = first * (1 - weight) + second * weight
        right, up, viewer = self.key_direction
        key = np.array([right, up, -viewer], dtype=np.float32) @ surface.axes
        key /= np.linalg.norm(key)
        facing = surface.normals @ key
        light = np.asarray(self.ambient, dtype=np.float32) + np.maximum(facing, 0)[
            :, None
        ] * np.asarray(self.key, dtype=np.float32)
        light += (0.5 + 0.5 * surface.normals[:, 1:2]) * np.asarray(self.fill, dtype=np.float32)
        colour = colour * light
        if self.shine:
            mirrored = 2 * facing[:, None] * surface.normals - key
            glint = np.einsum("ij,ij->i", mirrored, surface.viewer).clip(0, 1)
            colour += self.shine * (glint**self.sharpness)[:, None]
        return colour + self.paper * (1 - colour)


def with_lines(
    colour: np.ndarray, mask: np.ndarray, normal: np.ndarray, depth: np.ndarray, look: Look
) -> tuple[np.ndarray, np.ndarray]:
    """Color (S, S, 3) with dark lines at edges and outline, and the mask, opaque at the outline.

    An edge is where normal or depth of neighbouring pixels differ; an outline is where the mask
    ends.
    """
    inside, edge = mask > 0, np.zeros_like(mask)
    far = np.where(inside, depth, 0)
    for axis in (0, 1):
        a, b = (np.s_[:-1], np.s_[1:]) if axis == 0 else (np.s_[:, :-1], np.s_[:, 1:])
        both = inside[a] & inside[b]
        bend = (1 - np.einsum("ijk,ijk->ij", normal[a], normal[b])) / _BEND
        step = np.abs(far[a] - far[b]) * len(mask) / (2 * np.sqrt(3)) / _STEP
        line = np.where(both, (np.maximum(bend, step) - 1).clip(0, 1), inside[a] ^ inside[b])
        np.maximum(edge[a], line, out=edge[a])
        edge[b] = np.maximum(edge[b], np.where(both, 0, line))
    edge = np.where(inside, edge, 0).astype(np.float32)
    outline = inside & (edge > 0.5)
    mask = np.where(outline, np.maximum(mask, 0.6 * look.lines), mask).astype(np.float32)
    return colour * (1 - look.lines * edge[..., None]), mask


def draw_look(rng: np.random.Generator, strength: float) -> Look:
    """A look drawn at random, each variation of `LOOKS` as far from plain as `strength` in (0, 1].

    Each variation has a random stream of its own, so that a new line of the table, added at its
    end, leaves the others as they were.
    """
    look = Look()
    for variation, stream in zip(LOOKS.values(), rng.spawn(len(LOOKS)), strict=True):
        look = variation(look, stream, strength)
    return look


def _colour(rng: np.random.Generator) -> Colour:
    """A colour of any hue, more often pale or dark than vivid."""
    hue, saturation = rng.uniform(0, 6), rng.beta(1.2, 1.8)
    value = 0.1 + 0.9 * rng.beta(2.0, 1.2)
    channels = np.abs((hue + np.array([0.0, 4.0, 2.0])) % 6 - 3) - 1
    r, g, b = value * (1 - saturation * (1 - channels.clip(0, 1)))
    return float(r), float(g), float(b)


def _towards(plain_value: Colour, drawn: Colour, strength: float) -> Colour:
    a, b, c = (p + strength * (d - p) for p, d in zip(plain_value, drawn, strict=True))
    return a, b, c


def vary_colours(look: Look, rng: np.random.Generator, strength: float) -> Look:
    """Two colours of any hue; a fifth of all looks stays grey, as untextured models are shown."""
    first, second = _colour(rng), _colour(rng)
    if rng.random() < 0.2:
        grey = rng.uniform(0.35, 0.95)
        first, second = (grey, grey, grey), (0.7 * grey, 0.7 * grey, 0.7 * grey)
    return replace(
        look, colours=(_towards(_GREY, first, strength), _towards(_GREY, second, strength))
    )


def vary_pattern(look: Look, rng: np.random.Generator, strength: float) -> Look:
    """A gradient, stripes, checks or blotches of the second colour, on half of all looks."""
    direction = rng.standard_normal(3).astype(np.float32)
    direction /= np.linalg.norm(direction)
    if rng.random() < 0.5:
        direction = np.array(
            [0, 1, 0], dtype=np.float32
        )  # patterns of made things often follow the vertical
    waves = rng.standard_normal((4, 3)).astype(np.float32) * np.float32(rng.uniform(2, 8))
    phases = rng.uniform(0, 2 * np.pi, 4).astype(np.float32)
    frequency, softness = rng.uniform(2, 12), rng.uniform(1, 8)
    kind = int(rng.integers(8))
    amount = np.float32(strength * rng.uniform(0.3, 1.0))

    def pattern(points: np.ndarray) -> np.ndarray:
        if kind == 0:
            weight = 0.5 + 0.5 * (points @ direction)
        elif kind == 1:
            weight = 0.5 + 0.5 * softness * np.sin(frequency * (points @ direction))
        elif kind == 2:
            weight = 0.5 + softness * np.sin(frequency * points).prod(axis=1)
        else:
            weight = 0.5 + 0.3 * softness * np.sin(points @ waves.T + phases).mean(axis=1)
        return amount * weight.clip(0, 1).astype(np.float32)

    return replace(look, pattern=pattern) if kind < 4 else look


def vary_parts(look: Look, rng: np.random.Generator, strength: float) -> Look:
    """A colour for each connected part, on half of all looks."""
    colours = np.array([_towards(look.colours[0], _colour(rng), strength) for _ in range(5)])
    return replace(look, part_colours=colours.astype(np.float32)) if rng.random() < 0.5 else look


def vary_light(look: Look, rng: np.random.Generator, strength: float) -> Look:
    """The key light from anywhere in front, warm or cold, beside more or less other light."""
    side, height = rng.uniform(-1.2, 1.2), rng.uniform(-0.3, 1.3)
    direction = _towards(look.key_direction, (side, height, rng.uniform(0.1, 1.0)), strength)
    warmth = strength * rng.uniform(-0.2, 0.2)
    tint = np.array([1 + warmth, 1.0, 1 - warmth])
    exposure = np.exp(strength * rng.uniform(-0.35, 0.35))
    ambient, key = rng.uniform(0.15, 0.6), rng.uniform(0.35, 0.9)

    def light(base: Colour, drawn: float) -> Colour:
        r, g, b = exposure * tint * _towards(base, (drawn, drawn, drawn), strength)
        return float(r), float(g), float(b)

    return replace(
        look,
        key_direction=direction,
        ambient=light(look.ambient, ambient),
        key=light(look.key, key),
        fill=light(look.fill, rng.uniform(0.0, 0.35)),
    )


def vary_gloss(look: Look, rng: np.random.Generator, strength: float) -> Look:
    """A reflection of the key light, on a third of all looks."""
    shine, sharpness = strength * rng.uniform(0.1, 0.8), float(np.exp(rng.uniform(1.5, 4.5)))
    return replace(look, shine=shine, sharpness=sharpness) if rng.random() < 1 / 3 else look


def vary_lines(look: Look, rng: np.random.Generator, strength: float) -> Look:
    """Lines at edges on a fifth of all looks; half of these become drawings, on white paper."""
    lines, paper = strength * rng.uniform(0.5, 1.0), strength * rng.uniform(0.6, 1.0)
    kind = rng.random()
    if kind >= 0.2:
        return look
    return replace(look, lines=lines, paper=paper if kind < 0.1 else look.paper)


LOOKS: dict[str, Callable[[Look, np.random.Generator, float], Look]] = {
    "colours": vary_colours,
    "pattern": vary_pattern,
    "parts": vary_parts,
    "light": vary_light,
    "gloss": vary_gloss,
    "lines": vary_lines,
}
