"""How a procedural shape draws its parameters and finds its words.

`Draw` is the only source of chance for a shape and keeps every value it gave, so a manifest is
complete by construction. `Words` becomes a caption; what is said depends on the parameters, only
the sentence's form on chance.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from tar3d.contracts import CUBE_FILL

if TYPE_CHECKING:
    import numpy as np

T = TypeVar("T", str, int, bool)
Range = tuple[float, float]

NUMBERS = ("no", "one", "two", "three", "four", "five", "six")


class Draw:
    """Draws and remembers. Continuous values have four decimals, so what is written down is what
    was built."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self.parameters: dict[str, float | int | str | bool] = {}

    def real(self, name: str, low: float, high: float) -> float:
        return self._keep(name, round(float(self._rng.uniform(low, high)), 4))

    def pick(self, name: str, *options: T) -> T:
        return self._keep(name, options[int(self._rng.integers(len(options)))])

    def chance(self, name: str, probability: float = 0.5) -> bool:
        return self._keep(name, bool(self._rng.random() < probability))

    def envelope(self, **ranges: Range) -> tuple[float, ...]:
        """The sides of the box that a shape fills: proportions from `ranges`, scaled so that the
        longest spans the cube.

        A family that fills its envelope is built at its final scale: its other lengths are in units
        of the cube [-1, 1]^3.
        """
        sides = [float(self._rng.uniform(*r)) for r in ranges.values()]
        scale = 2 * CUBE_FILL / max(sides)
        return tuple(
            self._keep(name, round(side * scale, 4))
            for name, side in zip(ranges, sides, strict=True)
        )

    def _keep(self, name: str, value: T | float) -> T | float:
        assert name not in self.parameters, f"the parameter {name} is drawn twice"
        self.parameters[name] = value
        return value


@dataclass(frozen=True)
class Words:
    """A noun, adjectives that go before it, and features that come after "with"; empty ones are
    left out."""

    noun: str
    adjectives: list[str] = field(default_factory=list)
    features: list[str] = field(default_factory=list)

    def fewer(self, rng: np.random.Generator) -> Words:
        """Some of the words, from next to none to nearly all, as people who ask for a shape would
        say."""
        share = rng.random()
        return Words(
            self.noun,
            *(
                [w for w in words if rng.random() < share]
                for words in (self.adjectives, self.features)
            ),
        )

    def caption(self, rng: np.random.Generator) -> str:
        """One of four forms, the features in any order."""
        adjectives = [a for a in self.adjectives if a]
        features = [f for f in self.features if f]
        features = [features[i] for i in rng.permutation(len(features))]
        thing = article(" ".join([*adjectives, self.noun]))
        with_features = f" with {listing(features)}" if features else ""
        form = int(rng.integers(4))
        if form == 1:
            return f"a 3D model of {thing}{with_features}"
        if form == 2 and features:
            return f"{thing}; it has {listing(features)}"
        if form == 3 and adjectives:
            return f"{article(self.noun)}{with_features}, {listing(adjectives)}"
        return thing + with_features


def grade(value: float, low: float, low_word: str, high: float, high_word: str) -> str:
    """The word for a value outside [low, high], else none."""
    return low_word if value < low else high_word if value > high else ""


def article(phrase: str) -> str:
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def number(count: int, thing: str) -> str:
    """ "one leg", "three thin legs"."""
    return f"{NUMBERS[count]} {thing}{'s' if count > 1 else ''}"


def listing(items: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(items[:-1]), items[-1]]))


def phrase(*words: str) -> str:
    return " ".join(w for w in words if w)
