"""The procedural data sets that a script makes once and uses when none is named."""

from __future__ import annotations

import os
from pathlib import Path

from tar3d.config import PointSamplingConfig, ViewConfig
from tar3d.folders import probe_output

DEFAULT_FOLDER, TEST_FOLDER = Path("data/toy"), Path("data/test")
DEFAULT_SAMPLES = PointSamplingConfig(surface_points=8192, volume_points=8192, near_points=8192)
DRY_RUN_SHAPES = 16
# The GPT of pretrained/tiny was trained on 24,000 shapes of seed 0 with 16 views each. To make them
# takes about 17 minutes on two cores (computed) and 0.7 GB, so baselines look up this many of them,
# with 4 views each.
LIBRARY_SHAPES = 6000
LIBRARY_NOTE = (
    "copies are looked up among 6,000 of the 24,000 procedural shapes that the shipped GPT was "
    "trained on, with 4 of 16 views each: a weaker baseline than the whole set; to make it, run "
    "python -m tar3d.data.toy --out data/toyv --num 24000 views.count=16 and give --train data/toyv"
)


def default_data(
    num_shapes: int, folder: Path = DEFAULT_FOLDER, seed: int = 0, scratch: Path | None = None
) -> Path:
    """Makes or completes `folder`: `num_shapes` procedural shapes with views and samples.

    With `scratch`, a few shapes in that folder instead, for a dry run.
    """
    if scratch is not None:
        num_shapes, folder = min(num_shapes, DRY_RUN_SHAPES), scratch / folder.name
    # Packages for meshes take a second to load, and only who makes a set needs them.
    from tar3d.data.prepare.make_samples import make_samples
    from tar3d.data.toy.make_toy import make_toy_data

    probe_output(folder, "the folder")
    workers = os.cpu_count() or 1
    make_toy_data(folder, num_shapes, seed=seed, views=ViewConfig(), workers=workers)
    make_samples(folder, folder, DEFAULT_SAMPLES, workers=workers)
    return folder


def default_test(num_shapes: int) -> Path:
    """Makes or completes the test set: shapes of seed 1, which no shipped model has seen."""
    return default_data(num_shapes, TEST_FOLDER, seed=1)


def default_library() -> Path:
    """Makes or completes a part of what the shipped GPT was trained on: meshes and views.

    Baselines that copy a training shape look them up here; `LIBRARY_NOTE` says what is missing.
    """
    from tar3d.data.toy.make_toy import make_toy_data

    probe_output(DEFAULT_FOLDER, "the folder")
    return make_toy_data(
        DEFAULT_FOLDER, LIBRARY_SHAPES, seed=0, views=ViewConfig(), workers=os.cpu_count() or 1
    )
