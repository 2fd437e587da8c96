"""Checks of config values. Each raises a ValueError that names the field and its value."""

from __future__ import annotations


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


def at_least(least: int, config: object, section: str, *names: str) -> None:
    """Refuses fields below `least`; `section` is the prefix of their names in messages."""
    for name in names:
        value = getattr(config, name)
        require(value >= least, f"{section}{name} must be at least {least}, got {value}")
