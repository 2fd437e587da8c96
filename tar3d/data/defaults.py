"""The procedural data sets that a script makes once and uses when none is named."""

from __future__ import annotations

import os
from pathlib import Path

from tar3d.config import PointSamplingConfig, ViewConfig

DEFAULT_FOLDER, TEST_FOLDER = Path("data/toy"), Path("data/test")
DEFAULT_SAMPLES = PointSamplingConfig(surface_points=8192, volume_points=8192, near_points=8192)
DRY_RUN_SHAPES = 16
SHIPPED_SHAPES = 6000  # training set of pretrained/tiny: this many shapes of seed 0


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

    workers = os.cpu_count() or 1
    make_toy_data(folder, num_shapes, seed=seed, views=ViewConfig(), workers=workers)
    make_samples(folder, folder, DEFAULT_SAMPLES, workers=workers)
    return folder


def default_test(num_shapes: int) -> Path:
    """Makes or completes the test set: shapes of seed 1, which no shipped model has seen."""
    return default_data(num_shapes, TEST_FOLDER, seed=1)


def default_library() -> Path:
    """Makes or completes the meshes and views that the shipped model was trained on, no samples.

    Baselines that copy a training shape look them up here.
    """
    from tar3d.data.toy.make_toy import make_toy_data

    return make_toy_data(
        DEFAULT_FOLDER, SHIPPED_SHAPES, seed=0, views=ViewConfig(), workers=os.cpu_count() or 1
    )
