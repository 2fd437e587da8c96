"""Checks of config values. Each raises a ValueError that names the field and its value."""

from __future__ import annotations

import math

# numpy takes no negative seed, torch none above twice this one; shapes count up from a seed.
LARGEST_SEED = 2**63 - 1


def require(condition: bool, message: str) -> None:
    """Raises ValueError with `message` unless the condition holds."""
    if not condition:
        raise ValueError(message)


def one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    """Refuses a value that is not among those allowed."""
    require(value in allowed, f"{name} is {value!r}, allowed are {', '.join(allowed)}")


def nearest(value: int, allowed: list[int]) -> str:
    """The allowed values (ascending) next to `value` on either side, as text: "2 or 4"."""
    smaller, larger = [n for n in allowed if n < value], [n for n in allowed if n > value]
    return " or ".join(map(str, [*smaller[-1:], *larger[:1]]))


def check_seed(name: str, seed: int, least: int = 0) -> None:
    """Refuses a seed that numpy or torch would."""
    require(
        least <= seed <= LARGEST_SEED,
        f"{name} must be from {least} to 2^63 - 1 = {LARGEST_SEED}, got {seed}",
    )


def at_least(least: int, config: object, section: str, *names: str) -> None:
    """Refuses fields below `least`, NaN and infinity; `section` comes before names in messages."""
    for name in names:
        value = getattr(config, name)
        finite = " and finite" if value == math.inf else ""
        require(
            least <= value < math.inf,
            f"{section}{name} must be at least {least}{finite}, got {value}",
        )


def share(config: object, section: str, *names: str, below_one: bool = False) -> None:
    """Refuses fields outside [0, 1], or outside [0, 1) with `below_one`."""
    for name in names:
        value = getattr(config, name)
        fits = 0 <= value <= 1 and not (below_one and value == 1)
        range_ = "[0, 1)" if below_one else "[0, 1]"
        require(fits, f"{section}{name} must be in {range_}, got {value}")
