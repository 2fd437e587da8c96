"""Command-line arguments that eval_2d.py and eval_3d.py share.

Options that are not given are None, so that a script can tell; `fill_in` puts the defaults there.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from tar3d.data.defaults import DEFAULT_FOLDER
from tar3d.paths import shipped
from tar3d.runtime import add_encoder_arguments, model_source, positive_int

if TYPE_CHECKING:
    import argparse

MODEL_DEFAULTS: dict[str, Any] = {
    "model": "pretrained/tiny",
    "gpt_type": "i23d",
    "image_encoder": None,
    "text_encoder": None,
    "test": None,
    "train": None,
    "shapes": 100,
    "resolution": 128,
    "batch": 10,
}
PROTOCOLS = shipped("configs/eval")
# Colours behind the object, and ways to resize image files, by name.
BACKGROUNDS = {"white": (255, 255, 255), "black": (0, 0, 0), "grey": (128, 128, 128)}
FILTERS = {
    name: Image.Resampling[name.upper()] for name in ("bicubic", "lanczos", "bilinear", "box")
}
GPT_TYPE_HELP = {"i23d": "i23d an image", "t23d": "t23d a text", "uncond": "uncond none"}


def protocol_names() -> str:
    """Names of the shipped protocols, one for each file of configs/eval, with commas between."""
    return ", ".join(sorted(path.stem for path in PROTOCOLS.glob("*.yaml")))


def add_model_arguments(group: Any, gpt_types: list[str]) -> None:
    """Adds the options of MODEL_DEFAULTS to a group of arguments."""
    defaults = MODEL_DEFAULTS
    group.add_argument(
        "--model",
        type=model_source,
        help=f"model directory or Hub id (default: {defaults['model']})",
    )
    add_encoder_arguments(group)
    conditions = ", ".join(GPT_TYPE_HELP[name] for name in gpt_types)
    group.add_argument(
        "--gpt-type",
        choices=gpt_types,
        help=f"condition: {conditions} (default: {defaults['gpt_type']})",
    )
    group.add_argument(
        "--test",
        type=Path,
        help="data set folder with unseen shapes (default: 100 procedural ones, seed 1)",
    )
    group.add_argument(
        "--train",
        type=Path,
        help=f"data set the model was trained on (default: {DEFAULT_FOLDER}, procedural)",
    )
    for name, meaning in (
        ("shapes", "how many, drawn with the seed"),
        ("resolution", "extraction cells along an axis"),
        ("batch", "shapes generated at once: more are faster and take more memory"),
    ):
        group.add_argument(
            f"--{name}", type=positive_int, help=f"{meaning} (default: {defaults[name]})"
        )


def add_output_arguments(parser: argparse.ArgumentParser, out: str) -> None:
    """Adds --out, whose default is `out`, and --workers."""
    parser.add_argument(
        "--out", type=Path, default=Path(out), help="folder of the report (default: %(default)s)"
    )
    parser.add_argument(
        "--workers",
        type=positive_int,
        default=os.cpu_count(),
        help="processes (default: all cores)",
    )


def fill_in(args: argparse.Namespace, defaults: dict[str, Any]) -> None:
    """Puts the defaults in place of options that are None."""
    for name, default in defaults.items():
        if getattr(args, name) is None:
            setattr(args, name, default)
