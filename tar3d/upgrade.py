"""Names of earlier versions and what replaced them: config, weights, columns of logs and flags.

Saved models, training states, config files and command lines of earlier versions keep working
through these tables, and through nothing else. A line stays for as long as files with the old name
may exist.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

CONFIG_KEYS = {
    "gpt.linear": "gpt.linear_attention",
    "gpt.rope_prefix": "gpt.prefix_rope",
    "gpt.sketch_dim": "gpt.code_predictor_dim",
    "gpt.sketch_hidden": "gpt.code_predictor_hidden",
    "gpt.sketch_local": "gpt.code_predictor_local",
    "image_encoder.source": "image_encoder.model",
    "optim.hidden_matrices": "optim.optimizer",
    "sampling.sketch_scale": "sampling.code_predictor_scale",
    "text_encoder.source": "text_encoder.model",
    "train.recompute": "train.activation_checkpointing",
    "train.sketch_rows": "train.code_predictor_rows",
    "train.sketch_weight": "train.code_predictor_weight",
}
CONFIG_VALUES = {
    ("gpt.attention_backend", "xformers"): "auto",
    ("train.stage", "sketch"): "code_predictor",
    ("train.stage", "layers"): "transformer",
}
# Parts of parameter names, the longer ones first.
PARAMETERS = {
    "gpt.sketch.guess.": "gpt.code_predictor.mlp.",
    "gpt.sketch.": "gpt.code_predictor.",
    "each_point.": "point_mlp.",
    "all_points.": "pool_mlp.",
    "of_shape.": "shape_proj.",
    "of_terms.": "term_embedding.",
    "of_bag.": "text_proj.",
}
OLD_DENSITY_POINTS = 8192  # see `upgrade_model_config`
COLUMNS = {"sketch": "code_distance"}  # beginnings of names in the CSV files of a run
FLAGS = {
    "--init-sketch": "--init-code-predictor",
    "--judge": "--evaluator",
    "--sketch-scale": "--code-predictor-scale",
}


def upgrade_config(values: Mapping[str, Any]) -> dict[str, Any]:
    """Nested config values with old keys and values replaced.

    Raises ValueError where a key is given under its old and its new name.
    """
    new: dict[str, Any] = {
        key: dict(value) if isinstance(value, Mapping) else value for key, value in values.items()
    }
    for old_key, key in CONFIG_KEYS.items():
        (section, old_name), name = old_key.split("."), key.split(".")[1]
        fields = new.get(section)
        if not isinstance(fields, dict) or old_name not in fields:
            continue
        if name in fields:
            raise ValueError(f"{old_key} is the old name of {key}: give one of the two")
        fields[name] = fields.pop(old_name)
    for (key, old_value), value in CONFIG_VALUES.items():
        section, name = key.split(".")
        fields = new.get(section)
        if isinstance(fields, dict) and fields.get(name) == old_value:
            fields[name] = value
    return new


def upgrade_model_config(values: Mapping[str, Any]) -> dict[str, Any]:
    """Nested values of a model directory's config, with the `density_points` of earlier versions.

    They did not scale counts of points. Most models were used with 8,192 points, whatever they were
    trained with; one that was trained with more was used with as many.
    """
    return _with_density(values, OLD_DENSITY_POINTS)


def upgrade_state_config(values: Mapping[str, Any]) -> dict[str, Any]:
    """Nested config values of a training state, with the `density_points` of earlier versions.

    They counted the points that they drew as they were.
    """
    return _with_density(values, 0)


def _with_density(values: Mapping[str, Any], least: int) -> dict[str, Any]:
    """`values` whose tokenizer, if it lacks them, has the `density_points` that it trained with."""
    tokenizer, train = values.get("tokenizer"), values.get("train")
    if not isinstance(tokenizer, Mapping) or "density_points" in tokenizer:
        return dict(values)
    trained = train.get("surface_points", 0) if isinstance(train, Mapping) else 0
    density = max(least, trained if isinstance(trained, int) else 0)
    return {**values, "tokenizer": {**tokenizer, "density_points": density}}


def upgrade_overrides(items: Sequence[str]) -> list[str]:
    """`key=value` overrides with old keys and values replaced.

    Raises ValueError where a key is given under its old and its new name.
    """
    upgraded, given = [], {item.partition("=")[0] for item in items}
    for item in items:
        old_key, equals, value = item.partition("=")
        key = CONFIG_KEYS.get(old_key, old_key)
        if key != old_key and key in given:
            raise ValueError(f"{old_key} is the old name of {key}: give one of the two")
        upgraded.append(f"{key}{equals}{CONFIG_VALUES.get((key, value), value)}")
    return upgraded


def upgrade_parameter(name: str) -> str:
    """The name that a parameter of a saved model or training state has today."""
    for old, new in PARAMETERS.items():
        if name.startswith(old) or f".{old}" in name:
            return name.replace(old, new, 1)
    return name


def upgrade_parameters(tensors: Mapping[str, T]) -> dict[str, T]:
    """A state dict under the parameter names of today."""
    return {upgrade_parameter(name): tensor for name, tensor in tensors.items()}


def upgrade_column(name: str) -> str:
    """The name that a column of a run's CSV files has today."""
    old = name.partition("_")[0]
    return COLUMNS[old] + name.removeprefix(old) if old in COLUMNS else name


def upgrade_evaluator_folder(folder: str | Path) -> str | Path:
    """The folder `judge` beside `folder`, where an earlier model directory has no `evaluator`."""
    path = Path(folder)
    old = path.with_name("judge") if path.name == "evaluator" else path
    return old if old.is_dir() and not path.exists() else folder


def upgrade_flags(argv: Sequence[str] | None) -> list[str]:
    """Command-line arguments (None: those of this process) with old flags replaced."""
    arguments = sys.argv[1:] if argv is None else argv
    return [
        "=".join([FLAGS.get(flag, flag), *value])
        for flag, *value in (argument.split("=", 1) for argument in arguments)
    ]
