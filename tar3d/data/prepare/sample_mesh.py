"""One mesh -> its row of report.csv and the content of its files: the job of a worker process.

It writes nothing, so a worker that is killed leaves nothing half done.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from tar3d.data.formats.samples import sample_bytes
from tar3d.data.formats.views import image_files, view_files
from tar3d.mesh.load import MeshError, load_mesh
from tar3d.mesh.points import sample_shape

if TYPE_CHECKING:
    from pathlib import Path

    from tar3d.config import PointSamplingConfig, ViewConfig


@dataclass(frozen=True)
class MeshJob:
    """A mesh, and what to make of it: "samples", "views" or both."""

    id: str
    path: Path
    images: tuple[Path, ...]  # images of the user that become its views
    parts: tuple[str, ...]


@dataclass(frozen=True)
class SampleResult:
    """A row of report.csv, and files by name.

    The names are samples/<id>.npz, views/<id>/<k>.png and views/<id>/cameras.json.
    """

    row: dict[str, object]
    files: dict[str, bytes] = field(default_factory=dict)


def sample_mesh(
    job: MeshJob, *, config: PointSamplingConfig, seed: int, views: ViewConfig | None
) -> SampleResult:
    """Samples a mesh, and takes over or renders its views.

    The result depends on the mesh, its id and the settings alone. Views are rendered for a shape
    without usable images, unless `views` is None. A mesh that cannot be used gives a row with the
    reason.
    """
    start = time.perf_counter()
    entropy = int.from_bytes(hashlib.sha256(f"{seed}:{job.id}".encode()).digest()[:8], "big")
    row: dict[str, object] = {"status": "ok", "reason": ""}
    files: dict[str, bytes] = {}
    try:
        mesh = load_mesh(job.path)
        if "samples" in job.parts:
            samples, facts = sample_shape(mesh, config, entropy)
            files[f"samples/{job.id}.npz"] = sample_bytes(samples)
            row |= {
                name: f"{value:.5f}" if isinstance(value, float) else value
                for name, value in facts.items()
            }
        if "views" in job.parts:
            images, left_out = image_files(job.images)
            if not images and views is not None:
                images = view_files(mesh, views, np.random.default_rng([entropy, 1]))
            row["reason"] = "; ".join(left_out)
            files |= {f"views/{job.id}/{name}": content for name, content in images.items()}
    except MeshError as e:
        row, files = {"status": "refused", "reason": str(e)}, {}
    return SampleResult(row | {"seconds": f"{time.perf_counter() - start:.3f}"}, files)
