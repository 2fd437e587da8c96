"""Reading, checking and writing the config dataclasses, whatever they configure."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from tar3d.config.checks import require
from tar3d.paths import find_local
from tar3d.upgrade import upgrade_config, upgrade_override

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T")


def from_mapping(cls: type[T], values: Mapping[str, Any], origin: str) -> T:
    """Builds the dataclass `cls` from nested plain values.

    `origin` names their source in errors. Raises ValueError for an unknown key, a value of the
    wrong type, or a contradiction.
    """
    try:
        merged = OmegaConf.merge(
            OmegaConf.structured(cls), OmegaConf.create(upgrade_config(values))
        )
        return cast("T", OmegaConf.to_object(merged))
    except (OmegaConfBaseException, ValueError) as e:
        reason = str(e).splitlines()[0]
        raise ValueError(
            f"{origin}: {reason}. The keys and their types are listed in tar3d/config"
        ) from e


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
        values = _read(path)
    for item in overrides:
        require(
            "=" in item and not item.startswith("-"),
            f"{item!r} is not an override of the form key=value, as in train.batch_size=4",
        )
    merged = OmegaConf.merge(
        base or {}, values, OmegaConf.from_dotlist([upgrade_override(item) for item in overrides])
    )
    places = ((str(path), path), ("the command line", overrides))
    origin = " and ".join(name for name, used in places if used)
    return from_mapping(cls, cast("dict", OmegaConf.to_container(merged)), origin or "defaults")


def _read(path: Path) -> dict[str, Any]:
    """The values of a YAML file under the names of today."""
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
