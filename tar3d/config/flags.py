"""Command-line flags made from the fields of a config dataclass; the argparse types of seeds.

A field becomes a flag if its metadata holds "help". A flag that is not given leaves the value of
the config that it changes, so that every default stays in the dataclass or the saved model.
"""

from __future__ import annotations

import argparse
import dataclasses
from typing import TYPE_CHECKING, Any, TypeVar, cast, get_type_hints

from tar3d.config.checks import LARGEST_SEED, check_seed

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T")


def seed_number(text: str, least: int = 0) -> int:
    """The argparse type of a seed that numpy and torch take."""
    try:
        check_seed("it", int(text), least)
    except ValueError as e:
        raise argparse.ArgumentTypeError(f"{text!r} is no seed: {e}") from e
    return int(text)


def torch_seed_number(text: str) -> int:
    """The argparse type of a seed that torch alone takes, which may be negative."""
    return seed_number(text, -LARGEST_SEED)


def described(default: Any, text: str) -> Any:
    """A dataclass field that also becomes a flag, with `text` as its help."""
    return dataclasses.field(default=default, metadata={"help": text})


def help_texts(cls: type) -> dict[str, str]:
    """The help text of every field of `cls` that becomes a flag."""
    fields = dataclasses.fields(cast("type[DataclassInstance]", cls))
    return {field.name: field.metadata["help"] for field in fields if "help" in field.metadata}


def add_config_flags(parser: argparse._ActionsContainer, cls: type) -> None:
    """Adds the flag --some-name to a parser, or a group of it, for every described `some_name`."""
    types = get_type_hints(cls)
    for name, text in help_texts(cls).items():
        options: dict[str, Any] = {"type": types[name]}
        if types[name] is bool:
            options = {"action": argparse.BooleanOptionalAction}
        parser.add_argument(f"--{name.replace('_', '-')}", help=text, **options)


def config_from_flags(args: argparse.Namespace, base: T) -> T:
    """`base` with the values of the flags that were given.

    Raises ValueError for a value that the config does not allow.
    """
    values = {name: getattr(args, name) for name in help_texts(type(base))}
    given = {name: value for name, value in values.items() if value is not None}
    return cast("T", dataclasses.replace(cast("DataclassInstance", base), **given))
