"""Reading, checking and writing the config dataclasses, whatever they configure."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast, get_origin, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from tar3d.config.checks import require
from tar3d.paths import find_local
from tar3d.upgrade import upgrade_config, upgrade_overrides

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T")

_WORDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    bool | str: "auto, true or false",
    str: "a text",
    list: "a list, as in [a,b]",
}


def from_mapping(cls: type[T], values: Mapping[str, Any], origin: str) -> T:
    """Builds the dataclass `cls` from nested plain values.

    `origin` names their source in errors. Raises ValueError for an unknown key, a value of the
    wrong type, or a contradiction.
    """
    try:
        values = upgrade_config(values)
        _check_keys(cls, values)
        merged = OmegaConf.merge(OmegaConf.structured(cls), OmegaConf.create(dict(values)))
        return cast("T", OmegaConf.to_object(merged))
    except OmegaConfBaseException as e:
        raise ValueError(f"{origin}: {_describe(e, cls, values)}") from e
    except ValueError as e:
        raise ValueError(f"{origin}: {e}") from e


def _check_keys(cls: Any, values: Mapping[str, Any], prefix: str = "") -> None:
    """Raises ValueError for a key that `cls` lacks, and where a section is taken for a value."""
    types = get_type_hints(cls)
    for key, value in values.items():
        name = f"{prefix}{key}"
        if key not in types:
            near = difflib.get_close_matches(str(key), types, 1)
            place = f"the section {prefix[:-1]}" if prefix else "the configuration"
            hint = (
                f"did you mean {prefix}{near[0]}?"
                if near
                else f"keys of {place} are {', '.join(types)}"
            )
            raise ValueError(f"there is no key {name!r}; {hint}")
        is_section, has_keys = dataclasses.is_dataclass(types[key]), isinstance(value, Mapping)
        if is_section and not has_keys:
            first = next(iter(get_type_hints(types[key])))
            raise ValueError(
                f"{name} is a section of keys, got {value!r}: write a value for one of them, as in "
                f"{name}.{first}=VALUE"
            )
        if has_keys and not is_section:
            raise ValueError(f"{name} is one value and has no keys of its own, got {value!r}")
        if is_section:
            _check_keys(types[key], value, f"{name}.")
        # OmegaConf takes any number for true or false.
        elif types[key] is bool and isinstance(value, int) and value not in (0, 1):
            raise ValueError(f"{name} must be {_WORDS[bool]}, got {value!r}")


def _describe(error: OmegaConfBaseException, cls: Any, values: Mapping[str, Any]) -> str:
    """One sentence on a value of the wrong type: its key, what is allowed, and what came."""
    *sections, name = (error.full_key or "").split("[")[0].split(".")
    value: Any = values
    for section in sections:
        cls, value = get_type_hints(cls).get(section), value.get(section, {})
    wanted = get_type_hints(cls).get(name) if cls else None
    if wanted is None:
        return str(error).splitlines()[0]
    allowed = _WORDS.get(wanted, _WORDS.get(get_origin(wanted), str(wanted)))
    return f"{'.'.join([*sections, name])} must be {allowed}, got {value.get(name)!r}"


def load(
    cls: type[T],
    path: str | Path | None,
    overrides: list[str] | tuple[str, ...] = (),
    base: Mapping[str, Any] | None = None,
) -> T:
    """A checked `cls` from the file `path` (None: defaults only) and `key=value` overrides.

    `base` holds nested values that replace defaults and give way to the file and the overrides.
    """
    values: dict[str, Any] = {}
    if path is not None:
        path = find_local(path)
        if not path.is_file():
            raise ValueError(f"config file {path} does not exist")
        values = read_values(path)
    for item in overrides:
        require(
            "=" in item and not item.startswith("-"),
            f"{item!r} is not an override of the form key=value, as in train.batch_size=4",
        )
    upgraded = upgrade_overrides(overrides)
    try:
        merged = OmegaConf.merge(base or {}, values, OmegaConf.from_dotlist(upgraded))
    except (OmegaConfBaseException, YAMLError) as e:
        raise ValueError(
            f"the command line: {' '.join(upgraded)} is not readable ({' '.join(str(e).split())})"
        ) from e
    places = ((str(path), path), ("the command line", overrides))
    origin = " and ".join(name for name, used in places if used)
    return from_mapping(cls, cast("dict", OmegaConf.to_container(merged)), origin or "defaults")


def read_values(path: Path) -> dict[str, Any]:
    """The nested values of a YAML file under the names of today.

    Raises ValueError for a file that is not readable or does not hold keys and values.
    """
    try:
        values = OmegaConf.load(path)
    except (YAMLError, OmegaConfBaseException, OSError, UnicodeDecodeError) as e:
        raise ValueError(f"{path} is not a readable YAML file: {' '.join(str(e).split())}") from e
    if not isinstance(values, DictConfig):
        raise ValueError(f'{path} must hold keys and values, as in "train: {{batch_size: 4}}"')
    try:
        return upgrade_config(cast("dict", OmegaConf.to_container(values)))
    except ValueError as e:
        raise ValueError(f"{path}: {e}") from e


def with_defaults(cls: type, values: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """Values that an earlier version saved, completed with the defaults of keys added since then.

    The default of a new key always means "as before".
    """
    return to_mapping(from_mapping(cls, values, origin))


def to_mapping(config: object) -> dict[str, Any]:
    """The nested plain values of a config dataclass."""
    return dataclasses.asdict(cast("DataclassInstance", config))


def save(config: object, path: str | Path) -> None:
    """Writes a config dataclass as a YAML file that `load` reads."""
    OmegaConf.save(OmegaConf.create(to_mapping(config)), Path(path))
