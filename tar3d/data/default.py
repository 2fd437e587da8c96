"""The data a training script uses when none is named: the procedural set, made once."""

from __future__ import annotations

import os
from pathlib import Path

from tar3d.config import SampleConfig, ViewConfig
from tar3d.data.make_samples import make_samples
from tar3d.data.toy import make_toy_data

DEFAULT_FOLDER = Path("data/toy")
DEFAULT_SAMPLES = SampleConfig(surface_points=8192, volume_points=8192, near_points=8192)


def default_data(num_shapes: int, folder: Path = DEFAULT_FOLDER) -> Path:
    """Makes (or completes) `folder` with `num_shapes` procedural shapes of seed 0, their views and samples."""
    workers = os.cpu_count() or 1
    make_toy_data(folder, num_shapes, seed=0, views=ViewConfig(), workers=workers)
    make_samples(folder, folder, DEFAULT_SAMPLES, workers=workers)
    return folder
