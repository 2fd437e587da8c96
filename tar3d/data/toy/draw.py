"""The random parameters of a procedural shape, and the parts of its caption.

`Draw` is the only source of randomness of a shape and records every value, so the manifest is
complete. `CaptionParts` becomes a caption: its content depends on the parameters, only the form of
the sentence is random.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import numpy as np

T = TypeVar("T", str, int, bool)

NUMBERS = ("no", "one", "two", "three", "four", "five", "six")


class Draw:
    """Draws parameters by name and records them in `parameters`.

    Real numbers are rounded to four decimals before they are used, so that the manifest has exactly
    what was built.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self.parameters: dict[str, float | int | str | bool] = {}

    def real(self, name: str, low: float, high: float) -> float:
        """A uniform number in [low, high)."""
        value = round(float(self._rng.uniform(low, high)), 4)
        self._record(name, value)
        return value

    def pick(self, name: str, *options: T) -> T:
        """One of the options, each with the same probability."""
        value = options[int(self._rng.integers(len(options)))]
        self._record(name, value)
        return value

    def chance(self, name: str, probability: float = 0.5) -> bool:
        """True with the given probability."""
        value = bool(self._rng.random() < probability)
        self._record(name, value)
        return value

    def _record(self, name: str, value: float | str) -> None:
        assert name not in self.parameters, f"the parameter {name} is drawn twice"
        self.parameters[name] = value


@dataclass(frozen=True)
class CaptionParts:
    """A noun, adjectives before it, and features that follow "with"; empty strings are left out."""

    noun: str
    adjectives: list[str] = field(default_factory=list)
    features: list[str] = field(default_factory=list)

    def subset(self, rng: np.random.Generator) -> CaptionParts:
        """A random share of the adjectives and features, as in the request of a user."""
        share = rng.random()
        return CaptionParts(
            self.noun,
            *(
                [word for word in words if rng.random() < share]
                for words in (self.adjectives, self.features)
            ),
        )

    def caption(self, rng: np.random.Generator) -> str:
        """A caption in one of four forms, with the features in random order."""
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
    """`low_word` below `low`, `high_word` above `high`, else ""."""
    return low_word if value < low else high_word if value > high else ""


def article(phrase: str) -> str:
    """The phrase with "a" or "an" before it."""
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def number(count: int, thing: str) -> str:
    """A count in words, as in "one leg" and "three thin legs"."""
    return f"{NUMBERS[count]} {thing}{'s' if count > 1 else ''}"


def listing(items: list[str]) -> str:
    """Items joined by commas, and "and" before the last."""
    return " and ".join(filter(None, [", ".join(items[:-1]), items[-1]]))


def phrase(*words: str) -> str:
    """Words joined by spaces; empty ones are left out."""
    return " ".join(w for w in words if w)
