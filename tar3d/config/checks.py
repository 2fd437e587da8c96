"""Checks of config values. Each raises a ValueError that names the field and its value."""

from __future__ import annotations


def require(condition: bool, message: str) -> None:
    """Raises ValueError with `message` unless the condition holds."""
    if not condition:
        raise ValueError(message)


def one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    """Refuses a value that is not among those allowed."""
    require(value in allowed, f"{name} is {value!r}, allowed are {', '.join(allowed)}")


def at_least(least: int, config: object, section: str, *names: str) -> None:
    """Refuses fields below `least`; `section` is the prefix of their names in messages."""
    for name in names:
        value = getattr(config, name)
        require(value >= least, f"{section}{name} must be at least {least}, got {value}")
