"""The data a script uses when none is named: procedural sets, made once."""

from __future__ import annotations

import os
from pathlib import Path

from tar3d.config import PointSamplingConfig, ViewConfig
from tar3d.data.prepare.make_samples import make_samples
from tar3d.data.toy.make_toy import make_toy_data

DEFAULT_FOLDER, TEST_FOLDER = Path("data/toy"), Path("data/test")
DEFAULT_SAMPLES = PointSamplingConfig(surface_points=8192, volume_points=8192, near_points=8192)
SHIPPED_SHAPES = 6000  # of seed 0: what pretrained/tiny was trained on


def default_data(num_shapes: int, folder: Path = DEFAULT_FOLDER, seed: int = 0) -> Path:
    """Makes (or completes) `folder` with `num_shapes` procedural shapes, their views and
    samples."""
    workers = os.cpu_count() or 1
    make_toy_data(folder, num_shapes, seed=seed, views=ViewConfig(), workers=workers)
    make_samples(folder, folder, DEFAULT_SAMPLES, workers=workers)
    return folder


def default_test(num_shapes: int) -> Path:
    """Procedural shapes of seed 1, which nothing shipped has seen."""
    return default_data(num_shapes, TEST_FOLDER, seed=1)


def default_library() -> Path:
    """The meshes and views that the shipped model was trained on, for baselines that copy one of
    them; no samples."""
    return make_toy_data(
        DEFAULT_FOLDER, SHIPPED_SHAPES, seed=0, views=ViewConfig(), workers=os.cpu_count() or 1
    )
